"""What an objective is: called by Method with the networks and two views, it gives the terms of the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lewel.errors import LewelError
from lewel.methods.heads import MLP
from lewel.methods.momentum import follow
from lewel.recipe import schema


class Embedding(NamedTuple):
    """What a network returns for N images."""

    z: Tensor  # (N, K) global embedding
    aligned: Tensor  # (N, L, width) aligned embeddings; L = 0 without the aligned branch


class Terms(NamedTuple):
    """What an objective's forward returns for one pass."""

    parts: dict[str, Tensor]  # "global" and, with the aligned branch, "aligned": 0-dim, unweighted
    z: Tensor  # (N, K) online global embeddings of the first view, detached
    keys: Tensor | None = None  # rows that finish gets back, those of all passes of the step together


Embed = Callable[[Tensor], Embedding]  # a network: images (N, 3, H, W) in
Projectors = Mapping[str, Callable[[int, int, int], nn.Module]]  # by name; made from input, hidden and output width


class Objective(nn.Module, ABC):
    """The base class of objectives. A subclass owns its queue or predictors; its constructor gets the run's recipe.

    Its class attributes tell the trainer about it before it is made.
    """

    names: ClassVar[tuple[str, ...]]
    """name of the method without the aligned branch and, if there is one, with it"""
    has_target: ClassVar[bool] = True
    """whether there is a momentum network; without one none is allocated, and forward gets None for it"""
    unread: ClassVar[tuple[str, ...]] = ()
    """settings of schema.MethodSettings that it does not read: any value but the default is refused. Those that
    presets of other objectives set are not among them: a run that --method.loss has switched keeps them."""
    projectors: ClassVar[Projectors] = {"mlp": MLP}
    """its projectors by the names that heads.projector has for them, in runs of other objectives too; the first is what
    "auto" means without the branch. Each is called with (width, heads.hidden, heads.num_maps), and the module that
    it returns takes (N, width) and gives (N, heads.num_maps)"""

    def __init__(self, run: schema.Train) -> None:
        super().__init__()
        self.settings = run.method

    @abstractmethod
    def forward(
        self, online: Any, target: Any, first: Tensor, second: Tensor, momentum: float | None, draw: tuple[int, ...]
    ) -> Terms:
        """The terms of one pass over two views (N, 3, H, W) of the same images, called under the run's autocast.

        online and target (or None) are networks, images in and an Embedding out. momentum is m of this step in its
        first pass and None in others; only an objective whose target follows before the loss needs it. draw is the
        seed and the number of the pass, the same in all processes. Losses leave autocast themselves, as those of
        lewel.methods.losses do. online(first), or online of a batch that begins with the images of first, gives a
        linear probe its features; without either a run has none.
        """

    def finish(self, online: nn.Module, target: nn.Module | None, keys: Tensor | None, momentum: float) -> None:
        """Method calls it after the optimizer's step, with the keys of all its passes: here the target follows."""
        if target is not None:
            self.follow(online, target, momentum)

    def undecayed(self) -> Iterable[nn.Parameter]:
        """Those of its parameters whose learning rate stays at its peak once it has warmed up."""
        return ()

    def follow(self, online: nn.Module, target: nn.Module, momentum: float) -> None:
        """target = momentum * target + (1 - momentum) * online, with BN's statistics where the recipe says EMAN."""
        follow(target, online, momentum, statistics=self.settings.target == "eman")

    @classmethod
    def check(cls, run: schema.Train, processes: int) -> None:
        """Raises LewelError for settings that the objective does not read, or that do not go together."""
        if run.method.aligned and len(cls.names) < 2:
            raise LewelError(f"{cls.names[0]} has no aligned branch; add --method.w-aligned 0")
        defaults = {field.name: field.default for field in fields(run.method)}
        for name in cls.unread:
            value = getattr(run.method, name)
            if value != defaults[name]:
                raise LewelError(
                    f"method.{name} {value} says nothing where method.loss is {run.method.loss}; leave it out"
                )

    @classmethod
    def images_met(cls, run: schema.Train, processes: int) -> dict[str, str]:
        """What beside batch norm sees several images together, and how many, as text, in so many processes."""
        return {}

    @classmethod
    def least_steps(cls, run: schema.Train) -> int:
        """The fewest steps of an epoch that it can be trained with; with a queue, those that fill it."""
        return 1

    @classmethod
    def check_images(cls, run: schema.Train, images: int) -> None:
        """Raises LewelError for a number of training images that does not go with the settings."""


def total(directions: Iterable[Tensor]) -> Tensor:
    """The sum (0-dim), not the mean, of the losses of both directions between the views."""
    return torch.stack(list(directions)).sum()
