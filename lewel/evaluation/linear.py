"""Linear evaluation: linear classifiers on the features of a frozen encoder, of many rates and seeds at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lewel import data, distributed
from lewel.data import one_view
from lewel.errors import LewelError
from lewel.evaluation import held_out, linear_values, published, state
from lewel.evaluation.cache import Features, features_of
from lewel.evaluation.cache import kept as kept_features
from lewel.evaluation.features import Tell
from lewel.evaluation.heads import ROWS, Head, Heads
from lewel.evaluation.kinds import Kind
from lewel.evaluation.linear_plan import Plan, Settings, plan
from lewel.evaluation.linear_values import Reached
from lewel.evaluation.outcome import FOLDER
from lewel.evaluation.subject import Subject

SEED = 0  # of the order of the images, of their crops, and of which are held out: the same for all heads


class Batch(NamedTuple):
    """This process's share of a batch, on the device: features (B, C), labels (B,), and whether they are held out."""

    rows: Tensor
    labels: Tensor
    held: Tensor


def evaluate(subject: Subject, settings: Settings, tell: Tell | None = None) -> dict[str, Any]:
    """Trains the classifiers of a protocol on the features of a frozen encoder; every process calls it.

    Returns what linear_values.of makes of their accuracies. Raises LewelError for bad settings, where all classifiers
    of the grid diverge, and where the encoder is not what it was before, statistics of BN included.
    """
    made, digest = plan(subject, settings), subject.digest
    if torch.bincount(subject.labels("train").clamp(min=0)).max() < 2:
        raise _alone(made.images)
    trained = _augmented if made.protocol.augmented else _cached
    values = trained(made, subject, settings.resume, tell or (lambda *_: None))
    if subject.digest != digest:
        raise LewelError(
            "the encoder is not what it was before the classifiers were trained, so that their accuracy is of no one "
            "network; an encoder must not change itself in eval mode"
        )
    return values


def _alone(images: int) -> LewelError:
    return LewelError(
        f"each of the {images} training images is alone in its class, so none can be held out to choose the learning "
        "rate by; give at least two of a class"
    )


def _held(made: Plan, train: Features) -> Tensor:
    """Which of the features of training images are held out, (N,) bool on the device."""
    kept, out = held_out.split(train.labels, made.held_out, SEED)
    if not len(out):
        raise _alone(len(kept))
    return torch.zeros_like(train.labels, dtype=torch.bool).index_fill_(0, out.to(train.labels.device), True)


def _cached(made: Plan, subject: Subject, resume: str, tell: Tell) -> dict[str, Any]:
    """The grid first, which leaves out what is held out; then the best of its rates on all training images.

    Features are divided by their root mean square over the training images that are not held out, one number, so that
    rates mean the same for every encoder.
    """
    train, test = features_of(subject, "train", tell), features_of(subject, "test", tell)
    made, held = replace(made, images=len(train.labels)), _held(made, train)
    size = _size(train, ~held)
    train, test = (replace(features, scale=features.scale / size) for features in (train, test))

    def batches(epoch: int) -> Iterator[Batch]:
        order = torch.from_numpy(np.random.default_rng([SEED, epoch]).permutation(made.images)).to(held.device)
        for batch in order.split(made.batch_size):
            mine = batch[subject.world.rank :: subject.world.size]
            rows, labels, out = (x.index_select(0, mine) for x in (train.rows, train.labels, held))
            yield Batch(train.floats(rows), labels, out)

    grid = _Training(made, subject, train, test, [], made.heads(*made.rates), tell, "learning rates")
    grid.to_the_end(batches)
    tried = grid.reached(held)
    rate = made.rates[linear_values.choice(made, tried)]
    chosen = _Training(made, subject, train, test, made.heads(rate), [], tell, "linear classifiers")
    chosen.to_the_end(batches, watched=True)
    return linear_values.of(
        made, chosen.history, chosen.reached(held), tried, subject.sets.num_classes, int(held.sum())
    )


def _size(features: Features, among: Tensor) -> float:
    """The root mean square of the features of the images among (N,) bool; 1 where all are 0."""
    parts = zip(features.rows.split(ROWS), among.split(ROWS), strict=True)
    total = float(sum(rows[which].double().square().sum() for rows, which in parts))
    return features.scale * math.sqrt(total / (int(among.sum()) * features.rows.shape[1])) or 1.0


def _augmented(made: Plan, subject: Subject, resume: str, tell: Tell) -> dict[str, Any]:
    """The protocol's rate on all training images, and beside it the grid, on the same features."""
    path, world = _unfinished(subject, made.name), subject.world
    table = _table(made, subject)
    before = state.load(path, table, resume)
    views = one_view.one_view(subject.sets.bank, one_view.augmentation(subject.run), SEED)
    loader = data.TrainLoader(
        views, made.batch_size, subject.run.data.workers, rank=world.rank, world=world.size, device=world.device,
        drop_last=False,
    )  # fmt: skip
    train, test = features_of(subject, "train", tell), features_of(subject, "test", tell)
    held = _held(made, train)
    out = torch.zeros(made.images, dtype=torch.bool, device=world.device).index_fill_(0, train.indices[held], True)

    def batches(epoch: int) -> Iterator[Batch]:
        for images, labels, indices in loader.epoch(epoch):
            yield Batch(subject.features(images), labels.to(world.device), out[indices.to(world.device)])

    published, grid = made.heads(made.protocol.rate), made.heads(*made.rates)
    training = _Training(made, subject, train, test, published, grid, tell, "linear classifiers")
    if before is not None:
        training.heads.load_state_dict(before["heads"])
        training.history = before["history"]

    saved = len(training.history)

    def save(epoch: int) -> None:
        nonlocal saved
        if world.leads:
            done = {"heads": training.heads.state_dict(), "history": training.history}
            state.save(path, {"settings": table, "epoch": epoch, **done})
        saved = epoch

    try:
        training.to_the_end(batches, watched=True, after=save)
    except KeyboardInterrupt as stop:
        stopped = state.stopped(stop, saved, made.epochs, kept=kept_features(subject))
        raise (stop if str(stop) else stopped) from None
    reached = training.reached(held)
    return linear_values.of(
        made, [row[: made.seeds] for row in training.history], reached.part(0, made.seeds),
        reached.part(made.seeds, None), subject.sets.num_classes, int(held.sum()),
    )  # fmt: skip


class _Training:
    """Classifiers that are trained together, and what they have reached."""

    def __init__(
        self, made: Plan, subject: Subject, train: Features, test: Features, seeing: list[Head], blind: list[Head],
        tell: Tell, what: str,
    ) -> None:  # fmt: skip
        self.made, self.world, self.train, self.test, self.tell, self.what = (
            made, subject.world, train, test, tell, f"{what}, {made.epochs} epochs",
        )  # fmt: skip
        self.heads = Heads(
            seeing, blind, classes=subject.sets.num_classes, width=train.rows.shape[1], larc=made.protocol.larc,
            device=self.world.device, dtype=torch.float64 if train.rows.dtype == torch.float64 else torch.float32,
        )  # fmt: skip
        self.history: list[list[float]] = []  # after each epoch the accuracy of each head on the test images

    def to_the_end(
        self,
        batches: Callable[[int], Iterator[Batch]],
        *,
        watched: bool = False,
        after: Callable[[int], None] = lambda epochs: None,
    ) -> None:
        """Trains the epochs that are not in the history. watched keeps that; after is called between two of them."""
        made, first = self.made, len(self.history)
        total = made.epochs * made.images
        self.tell(self.what, 0, total)
        for epoch in range(first, made.epochs):
            for step, batch in enumerate(batches(epoch)):
                factor = made.protocol.factor(epoch, made.epochs, step, made.steps)
                self.heads.step(batch.rows, batch.labels, factor, batch.held)
                self.tell(self.what, epoch * made.images + min((step + 1) * made.batch_size, made.images), total)
            if watched:
                self.history.append(self._accuracies(self.test))
            if epoch + 1 < made.epochs:
                after(epoch + 1)

    def reached(self, held: Tensor) -> Reached:
        """What each head is right of at the end; held (N,) bool are the training images that are held out."""
        train, test = self.train, self.test
        out = replace(train, rows=train.rows[held], labels=train.labels[held], indices=train.indices[held])
        top5 = self._accuracies(test, linear_values.TOP)
        return Reached(self._accuracies(test), top5, self._accuracies(out), self.heads.finite())

    def _accuracies(self, features: Features, top: int = 1) -> list[float]:
        """The accuracy of each head in percent; each process classifies a share."""
        share = slice(self.world.rank, None, self.world.size)
        counts = self.heads.correct(features.rows[share], features.labels[share], top, features.scale)
        distributed.add_up(counts)
        return (100 * counts.double() / len(features.labels)).tolist()


def name(settings: Settings) -> str:
    """What results are called: linear-cached."""
    return f"linear-{settings.protocol}"


def _published(subject: Subject, settings: Settings) -> str:
    made = plan(subject, settings)
    protocol = made.name if made.is_the_protocol else published.OWN
    images = len(subject.sets.bank)
    return published.line(
        subject.run, "linear", protocol, images=images, epoch=subject.epoch, trained=subject.step is not None
    )


def _unfinished(subject: Subject, protocol: str) -> Path:
    """Where the state of an evaluation lies that can go on."""
    return subject.folder / FOLDER / f"linear-{protocol}-{subject.name}.unfinished.pt"


def _done(subject: Subject, settings: Settings) -> None:
    if subject.world.leads:
        state.remove(_unfinished(subject, settings.protocol))


def _table(made: Plan, subject: Subject) -> dict[str, Any]:
    """What must be as it was where an evaluation goes on."""
    return {**made.settings, **state.of(subject)}


def _planned(subject: Subject, settings: Settings) -> str:
    made = plan(subject, settings)
    if not made.protocol.augmented:
        return made.said
    on = state.going_on(subject, _unfinished(subject, made.name), _table(made, subject), settings.resume)
    return "\n".join(filter(None, (made.said, on)))


def _resolved(subject: Subject, settings: Settings) -> dict[str, Any]:
    return plan(subject, settings).settings


KIND = Kind(
    Settings, evaluate, linear_values.said, name, _resolved, published=_published, planned=_planned,
    done=_done, more=linear_values.more,
)  # fmt: skip
