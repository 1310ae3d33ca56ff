"""What a run found, in the terminal and on one HTML page."""
