"""Timings of the op against plain PyTorch, kept as data: ``python -m benchmarks run``."""
