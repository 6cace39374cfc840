"""Pre-training with LEWEL (Learning Where to Learn, CVPR 2022) and its baselines.

On the command line: python -m lewel train --help. In Python, by the same verbs (docs/extending.md):

train, eval, maps, export      what the commands do, as functions; lewel.eval is no part of import *
Method                         networks and loss of a recipe as one module, for a loop of one's own
build_encoder                  the encoder that a recipe names
config                         the dataclasses of a recipe: config.Train, config.Optim ...
data                           data.Datasets, the sets of a run that make their views themselves
OBJECTIVES, Objective, Terms   the table of objectives, and what one of one's own is made of
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lewel import console, installed

with console.interrupted_quietly(Path(sys.argv[0]).name in ("-m", "lewel")):  # by python -m lewel, or as a script
    from lewel.methods.objectives import OBJECTIVES, Objective, Terms  # fills the table that recipes read
from lewel.errors import LewelError
from lewel.recipe import schema as config

if TYPE_CHECKING:
    from lewel import data
    from lewel.api import Run, export, maps, train
    from lewel.api import eval as eval
    from lewel.methods.encoders import build as build_encoder
    from lewel.methods.method import Method

__all__ = [  # without eval, which would take the place of the builtin
    "OBJECTIVES", "LewelError", "Method", "Objective", "Run", "Terms", "build_encoder", "config", "data", "export",
    "maps", "train",
]  # fmt: skip

# Imported when they are asked for: lewel --help and lewel presets need neither torchvision nor matplotlib.
_LATER = {
    "Method": "lewel.methods.method.Method",
    "build_encoder": "lewel.methods.encoders.build",
    **{name: f"lewel.api.{name}" for name in ("Run", "eval", "export", "maps")},
}


def __getattr__(name: str) -> Any:
    if name not in (*_LATER, "data"):
        raise AttributeError(f"module 'lewel' has no attribute {name!r}")
    with installed.needed(f"lewel.{name}"):
        if name == "data":
            return importlib.import_module("lewel.data")
        module, _, attribute = _LATER[name].rpartition(".")
        return getattr(importlib.import_module(module), attribute)


class _Lewel(ModuleType):
    """lewel.train is the function; the module of that name, lewel/train.py, has the loop."""

    @property
    def train(self) -> Any:
        with installed.needed("lewel.train"):
            return importlib.import_module("lewel.api").train

    @train.setter
    def train(self, module: ModuleType) -> None:
        """What the import of lewel/train.py does at its end, which would put the module in the function's place."""


sys.modules[__name__].__class__ = _Lewel
