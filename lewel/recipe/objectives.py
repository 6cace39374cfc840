"""The table of objectives that method.loss can name: lewel.methods.objectives fills it, recipes read it."""

from __future__ import annotations

from typing import Any, Protocol

from lewel.errors import LewelError


class Rules(Protocol):
    """What recipes use of an objective: its names and its checks. run is a schema.Train throughout."""

    names: tuple[str, ...]
    """the method's name without the aligned branch and, where it has one, with it"""

    @classmethod
    def check(cls, run: Any, processes: int) -> None:
        """Raises LewelError for settings that do not go with the objective; called before any data are read."""

    @classmethod
    def check_images(cls, run: Any, images: int) -> None:
        """Raises LewelError for a bad number of training images; called once the data are there."""


OBJECTIVES: dict[str, type[Rules]] = {}


def find(loss: str) -> type[Rules]:
    """The objective that method.loss names. Raises LewelError where there is none."""
    if loss not in OBJECTIVES:
        raise LewelError(
            f"method.loss must be one of {', '.join(OBJECTIVES)}, got {loss!r}; "
            "an objective of your own enters lewel.OBJECTIVES before its runs are made or read"
        )
    return OBJECTIVES[loss]
