"""What a session's features are worth, computed by all its processes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lewel import data, distributed
from lewel.evaluation import knn
from lewel.evaluation.rankme import MOST, rankme
from lewel.run.session import Session

BATCH = 256  # images that are encoded at a time
PIXELS = 32  # as they are, test images of ImageNet would fill 30 GB

Features = Callable[[Tensor], Tensor]
Tell = Callable[[str, int, int], None]
"""Hears what is computed, and of how many images so far, of how many."""


class Measured(NamedTuple):
    """What the features of the online encoder are worth, the same in all processes."""

    knn: dict[int, float]
    """accuracy in percent for each k of run.knn_k"""
    rankme: float
    """of the test images, or of MOST of them at equal distances"""
    probe: float | None
    """accuracy in percent of the linear probe on the test images; None where none has been trained"""


def knn_accuracy(session: Session, tell: Tell | None = None) -> dict[int, float]:
    """kNN of the online encoder's GAP features, bank from the training split: percent for each k of run.knn_k.

    All processes take BN's statistics of the first, which are those of the checkpoint.
    """
    return _of_encoder(session, tell)


def measured(session: Session, tell: Tell | None = None) -> Measured:
    """kNN as knn_accuracy has it, and of the features of the test images, which it takes, RankMe and the probe.

    The Gram matrix of RankMe, 32 MiB for 2,048 channels, and what solves it are gone before a bank is held.
    """
    world, probe = session.world, session.probe
    found: dict[str, float] = {}

    def look(mine: Tensor, labels: Tensor, tests: Tensor) -> None:
        chosen = torch.from_numpy(data.spaced(session.sets.test, MOST)).to(tests.device)
        longest = len(mine)
        rows = chosen % world.size * longest + chosen // world.size  # where the processes' shares put them
        found["rankme"] = distributed.from_leader(lambda: rankme(tests[rows]))
        if probe is not None and probe.passes:
            share = probe.correct(mine, labels).double() / len(session.sets.test)
            found["probe"] = 100 * world.size * float(distributed.average(share))

    accuracy = _of_encoder(session, tell, look)
    return Measured(accuracy, found["rankme"], found.get("probe"))


Look = Callable[[Tensor, Tensor, Tensor], None]
"""Sees features (n, C) and labels (n,) of this process's share of the test images, and the features of all shares."""


def _of_encoder(session: Session, tell: Tell | None, look: Look | None = None) -> dict[int, float]:
    encoder = session.method.online.encoder
    distributed.share(encoder.buffers())

    def features(images: Tensor) -> Tensor:
        with session.method.autocast():
            return encoder(session.to_device(images)).mean((2, 3), dtype=torch.float32)

    encoder.eval()
    with torch.compiler.set_stance("force_eager"):  # a compilation for each odd batch would cost more than it gains
        accuracy = _knn(session, features, "kNN of the encoder", tell, look)
    session.method.train()
    return accuracy


def knn_of_pixels(session: Session, tell: Tell | None = None) -> dict[int, float]:
    """As knn_accuracy, of the pixels themselves; images larger than 2 PIXELS a side are shrunk to PIXELS first."""

    def features(images: Tensor) -> Tensor:
        side = pixels_side(images.shape[-1])
        images = session.to_device(images)
        return (F.adaptive_avg_pool2d(images, side) if images.shape[-1] > side else images).flatten(1)

    return _knn(session, features, "kNN of raw pixels", tell)


def pixels_side(image_size: int) -> int:
    """Side of the images whose pixels are compared."""
    return PIXELS if image_size > 2 * PIXELS else image_size


def _knn(
    session: Session, features: Features, what: str, tell: Tell | None, look: Look | None = None
) -> dict[int, float]:
    """kNN accuracy in percent for each k.

    Every process holds the features of all test images, and finds their neighbours in its share of the bank, which goes
    by in blocks; then it classifies its share of the test images by the neighbours that all have found.
    """
    sets, world, run = session.sets, session.world, session.run
    count = min(run.knn_bank or len(sets.bank), len(sets.bank))
    seen = _Seen(what, count + len(sets.test), world.size, tell)
    mine, labels = _tests(session, seen.all(_described(session, features, sets.test, len(sets.test))))
    tests = distributed.gather(mine)
    if look is not None:  # before they are normalised in place
        look(mine, labels, tests)
    share = len(range(world.rank, count, world.size))
    bank = knn.blocks(seen.all(_described(session, features, sets.bank, count)), share)
    found = knn.nearest(bank, tests, min(max(run.knn_k), count))
    if world.size > 1:
        counts = [len(mine)] * world.size
        there = (distributed.exchange(x, counts, counts) for x in found)
        found = knn.merged(knn.Neighbours(*there), world.size)
    right = knn.correct(found, labels, sets.num_classes, k=run.knn_k, temperature=run.knn_temperature)
    shares = torch.tensor(right, device=world.device, dtype=torch.float64) / len(sets.test)
    percent = 100 * world.size * distributed.average(shares)
    return dict(zip(run.knn_k, percent.tolist(), strict=True))


def _tests(session: Session, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Features (n, width) and labels (n,) of batches, n as many as the longest share of the test images.

    A shorter share is filled up with zeros, whose label -1 no vote is for.
    """
    longest = -(-len(session.sets.test) // session.world.size)
    rows = labels = torch.empty(0)
    done = 0
    for described, truth in batches:
        if not done:  # one place for all of them: to join them in the end would take twice the memory
            rows, labels = described.new_zeros(longest, described.shape[1]), truth.new_full((longest,), -1)
        rows[done : done + len(truth)], labels[done : done + len(truth)] = described, truth
        done += len(truth)
    return rows, labels


@torch.no_grad()
def _described(
    session: Session, features: Features, images: data.Images, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (n, width) and labels (n,) of batches of this process's share of count equally spaced images."""
    mine = data.spaced(images, count)[session.world.rank :: session.world.size]
    for batch, labels in data.eval_batches(images, BATCH, session.run.data.workers, indices=mine):
        rows = features(batch)
        del batch  # before the next is read
        yield rows, labels.to(rows.device)


class _Seen:
    """Tells how many images all processes have described, as if they were equally fast."""

    def __init__(self, what: str, total: int, processes: int, tell: Tell | None) -> None:
        self.what, self.total, self.processes, self.done = what, total, processes, 0
        self.tell = tell or (lambda *_: None)
        self.tell(what, 0, total)

    def all(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for rows, labels in batches:
            yield rows, labels
            self.done = min(self.total, self.done + self.processes * len(labels))
            self.tell(self.what, self.done, self.total)
