"""What a run found, as tables on the terminal and as one HTML file."""
