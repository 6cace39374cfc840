"""What a session's features are worth, computed by all its processes together."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lewel import data, distributed
from lewel.evaluation import knn
from lewel.run.session import Session

BATCH = 256  # images that are encoded at a time
PIXELS = 32  # a bank of ImageNet's own pixels would fill 60 GB


def knn_accuracy(session: Session) -> dict[int, float]:
    """kNN of the online encoder's GAP features, bank from the training split: percent for each k of run.knn_k.

    All processes take BN's statistics of the first, which are those of the checkpoint.
    """
    encoder = session.method.online.encoder
    distributed.share(encoder.buffers())

    def features(images: Tensor) -> Tensor:
        with session.method.autocast():
            return encoder(session.to_device(images)).mean((2, 3), dtype=torch.float32)

    encoder.eval()
    with torch.compiler.set_stance("force_eager"):  # a compilation for each odd batch would cost more than it gains
        accuracy = _knn(session, features)
    session.method.train()
    return accuracy


def knn_of_pixels(session: Session) -> dict[int, float]:
    """As knn_accuracy, of the pixels themselves; images larger than PIXELS a side are shrunk to that first."""

    def features(images: Tensor) -> Tensor:
        images = session.to_device(images)
        return (F.adaptive_avg_pool2d(images, PIXELS) if images.shape[-1] > 2 * PIXELS else images).flatten(1)

    return _knn(session, features)


def _knn(session: Session, features: Callable[[Tensor], Tensor]) -> dict[int, float]:
    """kNN accuracy in percent for each k; processes share the bank's images out, then the test images."""
    sets, world, run = session.sets, session.world, session.run
    rows, labels = _described(session, features, sets.bank, run.knn_bank or len(sets.bank))
    if world.size > 1:
        rows, labels = (distributed.gather(_padded(x, session)) for x in (rows, labels))
        if (labels < 0).any():  # else there is nothing to copy a bank of 10 GB for
            rows, labels = rows[labels >= 0], labels[labels >= 0]
    test = _described(session, features, sets.test, len(sets.test))
    right = knn.correct(rows, labels, *test, sets.num_classes, k=run.knn_k, temperature=run.knn_temperature)
    shares = torch.tensor(right, device=world.device, dtype=torch.float64) / len(sets.test)
    percent = 100 * world.size * distributed.average(shares)
    return dict(zip(run.knn_k, percent.tolist(), strict=True))


def _described(
    session: Session, features: Callable[[Tensor], Tensor], images: data.Images, count: int
) -> tuple[Tensor, Tensor]:
    """Features (n, width) and labels (n,) of this process's share of count equally spaced images."""
    mine = data.spaced(images, count)[session.world.rank :: session.world.size]
    batches = data.eval_batches(images, BATCH, session.run.data.workers, indices=mine)
    rows, labels = knn.describe(features, batches, len(mine))
    return rows, labels.to(rows.device)


def _padded(x: Tensor, session: Session) -> Tensor:
    """x (n, ...) with -1 appended up to the length of the longest share, so that shares can be gathered."""
    count = session.run.knn_bank or len(session.sets.bank)
    longest = -(-min(count, len(session.sets.bank)) // session.world.size)
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, longest - len(x)), value=-1)
