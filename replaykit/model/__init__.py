"""A model's chat template, its tokens, its last layer, and where it is loaded from."""
