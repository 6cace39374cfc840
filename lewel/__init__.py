"""Pre-training with LEWEL (Learning Where to Learn, CVPR 2022) and its baselines: python -m lewel train --help."""
