"""What may leave the machine: of a recipe, and of a row."""
