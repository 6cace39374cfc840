"""What is looked at before any row starts: whether folders hold these rows or none, and whether images are there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from lewel.ablations.rows import RowRun
from lewel.data import places
from lewel.errors import LewelError
from lewel.recipe import plain
from lewel.recipe.free import FREE_TO_CHANGE
from lewel.recipe.schema import Data
from lewel.results import linear_results
from lewel.run import folders, lock

# What a run may have otherwise than it would be made now, and still be that row: not its start, nor its passes, nor
# what kNN is measured by, which is in the tables. Places are compared by themselves.
SETTLED = ("epochs", "init", "accumulate", "knn_k", "knn_temperature", "knn_bank")
FREE = (*(name for name in FREE_TO_CHANGE if name not in SETTLED), "probe", "linear_at_end")
SHOWN = ("data.root", "data.eval")  # where the images are


def check_recipes(runs: Iterable[RowRun]) -> None:
    """Raises LewelError where a row's folder holds a run of another recipe, or on images in another place."""
    for run in runs:
        found = run.found()
        if found is None or found.run is None:
            continue
        resolved = ("precision",) * (run.run.precision == "auto")  # config.yaml has what it was on that machine
        if changed := plain.differences(found.run, run.run, ignore=(*FREE, *resolved)):
            raise LewelError(
                f"{run.folder} holds a run of another recipe ({'; '.join(changed)}); undo the change, or have all rows "
                "in another folder by --out"
            )
        for name, before, now in zip(SHOWN, _places(found.run.data), _places(run.run.data), strict=True):
            if not linear_results.same_places(before, now):
                raise LewelError(
                    f"{run.folder} holds a run on images in another place ({name}: {_said(before)} -> {_said(now)}); "
                    "name that place, link it to where they are now, or have all rows in another folder by --out"
                )


def _places(data: Data) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of SHOWN."""
    return data.roots, (data.eval,)


def _said(named: Sequence[str]) -> str:
    return " ".join(filter(None, named)) or "nowhere"


def check_free(runs: Iterable[RowRun]) -> None:
    """Raises LewelError where a row's folder is broken, or another process is writing to it."""
    for run in runs:
        if lock.lives(run.folder):
            raise lock.taken(run.folder)
        found = run.found()
        if found is not None and found.state == "broken":
            raise LewelError(f"{found.wrong}; repair {run.folder}, or move it away to have its row trained anew")


def check_places(runs: Sequence[RowRun]) -> None:
    """Raises LewelError where the images of rows that are to be run are not there, or the rows have no place to go to.

    Whether the images are those of a set shows when the first row reads them.
    """
    for run in runs[:1]:  # all have the same
        _check_out(run.folder.parent)
        data = run.run.data
        if data.name == "embedded":
            continue
        if data.name == "folder":
            for root in data.roots:
                places.named(root, "the folder of the images", "data.root")
        elif not (data.roots and data.download):
            places.existing("".join(data.roots[:1]), f"the folder that holds {data.name}", "data.root")
        if data.eval:
            places.existing(data.eval, "the folder of the labelled images", "data.eval")
        for name in ("classes", "train_list"):
            if (path := getattr(data, name)) and not folders.expanded(path).is_file():
                raise LewelError(f"data.{name.replace('_', '-')} {path} is no file; it must list images, a line each")


def _check_out(folder: Path) -> None:
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        why = "is a link that leads nowhere" if there.is_symlink() else "is a file"
        raise LewelError(f"the rows would lie in {folder}, but {there} {why}; choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise LewelError(f"the rows would lie in {folder}, and nothing may be written in {there}; choose another --out")
