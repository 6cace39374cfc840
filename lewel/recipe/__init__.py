"""A recipe: its schema, what is refused of it, its YAML, and the presets."""
