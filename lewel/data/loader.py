"""Batches: (seed, epoch) fix the order and every random draw, so any number of workers gives the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch


class Views(NamedTuple):
    """One training batch: two normalised views of the same images."""

    first: torch.Tensor  # (B, 3, S, S) float32
    second: torch.Tensor  # (B, 3, S, S) float32
    index: torch.Tensor  # (B,) int64, position in the training set


class TrainLoader:
    """Batches of two views, the incomplete last batch of an epoch dropped.

    len(loader) is the number of batches an epoch; loader.epoch(e, first_batch=b) iterates over epoch e from batch b on,
    exactly as if the b batches before had been drawn (resume in the middle of an epoch).
    """

    def __init__(self, dataset: Any, batch_size: int, workers: int = 0) -> None: ...

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Views]: ...


def eval_batches(dataset: Any, batch_size: int, workers: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(images (B, 3, S, S) float32 normalised, labels (B,) int64), in order, the last batch possibly short."""
    ...
