"""The steps, a folder each: what it does (step.py), what it found (result.py), and the work."""
