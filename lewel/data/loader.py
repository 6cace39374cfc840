"""Batches: (seed, epoch) fix the order and every random draw, for any number of workers and processes.

batch_size is the global batch, the images of one optimizer step. A step is made of `accumulate` micro-batches, and each
of `world` processes gets its share of every one of them.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.util import Finalize
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from lewel.data import shared
from lewel.errors import DataError, LewelError

CPU = torch.device("cpu")
# What a scheduler, or the terminal, sends before it takes the machine away: a run saves and stops.
NOTICES = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Views(NamedTuple):
    """One training batch: two normalised views of the same images."""

    first: torch.Tensor  # (B, 3, S, S) float32
    second: torch.Tensor  # (B, 3, S, S) float32
    indices: torch.Tensor  # (B,) int64 on the CPU, position in the training set
    labels: torch.Tensor | None = None  # (B,) int64 on the CPU, -1 for an image without one; None where none is known


class BatchKey(NamedTuple):
    """What a worker needs to know to make one batch of views."""

    epoch: int
    indices: np.ndarray  # (B,) int64


Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)


class TrainSet(Protocol[Batch_co]):
    """What TrainLoader reads: dataset[BatchKey] gives a whole batch, Views in training."""

    @property
    def seed(self) -> int: ...

    @property
    def device(self) -> torch.device: ...  # where its views are made

    def __len__(self) -> int: ...

    def __getitem__(self, key: BatchKey) -> Batch_co: ...


TwoViews = TrainSet[Views]
"""A training set of a run. One whose attribute `labelled` is True gives its views' labels, of the classes that the test
images have; those of a set without the attribute are not looked at."""


class Images(Protocol):
    """A bank or a test set, which eval_batches reads: dataset[indices (B,)] gives (images, labels) of a whole batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]: ...


class TrainLoader(Generic[Batch]):
    """Micro-batches for the process rank of world; the incomplete last step of an epoch is dropped.

    With drop_last=False it is taken too, in equal shares: of several processes, the first images of the epoch fill it
    up where it does not divide, as torch's DistributedSampler does.

    len(loader) is the number of optimizer steps an epoch; loader.epoch(e, first_step=s) iterates over the micro-batches
    of epoch e from step s on, exactly as if the s steps before had been drawn (resume in the middle of an epoch).
    Views made on the CPU for a CUDA device lie in pinned memory. Raises LewelError for a batch that cannot be shared.
    """

    def __init__(
        self,
        dataset: TrainSet[Batch],
        batch_size: int,
        workers: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        device: torch.device = CPU,
        drop_last: bool = True,
    ) -> None:
        if batch_size % (world * accumulate):
            below = batch_size // (world * accumulate) * world * accumulate
            raise LewelError(
                f"data.batch_size must be divisible by processes times accumulate, got {batch_size} images for {world} "
                f"times {accumulate}; try {below or world * accumulate}"
            )
        _end_workers_at_exit(os.getpid())
        self._keys = _Keys(len(dataset), batch_size, accumulate, rank, world, dataset.seed, drop_last)
        # The keys are whole batches, so the loader's own batching is off; the workers live as long as the run.
        self._loader: DataLoader[Batch] = DataLoader(
            _Sentences(dataset),  # type: ignore[arg-type]
            sampler=self._keys,
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_outlive_notices,
            persistent_workers=workers > 0,
            timeout=shared.LOOK if workers else 0,
            pin_memory=device.type == "cuda" and dataset.device.type == "cpu",
        )

    def __len__(self) -> int:
        return self._keys.steps

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The micro-batches of epoch (from 0), from first_step on."""
        self._keys.epoch, self._keys.first_step = epoch, first_step
        with shared.sentences(getattr(self._loader, "_iterator", None)):  # of the epoch before, whose workers live on
            batches = iter(self._loader)
        return map(_raised, shared.watched(batches))


class _Keys:
    """The micro-batches of an epoch in order: a permutation that (seed, epoch) fix, cut into equal parts."""

    def __init__(
        self, images: int, batch_size: int, accumulate: int, rank: int, world: int, seed: int, drop_last: bool
    ) -> None:
        assert drop_last or accumulate == 1, "an incomplete step has no micro-batches"
        self.images, self.accumulate, self.drop_last = images, accumulate, drop_last
        self.steps = images // batch_size if drop_last else -(-images // batch_size)
        self.rank, self.world, self.seed = rank, world, seed
        self.local = batch_size // (world * accumulate)
        self.epoch = self.first_step = 0

    def __iter__(self) -> Iterator[BatchKey]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images)
        if not self.drop_last:
            order = np.resize(order, -(-self.images // self.world) * self.world)
        for micro_batch in range(self.first_step * self.accumulate, self.steps * self.accumulate):
            first = micro_batch * self.world * self.local
            local = min(self.local, (len(order) - first) // self.world)
            yield BatchKey(self.epoch, order[first + self.rank * local :][:local])


def eval_batches(
    dataset: Images, batch_size: int, workers: int = 0, *, indices: np.ndarray | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(images (B, 3, S, S) float32 normalised, labels (B,) int64 on the CPU) of indices (N,) int64 or all, in order.

    The last batch may be short. Processes that share a set take every world-th index each: indices[rank::world].
    """
    _end_workers_at_exit(os.getpid())
    indices = np.arange(len(dataset)) if indices is None else indices
    loader: DataLoader[tuple[torch.Tensor, torch.Tensor]] = DataLoader(
        _Sentences(dataset),  # type: ignore[arg-type]
        sampler=[indices[start : start + batch_size] for start in range(0, len(indices), batch_size)],
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_outlive_notices,
        timeout=shared.LOOK if workers else 0,
    )
    with shared.sentences():
        batches = iter(loader)
    return map(_raised, shared.watched(batches))


def spaced(dataset: Images, count: int) -> np.ndarray:
    """Indices of count images, or of all, at equal distances: a set in the order of its classes shows all of them."""
    count = min(count, len(dataset))
    return np.arange(count) * len(dataset) // count


class _Sentences:
    """A set whose LewelErrors come as items: raised in a worker they would reach a person inside a traceback."""

    def __init__(self, dataset: TrainSet[Any] | Images) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except LewelError as error:
            return error


def _raised(item: Any) -> Any:
    if isinstance(item, LewelError):
        raise item if isinstance(item, DataError) else DataError(str(item))
    if item is None:
        raise DataError("the data set returned None in place of a batch; see lewel.data.loader for what it must return")
    return item


def _as_it_is(batch: Any) -> Any:
    return batch


def _outlive_notices(worker: int) -> None:
    """Makes a worker ignore the signals that announce a run's end.

    All processes of a job get them, but the training needs its workers until it has saved.
    """
    for notice in NOTICES:
        signal.signal(notice, signal.SIG_IGN)


@functools.cache
def _end_workers_at_exit(process: int) -> None:
    """Has this process kill its workers when it exits, registered once per process number.

    Without it multiprocessing would, after an error, send them SIGTERM, which they ignore, and wait for ever.
    """
    Finalize(None, _end_workers, exitpriority=0)


def _end_workers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # DataLoader's own handler would report them as crashed
    for child in multiprocessing.active_children():
        child.kill()
