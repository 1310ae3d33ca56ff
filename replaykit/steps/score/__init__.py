"""How probable the model finds the answers that it will be trained on."""
