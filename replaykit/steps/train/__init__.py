"""Supervised fine-tuning in the order of the mixture, with remedies against forgetting."""
