"""Put the target into the model's own words."""
