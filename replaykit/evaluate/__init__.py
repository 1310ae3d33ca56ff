"""What was learned and what was lost: scores of base and tuned models on the same held-out
items.
"""
