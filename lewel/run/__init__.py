"""A run: its parts, its steps, its checkpoints and its folder."""
