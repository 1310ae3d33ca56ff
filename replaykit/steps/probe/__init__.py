"""Look at a model's chat template, and at what the model writes from it."""
