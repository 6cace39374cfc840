"""What is made from a run: its report, pictures, and weights for other libraries."""
