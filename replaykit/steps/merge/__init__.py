"""Averages of the base and what was tuned from it."""
