"""What was learned and what was lost: base and tuned models on the same held-out items."""
