"""From target and replay rows to the exact order in which they are trained on."""
