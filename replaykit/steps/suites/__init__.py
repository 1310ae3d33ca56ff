"""What a model can do of the old skills on hand, and what a test of them can show."""
