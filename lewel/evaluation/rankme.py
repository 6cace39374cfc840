"""RankMe: how many directions features fill (Garrido et al. 2023, arXiv 2210.02885)."""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 25_600  # images, as many as the paper takes
EPSILON = 1e-7  # is added to each share of the singular values, as in the paper for float32
BLOCK = 1024  # rows that are multiplied in float64 at a time


@torch.no_grad()
def rankme(features: Tensor) -> float:
    """exp of the entropy of the singular values s of features (N, C), uncentred, as shares p = s / sum(s) + EPSILON.

    From 1, where all rows are multiples of one, to min(N, C); of features of rank r with equal singular values it is r.
    Rows of zeros and the scale of all features change nothing. s are the roots of the eigenvalues of the smaller of
    the two Gram matrices, in float64 on the features' device. nan where a feature is not finite.
    """
    rows, width = features.shape
    if rows < width:
        whole = features.double()
        gram = whole @ whole.T
    else:
        gram = features.new_zeros(width, width, dtype=torch.float64)
        for block in features.split(BLOCK):
            part = block.double()
            gram.addmm_(part.T, part)
    if not gram.isfinite().all():
        return float("nan")
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny) + EPSILON
    return float((-shares * shares.log()).sum().exp())
