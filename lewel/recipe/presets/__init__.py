"""Recipes by name, a file a data set. Each says what is known of it and where from."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lewel.errors import LewelError
from lewel.recipe import plain, reading
from lewel.recipe.presets import cifar10, embedded, imagenet, imagenet100, imagenette, stl10
from lewel.recipe.presets.cifar10 import CIFAR10_MOCO
from lewel.recipe.presets.preset import BYOL, LEWEL_B, LEWEL_M, MOCO_V2, SIMSIAM, Preset
from lewel.recipe.schema import Train

__all__ = [
    "BYOL", "CIFAR10_MOCO", "LEWEL_B", "LEWEL_M", "MOCO_V2", "PRESETS",
    "SIMSIAM", "Preset", "describe", "get", "load", "made", "published_images", "table",
]  # fmt: skip

OF_RUNS = {"epochs", "seed", "out"}  # settings that every run's config.yaml has, and hardly a file written by hand
SETS = (embedded, cifar10, stl10, imagenette, imagenet100, imagenet)  # from the smallest to the largest
PRESETS = {
    name: replace(preset, run=replace(preset.run, preset=name))
    for part in SETS
    for name, preset in part.PRESETS.items()
}


def get(name: str) -> Train:
    """The recipe of a preset. Raises LewelError, with the nearest name, for an unknown one."""
    return _preset(name).run


def load(path: str | os.PathLike[str]) -> Train:
    """The recipe in a YAML file, as made says. Raises LewelError where there is none."""
    name = os.fspath(path)
    if name in PRESETS and not Path(path).exists():
        raise LewelError(f"there is no file {name}, but a preset of that name: --preset {name}")
    try:
        return made(reading.read(path), source=name)
    except RecursionError:
        raise LewelError(f"cannot read the recipe {name}: it has a part that holds itself") from None


def made(values: Any, *, source: str) -> Train:
    """The recipe that a table of settings makes.

    It begins with the preset that it names, or the default recipe. One with all sections and OF_RUNS, such as
    config.yaml of a run, is whole, and preset only tells what it began with once.
    """
    whole = {name for name, value in plain.to_plain(Train()).items() if isinstance(value, dict)} | OF_RUNS
    start = Train()
    if isinstance(values, Mapping) and not whole <= values.keys():
        name = values.get("preset", start.preset)
        if isinstance(name, str) and name != start.preset:
            try:
                start = get(name)
            except LewelError as error:
                raise LewelError(f"{source}: {error}; without preset it begins with the default recipe") from None
    return plain.changed(start, values, source=source)


def published_images(run: Train) -> int | None:
    """How many training images the data set of run's preset has; None where run reads other data."""
    preset = PRESETS.get(run.preset)
    if preset is None:
        return None
    # The preset's own classes are not in the repository: the list of ImageNet-100 is the user's file.
    named = run.data.classes and not run.preset.startswith("imagenet100/")
    same = (run.data.name, run.data.train_list) == (preset.run.data.name, preset.run.data.train_list)
    return preset.images if same and not named else None


def describe(name: str) -> str:
    """A preset as text: comments with what is known of it, then its recipe as YAML for `lewel train --config`."""
    preset = _preset(name)
    known = {"reaches": preset.expected, "from": preset.source, "an epoch takes": preset.cost}
    return "".join(f"# {key} {value}\n" for key, value in known.items() if value) + plain.to_yaml(preset.run)


def table() -> str:
    """All presets, one a line of at most 160 characters."""
    header = (
        "preset", "training images", "method", "encoder", "epochs", "batch", "optimizer", "expected", "an epoch takes",
        "source",
    )  # fmt: skip
    rows = [header, *(_row(name, preset) for name, preset in PRESETS.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(name: str, preset: Preset) -> tuple[str, ...]:
    run = preset.run
    return (
        name,
        f"{preset.images:,} at {run.data.image_size}",
        run.method.name,
        f"{run.encoder.name} {run.encoder.stem}",
        str(run.epochs),
        str(run.data.batch_size),
        f"{run.optim.name} {run.optim.lr * run.data.batch_size / 256:.4g}",
        preset.expected,
        preset.cost,
        preset.source,
    )


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        if name.endswith((".yaml", ".yml")):
            raise LewelError(f"there is no preset {name!r}; a recipe in a file is named by --config {name}")
        near = difflib.get_close_matches(name, PRESETS, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise LewelError(f"there is no preset {name!r}; {meant}`lewel presets` lists all")
    return PRESETS[name]
