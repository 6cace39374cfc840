"""What a person takes home of a run: its report, pictures, weights for other libraries."""
