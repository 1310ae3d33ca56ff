"""Targets for a model that hears or sees, written by a model that reads."""
