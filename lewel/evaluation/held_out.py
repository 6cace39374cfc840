"""Training images that a choice is made by, such as that of a learning rate, and that nothing is trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (int64, ascending, on the CPU) of images that are kept, and of those that are held out.

    Of each class in labels (N,) int64 the share is held out, rounded, but one image at least, and one at least is kept:
    of a class of one image none is held out. The same labels, share and seed give the same indices.
    """
    found = labels.cpu().numpy()
    draws = np.random.default_rng([seed, len(found)])
    held = np.zeros(len(found), dtype=bool)
    for one in np.unique(found):
        places = np.flatnonzero(found == one)
        count = min(max(1, round(share * len(places))), len(places) - 1)
        held[draws.permutation(places)[:count]] = True
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))
