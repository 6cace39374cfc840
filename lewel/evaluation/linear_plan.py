"""What is asked of a linear evaluation, and what it will do with the images that there are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from lewel.errors import LewelError
from lewel.evaluation import protocols
from lewel.evaluation.heads import Head
from lewel.evaluation.protocols import PROTOCOLS, Protocol

if TYPE_CHECKING:  # which imports torchvision, and results are read without
    from lewel.evaluation.subject import Subject


@dataclass(frozen=True)
class Settings:
    """Of the linear classifiers; 0 and no rates stand for what the protocol has."""

    protocol: protocols.Name = "cached"
    """cached: on features of the centre crop; or as published, on augmented images: a (LEWEL_B, EMAN), b
    (LEWEL_M, SimSiam: LARC, batch 4096) or moco"""
    rates: tuple[float, ...] = ()
    """learning rates per 256 images, the best of which is chosen on training images held out; none means 13 from 0.01
    to 100, three a decade"""
    seeds: int = 3
    """initial weights that are tried for each rate; the result is their mean"""
    epochs: int = 0
    """0 means the protocol's; cached: as many as make 4,000 steps, from 30 to 500"""
    batch_size: int = 0
    """images of a step, in all processes together; rates change in proportion to it. 0 means the protocol's"""
    held_out: float = 0.1
    """share of the training images that the rate is chosen by, of each class"""
    resume: Literal["", "auto"] = ""
    """auto: an evaluation by protocol a, b or moco that was stopped goes on"""

    def checked(self) -> Settings:
        """The settings with numbers of Python's own kinds. Raises LewelError for what they cannot be."""
        if not isinstance(self.protocol, str) or self.protocol not in PROTOCOLS:
            raise LewelError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        rates = self.rates if isinstance(self.rates, tuple) else (self.rates,)
        for rate in rates:
            if isinstance(rate, bool) or not (isinstance(rate, Real) and rate > 0 and math.isfinite(rate)):
                raise LewelError(f"rates must be positive numbers, learning rates per 256 images, got {rate!r}")
        for name, least, or_else in (("seeds", 1, ""), *((n, 0, ", or 0") for n in ("epochs", "batch_size"))):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                also = f"{or_else} for that of the protocol" if or_else else ""
                raise LewelError(f"{name} must be a whole number of 1 or more{also}, got {value!r}")
        if isinstance(self.held_out, bool) or not (isinstance(self.held_out, Real) and 0 < self.held_out <= 0.5):
            raise LewelError(
                "held_out must be above 0 and at most 0.5, the share of the training images that the learning rate is "
                f"chosen by, got {self.held_out!r}"
            )
        if self.resume not in ("", "auto"):
            raise LewelError(
                f'resume must be "auto", which goes on with what was stopped, or empty, got {self.resume!r}'
            )
        if self.resume and self.protocol == "cached":
            raise LewelError(
                "resume is for protocols a, b and moco: the cached one keeps no state, for it begins anew in less time "
                "than the features take, which are kept"
            )
        return replace(self, rates=tuple(map(float, rates)), held_out=float(self.held_out))


@dataclass(frozen=True)
class Plan:
    """What an evaluation does: the settings with the protocol's own in them, for the images that there are."""

    name: str
    protocol: Protocol
    rates: tuple[float, ...]
    """of the grid, per 256 images, ascending"""
    seeds: int
    epochs: int
    batch_size: int
    images: int
    held_out: float
    notes: tuple[str, ...]
    """clauses about what is other than the settings or the protocol say"""

    @property
    def is_the_protocol(self) -> bool:
        """Whether the result is that of the protocol as it was published, in batch and epochs."""
        its = self.protocol
        return bool(its.rate) and (self.batch_size, self.epochs) == (its.batch_size, its.epochs)

    @property
    def steps(self) -> int:
        """Of an epoch, with its incomplete last batch."""
        return -(-self.images // self.batch_size)

    @property
    def scale(self) -> float:
        """What a rate per 256 images is multiplied by."""
        return self.batch_size / 256

    @property
    def settings(self) -> dict[str, Any]:
        """As the result and the state of an evaluation that was stopped have them."""
        names = ("seeds", "epochs", "batch_size", "held_out")
        rates = [significant(rate) for rate in self.rates]
        return {"protocol": self.name, "rates": rates, **{name: getattr(self, name) for name in names}}

    @property
    def said(self) -> str:
        """What it does, in a line."""
        lone = f"the protocol's {self.protocol.rate:g} and " if self.protocol.rate else ""
        tried = (
            f"{len(self.rates)} from {self.rates[0]:.3g} to {self.rates[-1]:.3g}"
            if self.rates[1:]
            else f"{self.rates[0]:.3g}"
        )
        return (
            f"linear classifiers ({self.name}): learning rates {lone}{tried} per 256 images, "
            f"{counted(self.seeds, 'seed')} each, {counted(self.epochs, 'epoch')} of {counted(self.steps, 'step')} of "
            f"{counted(self.batch_size, 'image')}"
        ) + "".join(f"; {note}" for note in self.notes)

    def heads(self, *rates: float) -> list[Head]:
        """A head for each of the rates per 256 images and each seed, those of a rate beside each other."""
        return [Head(rate * self.scale, seed) for rate in rates for seed in range(self.seeds)]


def plan(subject: Subject, settings: Settings) -> Plan:
    """Raises LewelError for settings that cannot be, and for a batch that the processes cannot share."""
    return made(settings, len(subject.sets.bank), subject.world.size)


def made(settings: Settings, images: int, processes: int) -> Plan:
    """The plan for so many training images and processes; raises LewelError as plan does."""
    settings = settings.checked()
    protocol = PROTOCOLS[settings.protocol]
    asked = settings.batch_size or protocol.batch_size
    size, notes = min(asked, images), []
    if protocol.augmented and size % processes:  # of cached features shares may be uneven
        size = size // processes * processes if size < images else -(-size // processes) * processes
    if not size:
        raise LewelError(f"a batch of {min(asked, images)} images cannot be shared out to {processes} processes")
    if size != asked:
        why = f"of the {images:,} training images" if asked > images else f"for {processes} processes to share"
        notes.append(f"the batch is {size:,} images, not {asked:,}, {why}")
    if size != protocol.batch_size:
        notes.append(
            f"learning rates are in proportion to the batch, {size / 256:g} times those per 256 images; the protocol's "
            f"batch has {protocol.batch_size:,}"
        )
    usual = protocol.epochs_for(-(-images // size))
    epochs = settings.epochs or usual
    if epochs != usual:
        whose = "the protocol's " if protocol.rate else "the "
        why = "" if protocol.rate else " that are enough for these images"
        notes.append(f"{counted(epochs, 'epoch')}, not {whose}{usual}{why}")
    rates = tuple(sorted(set(settings.rates or protocols.GRID)))
    return Plan(
        settings.protocol, protocol, rates, settings.seeds, epochs, size, images, settings.held_out, tuple(notes)
    )


def counted(count: int, what: str) -> str:
    """So many of what: 1 step, 4,000 steps."""
    return f"{count:,} {what}" + "s" * (count != 1)


def significant(rate: float) -> float:
    """A rate as it is written: to six digits, however small."""
    return float(f"{rate:.6g}")
