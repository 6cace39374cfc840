"""Linear evaluation: linear classifiers on the features of a frozen encoder, of many rates and seeds at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lewel import data, distributed
from lewel.data import one_view
from lewel.errors import LewelError
from lewel.evaluation import held_out, linear_values, state
from lewel.evaluation.cache import Features, features_of
from lewel.evaluation.features import Tell
from lewel.evaluation.heads import Heads
from lewel.evaluation.linear_plan import Plan, Settings, plan
from lewel.evaluation.subject import Subject

SEED = 0  # of the order of the images, and of which are held out: the same for all heads


def kind(settings: Settings) -> str:
    """What results of it are called: linear-cached."""
    return f"linear-{settings.protocol}"


def evaluate(subject: Subject, settings: Settings, tell: Tell | None = None) -> dict[str, Any]:
    """Trains the classifiers of a protocol on the features of a frozen encoder; every process calls it.

    Returns what linear_values.of makes of their accuracies. Raises LewelError for bad settings, where all classifiers
    of the grid diverge, and where the encoder is not what it was before, statistics of BN included.
    """
    made = plan(subject, settings)
    table = {**made.settings, "weights": subject.digest, "images": made.images}
    path = subject.folder / "eval" / f"{kind(settings)}-{subject.name}.unfinished.pt"
    before = state.load(path, table, settings.resume) if made.protocol.augmented else None
    train, test = (features_of(subject, split, tell) for split in ("train", "test"))  # type: ignore[arg-type]
    _, held = held_out.split(train.labels, made.held_out, SEED)
    run = _Training(made, subject, train, test, held, tell or (lambda *_: None))
    if before is not None:
        run.heads.load_state_dict(before["heads"])
        run.history = before["history"]
    run.to_the_end(path, table)
    top5, chosen_by = run.accuracies(test.rows, test.labels, linear_values.TOP), run.on_held_out()
    values = linear_values.of(made, run.history, top5, chosen_by, run.heads.finite(), subject.sets.num_classes)
    if subject.digest != table["weights"]:
        raise LewelError(
            "the encoder is not what it was before the classifiers were trained, so their accuracy is of no one network; "
            "an encoder must not change itself in eval mode"
        )
    if subject.world.leads:
        state.remove(path)
    return values


class _Training:
    """The classifiers of a plan, and how far their training has come."""

    def __init__(self, plan: Plan, subject: Subject, train: Features, test: Features, held: Tensor, tell: Tell) -> None:
        self.plan, self.subject, self.train, self.test, self.tell = plan, subject, train, test, tell
        self.world = subject.world
        width, dtype = train.rows.shape[1], torch.float64 if train.rows.dtype == torch.float64 else torch.float32
        self.heads = Heads(
            *plan.heads(), classes=subject.sets.num_classes, width=width, larc=plan.protocol.larc,
            device=self.world.device, dtype=dtype,
        )  # fmt: skip
        self.held = torch.zeros(plan.images, dtype=torch.bool)
        self.held[held] = True
        self.held = self.held.to(self.world.device)
        self.history: list[list[float]] = []  # of each epoch the accuracy of each head on the test images, in percent
        self.loader: data.TrainLoader[Any] | None = None
        if plan.protocol.augmented:
            views = one_view.one_view(subject.sets.bank, one_view.augmentation(subject.run), SEED)
            self.loader = data.TrainLoader(
                views, plan.batch_size, subject.run.data.workers,
                rank=self.world.rank, world=self.world.size, device=self.world.device,
            )  # fmt: skip

    def to_the_end(self, path: Path, table: dict[str, Any]) -> None:
        """Trains the epochs that are left. Of augmented images, what is done is saved at path after each of them."""
        plan, what = self.plan, f"linear classifiers, {self.plan.epochs} epochs"
        total = plan.epochs * plan.steps * plan.batch_size
        for epoch in range(len(self.history), plan.epochs):
            for step, (rows, labels, held) in enumerate(self.batches(epoch)):
                self.tell(what, (epoch * plan.steps + step) * plan.batch_size, total)
                self.heads.step(rows, labels, plan.protocol.factor(epoch, plan.epochs, step, plan.steps), held)
            self.history.append(self.accuracies(self.test.rows, self.test.labels))
            if plan.protocol.augmented and epoch + 1 < plan.epochs and self.world.leads:
                done = {"heads": self.heads.state_dict(), "history": self.history}
                state.save(path, {"settings": table, "epoch": epoch + 1, **done})
        self.tell(what, total, total)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features, labels and what is held out of this process's share of the batches of an epoch."""
        if self.loader is not None:
            for images, labels, indices in self.loader.epoch(epoch):
                device = self.world.device
                yield self.subject.features(images), labels.to(device), self.held[indices.to(device)]
            return
        order = torch.from_numpy(np.random.default_rng([SEED, epoch]).permutation(self.plan.images))
        for batch in order.to(self.world.device).split(self.plan.batch_size)[: self.plan.steps]:
            mine = batch[self.world.rank :: self.world.size]
            yield self.train.rows[mine], self.train.labels[mine], self.held[mine]

    def on_held_out(self) -> list[float]:
        """The accuracy of each head on the training images that are held out."""
        return self.accuracies(self.train.rows[self.held], self.train.labels[self.held])

    def accuracies(self, rows: Tensor, labels: Tensor, top: int = 1) -> list[float]:
        """The accuracy of each head in percent; each process classifies a share."""
        share = slice(self.world.rank, None, self.world.size)
        counts = self.heads.correct(rows[share], labels[share], top)
        distributed.add_up(counts)
        return (100 * counts.double() / len(labels)).tolist()
