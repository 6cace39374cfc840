"""Linear heads, and the batches that they are trained on, by one process or by several."""

from __future__ import annotations

import torch

from lewel import distributed
from lewel.evaluation.heads import Head, Heads

CLASSES, WIDTH = 5, 12
SEEING, BLIND = (Head(0.1, 0), Head(3.0, 1)), (Head(0.1, 0), Head(1.0, 2))
_draws = torch.Generator().manual_seed(0)
LABELS = torch.randint(CLASSES, (64,), generator=_draws)
ROWS = (torch.randn(64, WIDTH, generator=_draws) + torch.eye(CLASSES, WIDTH)[LABELS]).half()
HELD = torch.rand(64, generator=_draws) < 0.25
BATCHES = [(slice(start % 64, start % 64 + 16), 0.7**step) for step, start in enumerate(range(0, 96, 16))]


def trained(heads: Heads, rows=ROWS, labels=LABELS, batches=BATCHES) -> Heads:
    """heads after a step on each of the batches, of which this process gives every size-th image."""
    rank, size = distributed.rank(), distributed.size()
    for at, factor in batches:
        given = (x[at][rank::size] for x in (rows, labels, HELD))
        features, truth, held = given
        heads.step(features, truth, factor, held)
    return heads


def stack(seeing=SEEING, blind=BLIND, **how) -> Heads:
    """Trained heads, in float64 unless how says otherwise."""
    return trained(Heads(seeing, blind, classes=CLASSES, width=WIDTH, **{"dtype": torch.float64, **how}))
