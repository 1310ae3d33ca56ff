"""replaykit: fine-tune a language model without losing what it knew, and prove it."""

__version__ = "0.1.0"
