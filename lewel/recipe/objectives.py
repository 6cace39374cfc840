"""The table of objectives that method.loss can name: lewel.methods.objectives fills it, recipes read it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from lewel.errors import LewelError


class Rules(Protocol):
    """What recipes use of an objective: its names and its checks. run is a schema.Train throughout."""

    names: tuple[str, ...]
    """the method's name without the aligned branch and, where it has one, with it"""

    projectors: Mapping[str, Callable[[int, int, int], Any]]
    """its projectors by name, its own default first; each is made from input, hidden and output width"""

    @classmethod
    def check(cls, run: Any, processes: int) -> None:
        """Raises LewelError for settings that do not go with the objective; called before any data are read."""

    @classmethod
    def check_images(cls, run: Any, images: int) -> None:
        """Raises LewelError for a bad number of training images; called once the data are there."""

    @classmethod
    def images_met(cls, run: Any, processes: int) -> dict[str, str]:
        """What beside batch norm sees several images together, and how many, as text."""

    @classmethod
    def least_steps(cls, run: Any) -> int:
        """The fewest steps that an epoch must have."""


OBJECTIVES: dict[str, type[Rules]] = {}


def find(loss: str) -> type[Rules]:
    """The objective that method.loss names. Raises LewelError where there is none."""
    if loss not in OBJECTIVES:
        own = "an objective of your own enters lewel.OBJECTIVES before its runs are made or read"
        raise LewelError(f"method.loss must be one of {', '.join(OBJECTIVES)}, got {loss!r}; {meant(loss) or own}")
    return OBJECTIVES[loss]


def meant(method: str) -> str:
    """Which settings the name of a method, or one like it, stands for; "" for a name like none."""
    switches = {
        name: f"method.loss {loss} with method.w_aligned {'above 0' if aligned else '0'}"
        for loss, objective in OBJECTIVES.items()
        for aligned, name in enumerate(objective.names)
    }
    for near in difflib.get_close_matches(method.lower(), {**switches, **OBJECTIVES}, n=1):
        return f"{near} is {switches[near]}" if near in switches else f"did you mean method.loss {near}?"
    return ""


def projector(name: str, loss: str) -> Callable[[int, int, int], Any]:
    """What makes the projector that heads.projector names in a run of method.loss; "auto" is that objective's first.

    Names are those of all objectives, its own before others'. Raises LewelError for one that there is not.
    """
    own = find(loss).projectors
    if name == "auto":
        return next(iter(own.values()))
    known = {key: make for other in OBJECTIVES.values() for key, make in other.projectors.items()} | dict(own)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are auto, {', '.join(sorted(known))}"
        raise LewelError(f"there is no heads.projector {name}; {meant}")
    return known[name]
