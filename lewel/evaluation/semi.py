"""Semi-supervised evaluation: the whole network fine-tuned on 1 % or 10 % of the labels (paper, 4.2).

Settings without another source are those of LEWEL: main_semi.py, which is EMAN's main_cls.py.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from lewel import data
from lewel.data.one_view import augmentation, one_view
from lewel.errors import LewelError
from lewel.evaluation import lists, outcome, protocols, published, state
from lewel.evaluation.kinds import Kind
from lewel.evaluation.linear_plan import counted
from lewel.evaluation.lists import Share
from lewel.evaluation.subject import Subject
from lewel.evaluation.tuning import FIRST, Tuning

RATES = {1: (1e-4, 1.0), 10: (0.01, 0.1)}  # of encoder and classifier, by percent of the labels (paper, 4.2)
PER = 256  # images that the rates are for

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """How a network is fine-tuned."""

    labels: Literal[1, 10] = 1
    """percent of the training images that keep their labels: 1 or 10"""
    list: str = ""
    """file that lists them, such as SimCLR's 1percent.txt; empty draws a share of every class"""
    epochs: int = 50
    """both rates fall to a tenth after 60 % and after 80 % of them"""
    batch_size: int = PER
    """of all processes together; no more than there are labelled images"""
    lr: float | None = None
    """of the encoder per 256 images; None: the paper's for this share, 1e-4 or 0.01"""
    fc_lr: float | None = None
    """of the classifier per 256 images; None: the paper's, 1.0 or 0.1"""
    seed: int = 0
    """fixes the classifier's first weights, the drawn share, order and augmentation"""
    resume: Literal["", "auto"] = ""
    """auto: go on after the last epoch of a fine-tuning that was stopped, if there is one"""

    def __post_init__(self) -> None:
        if type(self.labels) is not int or self.labels not in RATES:
            raise LewelError(f"labels must be 1 or 10, percent of the training images, got {self.labels!r}")
        if not isinstance(self.list, (str, os.PathLike)):
            raise LewelError(f"list must be the path of a file, got {self.list!r}")
        if self.resume not in ("", "auto"):
            raise LewelError(f'resume must be "auto", to go on with what was stopped, or empty, got {self.resume!r}')
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise LewelError(f"{name} must be a whole number of {least} or more, got {value!r}")
        for name in ("lr", "fc_lr"):
            rate = getattr(self, name)
            number = isinstance(rate, Real) and not isinstance(rate, bool)
            if rate is not None and not (number and 0 <= rate < float("inf")):
                raise LewelError(f"{name} must be a finite number, 0 or more, got {rate!r}")

    @property
    def rates(self) -> tuple[float, float]:
        """Of encoder and classifier, per 256 images."""
        encoder, classifier = RATES[self.labels]
        return (encoder if self.lr is None else self.lr, classifier if self.fc_lr is None else self.fc_lr)


@dataclass(frozen=True)
class Plan:
    """What a fine-tuning will do."""

    share: Share
    batch: int
    """images of one step, in all processes together"""
    rates: tuple[float, float]
    """of encoder and classifier in the first epochs"""
    drops: tuple[int, int]
    """numbers of epochs after which both fall to a tenth"""
    published: str
    said: str
    """two lines for people"""


def plan(subject: Subject, settings: Settings) -> Plan:
    """Which images, steps and rates settings mean for subject; every process calls it, and it is found out once.

    Raises LewelError for a list that does not fit, a class without a labelled image, and a batch that cannot be shared.
    """
    key = repr(settings)
    if key not in subject.kept:
        subject.kept[key] = _plan(subject, settings)
    return subject.kept[key]


def _plan(subject: Subject, settings: Settings) -> Plan:
    labels, size = lists.labels_of(subject.sets), subject.world.size
    if settings.list:
        share = lists.listed(os.fspath(settings.list), settings.labels, subject.sets)
    else:
        share = lists.balanced(labels, settings.labels, settings.seed)
    lists.check_classes(share, labels, subject.sets)
    count = len(share.chosen)
    batch = settings.batch_size if settings.batch_size <= count else -(-count // size) * size
    if batch % size:
        raise LewelError(
            f"a batch of {batch} images cannot be shared by {size} processes; try {-(-batch // size) * size}"
        )
    if min(batch, count) < 2 * size:
        raise LewelError(
            f"there are only {count} labelled images for {size} processes in batches of {min(batch, count)}, and batch "
            "normalisation needs 2 in each; use fewer processes, a larger batch or more labels"
        )
    rates = (settings.rates[0] * batch / PER, settings.rates[1] * batch / PER)
    drops = protocols.drops(settings.epochs)
    falls = " and ".join(str(drop) for drop in drops if drop < settings.epochs)
    own = share.simclr and (settings.epochs, settings.batch_size, settings.lr, settings.fc_lr) == (50, PER, None, None)
    known = published.line(
        subject.run, name(settings), published.SIMCLR if own else published.OWN, images=len(labels),
        epoch=subject.epoch, trained=subject.step is not None,
    )  # fmt: skip
    steps = count // batch if _drops_last(count, batch, size) else -(-count // batch)
    said = (
        f"{settings.labels} % of the labels: {count:,} of {len(labels):,} training images, {share.said}\n"
        f"{counted(settings.epochs, 'epoch')} of {counted(steps, 'step')} of {counted(batch, 'image')}, "
        f"rates {rates[0]:.3g} (encoder) and {rates[1]:.3g} (classifier)"
    )
    if falls:
        said += f", divided by 10 after {'epochs' if ' ' in falls else 'epoch'} {falls}"
    if batch != PER:
        why = f"there are only {count} labelled images, so " if batch < settings.batch_size else ""
        said += f"; {why}both rates are those for {PER} images, times {batch}/{PER}"
    return Plan(share, batch, rates, drops, known, said)


def _drops_last(images: int, batch: int, processes: int) -> bool:
    """Whether the incomplete last batch is left out: it would be one image a process, without batch statistics."""
    return 0 < images % batch < 2 * processes


def evaluate(subject: Subject, settings: Settings, tell: Tell | None = None) -> dict[str, Any]:
    """Fine-tunes a copy of the subject's encoder, which stays as it is; every process calls it.

    All test images are classified after every epoch, and the state is saved, so that settings.resume "auto" goes on
    from there. tell hears how many images have been trained on, of how many.

    Returns accuracy and top1 (after the last epoch), top5 where there are five classes, loss, best (epoch, loss, top1,
    top5), by_epoch, seconds; all accuracies in percent. Raises LewelError as plan does, for a loss that is not finite,
    and for the state of an evaluation that was stopped, unless resume is "auto" and nothing has changed.
    """
    planned, since = plan(subject, settings), time.monotonic()
    path, chosen = _place(subject, settings), planned.share.chosen
    wanted = _table(subject, settings)
    before = state.load(path, wanted, settings.resume)
    images = one_view(subject.sets.bank, augmentation(subject.run), settings.seed, chosen)
    loader = data.TrainLoader(
        images, planned.batch, subject.run.data.workers,
        rank=subject.world.rank, world=subject.world.size, device=subject.world.device,
        drop_last=_drops_last(len(chosen), planned.batch, subject.world.size),
    )  # fmt: skip
    by_epoch: list[dict[str, float]] = before["by_epoch"] if before else []
    saved = len(by_epoch)
    spent, total = before["seconds"] if before else 0.0, settings.epochs * len(chosen)
    tell = tell or (lambda what, done, total: None)
    with Tuning(subject, settings.seed) as tuning:
        if before:
            tuning.restore(before["tuning"])
        tell("fine-tuning", 0, total)
        try:
            for epoch in range(saved, settings.epochs):
                factor = 0.1 ** sum(epoch >= drop for drop in planned.drops)
                loss = tuning.epoch(loader, epoch, [rate * factor for rate in planned.rates])
                top1, top5 = tuning.accuracies()
                several = {"top5": top5} if subject.sets.num_classes >= FIRST else {}
                by_epoch.append({"epoch": epoch + 1, "loss": loss, "top1": top1, **several})
                if subject.world.leads:
                    seconds = spent + time.monotonic() - since
                    state.save(path, {"settings": wanted, "epoch": epoch + 1, "by_epoch": by_epoch,
                                      "seconds": seconds, "tuning": tuning.state()})  # fmt: skip
                saved = epoch + 1
                tell("fine-tuning", (epoch + 1) * len(chosen), total)
        except KeyboardInterrupt as stop:
            raise (stop if str(stop) else state.stopped(stop, saved, settings.epochs)) from None
    last, best = by_epoch[-1], max(by_epoch, key=lambda values: values["top1"])
    return {
        "accuracy": last["top1"], **{name: last[name] for name in ("top1", "top5", "loss") if name in last},
        "best": best, "by_epoch": by_epoch, "seconds": spent + time.monotonic() - since,
    }  # fmt: skip


def done(subject: Subject, settings: Settings) -> None:
    """Removes the state of an evaluation whose result is written."""
    if subject.world.leads:
        state.remove(_place(subject, settings))


def said(values: dict[str, Any]) -> str:
    """The numbers in a clause that goes on with the epoch of the weights."""
    best, epochs = values["best"], len(values["by_epoch"])
    several = f", top-5 {values['top5']:.2f} %" if "top5" in values else ""
    return (
        f"top-1 {values['top1']:.2f} %{several} after the last of {counted(epochs, 'epoch')}, best "
        f"{best['top1']:.2f} % after {best['epoch']} (chosen on the test images), fine-tuned from the weights"
    )


def name(settings: Settings) -> str:
    return f"semi-{settings.labels}"


def resolved(subject: Subject, settings: Settings) -> dict[str, Any]:
    """What a result depends on beside weights and images. Raises LewelError as plan does."""
    planned = plan(subject, settings)
    return {
        "labels": settings.labels,
        "chosen": len(planned.share.chosen),
        "from": planned.share.said,
        "list": planned.share.sha256,
        "epochs": settings.epochs,
        "batch_size": planned.batch,
        "lr": planned.rates[0],
        "fc_lr": planned.rates[1],
        "drops": list(planned.drops),
        "seed": settings.seed,
    }


def _table(subject: Subject, settings: Settings) -> dict[str, Any]:
    """What must be as it was where a fine-tuning goes on."""
    return {
        **resolved(subject, settings),
        **state.of(subject),
        "labelled": hashlib.sha256(plan(subject, settings).share.chosen.tobytes()).hexdigest(),
        "processes": subject.world.size,
    }


def _planned(subject: Subject, settings: Settings) -> str:
    said = plan(subject, settings).said
    on = state.going_on(subject, _place(subject, settings), _table(subject, settings), settings.resume)
    return "\n".join(filter(None, (said, on)))


def _place(subject: Subject, settings: Settings) -> Path:
    return subject.folder / outcome.FOLDER / f"{name(settings)}-{subject.name}.state"


KIND = Kind(
    Settings, evaluate, said, name, resolved, cached=lambda settings: False, done=done,
    published=lambda subject, settings: plan(subject, settings).published,
    planned=_planned,
)  # fmt: skip
