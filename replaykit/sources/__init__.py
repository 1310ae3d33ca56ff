"""Where replay comes from: old data, the model's own memory, the target reworded."""
