"""Batches: (seed, epoch) fix the order and every random draw, so any number of workers gives the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader


class Views(NamedTuple):
    """One training batch: two normalised views of the same images."""

    first: torch.Tensor  # (B, 3, S, S) float32
    second: torch.Tensor  # (B, 3, S, S) float32
    indices: torch.Tensor  # (B,) int64, position in the training set


class BatchKey(NamedTuple):
    """What a worker needs to know to make one batch of views."""

    epoch: int
    indices: np.ndarray  # (B,) int64


class TwoViews(Protocol):
    """A training set: a whole batch of views at a time."""

    @property
    def seed(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: BatchKey) -> Views: ...


class Images(Protocol):
    """A bank or a test set: a whole batch of (images, labels) for indices (B,) at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]: ...


class TrainLoader:
    """Batches of two views, the incomplete last batch of an epoch dropped.

    len(loader) is the number of batches an epoch; loader.epoch(e, first_step=b) iterates over epoch e from batch b on,
    exactly as if the b batches before had been drawn (resume in the middle of an epoch).
    """

    def __init__(
        self,
        dataset: TwoViews,
        batch_size: int,
        workers: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self._keys = _Keys(len(dataset), batch_size, dataset.seed, rank, world, accumulate)
        # The keys are whole batches, so the loader's own batching is off; the workers live as long as the run.
        self._loader: DataLoader[Views] = DataLoader(
            dataset,  # type: ignore[arg-type]
            sampler=self._keys,
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        return len(self._keys)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Views]:
        """The batches of epoch (from 0), from first_step on."""
        self._keys.epoch, self._keys.first_step = epoch, first_step
        return iter(self._loader)


class _Keys:
    """The batches of an epoch in order: a permutation that (seed, epoch) fix, cut into full batches."""

    def __init__(self, images: int, batch_size: int, seed: int, rank: int, world: int, accumulate: int) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.epoch = self.first_step = 0

    def __len__(self) -> int:
        return self.images // self.batch_size

    def __iter__(self) -> Iterator[BatchKey]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images)
        local = self.batch_size // (self.world * self.accumulate)
        for step in range(self.first_step, len(self)):
            for number in range(self.accumulate):
                start = step * self.batch_size + (number * self.world + self.rank) * local
                yield BatchKey(self.epoch, order[start : start + local])


def eval_batches(
    dataset: Images, batch_size: int, workers: int = 0, *, indices: np.ndarray | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(images (B, 3, S, S) float32 normalised, labels (B,) int64) of indices or all, in order, the last one short."""
    indices = np.arange(len(dataset)) if indices is None else indices
    loader: DataLoader[tuple[torch.Tensor, torch.Tensor]] = DataLoader(
        dataset,  # type: ignore[arg-type]
        sampler=[indices[start : start + batch_size] for start in range(0, len(indices), batch_size)],
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
    )
    return iter(loader)


def spaced(dataset: Images, count: int) -> np.ndarray:
    """Indices of count images, or of all, at equal distances: a set in the order of its classes shows all of them."""
    count = min(count, len(dataset))
    return np.arange(count) * len(dataset) // count


def _as_it_is(batch: Any) -> Any:
    return batch
