"""Everything with parameters or a loss: encoders, heads, objectives, the momentum network."""
