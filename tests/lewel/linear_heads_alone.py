"""The steps that test_linear_heads.py has heads take; by torchrun, each process takes them on its share of the batches
and writes its weights into a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from lewel import distributed
from lewel.evaluation.heads import Head, Heads

CLASSES, WIDTH = 5, 12
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


def main(folder: Path) -> None:
    distributed.join()
    seeing, blind = (Head(0.1, 0), Head(3.0, 1)), (Head(0.1, 0), Head(1.0, 2))
    for larc in (False, True):
        made = Heads(seeing, blind, classes=CLASSES, width=WIDTH, larc=larc, dtype=torch.float64)
        torch.save(trained(made).weights, folder / f"{'larc' if larc else 'sgd'}-{distributed.rank()}.pt")
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
