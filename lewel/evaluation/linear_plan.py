"""What is asked of a linear evaluation, and what it will do with the images that there are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lewel.data import one_view
from lewel.errors import LewelError
from lewel.evaluation import protocols
from lewel.evaluation.heads import Head
from lewel.evaluation.protocols import PROTOCOLS, Protocol
from lewel.evaluation.subject import Subject


@dataclass(frozen=True)
class Settings:
    """What is asked of a linear evaluation; 0 and an empty tuple stand for what the protocol has."""

    protocol: protocols.Name = "cached"
    rates: tuple[float, ...] = ()
    """learning rates per 256 images that are tried; empty: protocols.GRID"""
    seeds: int = 3
    """initial weights of the classifier, for each rate"""
    epochs: int = 0
    batch_size: int = 0
    """images of a step, in all processes together; rates change in proportion to it"""
    held_out: float = 0.1
    """share of the training images that the rate is chosen by"""
    resume: str = ""
    """ "auto": an evaluation that was stopped goes on"""

    def check(self) -> None:
        """Raises LewelError for settings that cannot be."""
        if self.protocol not in PROTOCOLS:
            raise LewelError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        for rate in self.rates:
            if not (rate > 0 and math.isfinite(rate)):
                raise LewelError(f"rates must be positive numbers, learning rates per 256 images, got {rate:g}")
        for name, least in (("seeds", 1), ("epochs", 0), ("batch_size", 0)):
            if getattr(self, name) < least:
                what = "be at least 1" if least else "be positive, or 0 for that of the protocol"
                raise LewelError(f"{name} must {what}, got {getattr(self, name)}")
        if not 0 < self.held_out <= 0.5:
            raise LewelError(
                f"held_out is the share of the training images that the rate is chosen by, above 0 and at most 0.5, "
                f"got {self.held_out:g}"
            )
        if self.resume not in ("", "auto"):
            raise LewelError(
                f'resume must be "auto", which goes on with what was stopped, or empty, got {self.resume!r}'
            )


@dataclass(frozen=True)
class Plan:
    """What an evaluation will do: the settings with the protocol's own in them, for the images that there are."""

    name: str
    protocol: Protocol
    rates: tuple[float, ...]  # the grid, per 256 images, ascending
    seeds: int
    epochs: int
    batch_size: int
    images: int
    steps: int  # an epoch
    held_out: float
    notes: tuple[str, ...]  # sentences about what is other than the protocol or the settings say

    @property
    def scale(self) -> float:
        """What a rate per 256 images is multiplied by."""
        return self.batch_size / 256

    @property
    def settings(self) -> dict[str, Any]:
        """As the result and the state of a stopped evaluation have them."""
        names = ("rates", "seeds", "epochs", "batch_size", "held_out")
        return {"protocol": self.name, **{name: getattr(self, name) for name in names}}

    def heads(self) -> tuple[list[Head], list[Head]]:
        """Those that see all training images, and those that leave out what is held out: a block of seeds a rate."""
        blind = [Head(rate * self.scale, seed) for rate in self.rates for seed in range(self.seeds)]
        published = [Head(self.protocol.rate * self.scale, seed) for seed in range(self.seeds)]
        return (published if self.protocol.rate else list(blind)), blind


def plan(subject: Subject, settings: Settings) -> Plan:
    """Raises LewelError for settings that cannot be, and where a class has no training image."""
    settings.check()
    protocol, world, sets = PROTOCOLS[settings.protocol], subject.world, subject.sets
    labels = one_view.labels_of(sets.bank)
    counts = np.bincount(labels, minlength=sets.num_classes)
    if missing := np.flatnonzero(counts == 0).tolist():
        raise LewelError(
            f"a linear classifier needs training images of all {sets.num_classes} classes, and class {missing[0]} "
            f"{f'and {len(missing) - 1} more have' if missing[1:] else 'has'} none"
        )
    if counts.max() < 2:
        raise LewelError(
            "every class has one training image, so none can be held out to choose the learning rate by; give at least "
            "two of a class"
        )
    asked, images, notes = settings.batch_size or protocol.batch_size, len(labels), []
    size = min(asked, images)
    size -= size % world.size
    if not size:
        raise LewelError(f"a batch of {min(asked, images)} images cannot be shared by {world.size} processes")
    if size != asked:
        why = f"there are {images:,} training images" if asked > images else f"{world.size} processes share it"
        notes.append(f"the batch is {size:,} images, not {asked:,}, for {why}")
    if size != protocol.batch_size:
        notes.append(
            f"rates are {size / 256:g} times those per 256 images, in proportion to the batch of {size:,}; the "
            f"protocol has {protocol.batch_size:,}"
        )
    epochs = settings.epochs or protocol.epochs
    if epochs != protocol.epochs and protocol.augmented:
        notes.append(f"{epochs} epochs, the protocol has {protocol.epochs}")
    rates = tuple(sorted(set(settings.rates or protocols.GRID)))
    return Plan(
        settings.protocol, protocol, rates, settings.seeds, epochs, size, images, images // size, settings.held_out,
        tuple(notes),
    )  # fmt: skip
