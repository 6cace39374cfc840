"""What the features of a run are worth, and whether it is healthy."""
