"""Which results of lewel eval linear are a run's own, and which are of a protocol as it stands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lewel.errors import LewelError
from lewel.evaluation import linear_plan, outcome
from lewel.recipe import plain
from lewel.recipe.free import FREE_TO_CHANGE
from lewel.recipe.schema import Data, Train
from lewel.run import folders

Result = dict[str, Any]
"""of an evaluation, as its file has it"""
USUAL_PROTOCOL = "cached"
RESOLVED = ("precision", "data.workers", "data.download", "data.storage")  # as they were on the machine of a result


def own(folder: Path, run: Train) -> list[Result]:
    """The results of linear classifiers on a run's own checkpoints and images, the newest last.

    Not those of other weights, which have no step of a run; of checkpoints of another recipe, as by --out; or of images
    that --data-eval named.
    """
    mine = dict(plain.flat(plain.to_plain(run)))
    return [result for result in outcome.newest(folder, "linear-") if _is_own(result, mine)]


def _is_own(result: Result, mine: Mapping[str, Any]) -> bool:
    if type(result.get("step")) is not int or not outcome.is_own(result) or not is_number(result["accuracy"]):
        return False
    if not isinstance(result.get("recipe"), Mapping):
        return False
    recipe = dict(plain.flat(result["recipe"]))
    # init is free too, for a run that goes on has its weights already. Settings of later versions are not in it.
    compared = (set(mine) - {*FREE_TO_CHANGE, *RESOLVED} | {"data.eval"}) & set(recipe)
    return "data.name" in recipe and all(recipe[name] == mine[name] for name in compared)


def is_usual(result: Result) -> bool:
    """Whether its settings are those that its protocol has without flags, for as many images and processes."""
    try:
        protocol = result["kind"].removeprefix("linear-")
        made = linear_plan.made(
            linear_plan.Settings(protocol), int(result["images"]["train"]), int(result["processes"])
        )
        return bool(made.settings == result["settings"])
    except (LewelError, KeyError, TypeError, ValueError, ZeroDivisionError):  # a file that was written by hand
        return False


def told(results: Sequence[Result]) -> Result | None:
    """The one to tell a run by: the newest of those with usual settings or, where there is none, the newest."""
    return next(iter([*filter(is_usual, reversed(results)), *reversed(results)]), None)


def of_row(folder: Path, run: Train, protocol: str, checkpoint: str) -> Result | None:
    """The newest result of a run's checkpoint, by its name, that a protocol's own command has made; None of none."""
    kind = f"linear-{protocol}"
    fits = (
        result
        for result in reversed(own(folder, run))
        if (result["kind"], result["checkpoint"]) == (kind, checkpoint) and is_usual(result) and _same_root(result, run)
    )
    return next(fits, None)


def _same_root(result: Result, run: Train) -> bool:
    root = result["recipe"].get("data", {}).get("root", "")
    return same_places(root if isinstance(root, str) else tuple(root), run.data.root)


def same_places(first: str | Sequence[str], second: str | Sequence[str]) -> bool:
    """Whether data.root or data.eval name the same folders, however they are written, in the same order."""
    named, other = (Data(root=places).roots for places in (_tuple(first), _tuple(second)))
    return named == other or (len(named) == len(other) and all(map(_same, named, other)))


def _tuple(places: str | Sequence[str]) -> tuple[str, ...]:
    return (places,) if isinstance(places, str) else tuple(places)


def _same(first: str, second: str) -> bool:
    try:
        return folders.expanded(first).samefile(folders.expanded(second))
    except (OSError, LewelError):
        return first == second


def protocol_of(result: Result) -> str:
    """What a number is of beside the usual: "" for the cached protocol, else in words."""
    name = str(result["kind"]).removeprefix("linear-")
    if is_usual(result):
        return "" if name == USUAL_PROTOCOL else name
    return f"{name}, other settings"


def is_number(value: Any) -> bool:
    """Whether a value of a file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
