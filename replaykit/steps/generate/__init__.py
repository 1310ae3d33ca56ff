"""Let the model write its own questions and answers."""
