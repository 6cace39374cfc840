"""What a GPU at hand is asked: whether the kernels are right, how they are tuned, how far from its limits."""
