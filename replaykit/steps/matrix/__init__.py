"""What each stage of several tasks knows: the accuracy matrix, and what it says of forgetting."""
