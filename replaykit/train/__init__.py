"""Supervised fine-tuning on a mixture, in exactly the order that the plan gives."""
