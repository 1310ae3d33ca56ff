"""Choose old data for the new task."""
