"""Put right what a finished fine-tuning has lost."""
