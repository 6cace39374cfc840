"""The runs below a folder, each with its recipe, how far it has come and what it is worth: `lewel runs`.

A run is known by its files alone: no checkpoint is loaded, and of a log only the end is read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lewel.errors import LewelError
from lewel.evaluation import knn
from lewel.recipe import plain, presets
from lewel.recipe.schema import Train
from lewel.results import linear_results
from lewel.run import checkpoint, folders, lock

State = Literal["running", "stopped", "finished", "broken"]
APART = ("out", "data.root", "preset", "seed")  # are columns of their own, or say nothing of the recipe
BLOCK = 2**16  # bytes of a log that are read first, from its end


@dataclass(frozen=True)
class Found:
    """A run folder, by what its files say."""

    name: str
    """its path from the folder that was looked through"""
    folder: Path
    state: State
    changed: float
    """seconds since 1970: when the log, the recipe or a result was last written"""
    run: Train | None = None
    """the recipe; None of a broken run"""
    epoch: int | None = None
    """finished epochs; None where neither log nor recipe tell how many steps an epoch has"""
    step: int = 0
    """the last step that was logged"""
    knn: Mapping[int, float] = field(default_factory=dict)
    """the last kNN accuracies in percent, by their numbers of neighbours"""
    probe: float | None = None
    """the last accuracy of the probe that was trained beside the method, percent"""
    linear: dict[str, Any] | None = None
    """the result of lewel eval linear that the run is told by, as its file has it: see linear_results"""
    wrong: str = ""
    """a clause about what is wrong with a broken run"""

    @property
    def knn_k(self) -> int | None:
        """The number of neighbours whose accuracy is shown: the usual one, or the largest there is."""
        return knn.USUAL if knn.USUAL in self.knn else max(self.knn, default=None)

    @property
    def knn_accuracy(self) -> float | None:
        """The accuracy with knn_k neighbours, percent."""
        return None if self.knn_k is None else self.knn[self.knn_k]

    @property
    def linear_accuracy(self) -> float | None:
        """The accuracy of its linear classifier, percent."""
        return None if self.linear is None else self.linear["accuracy"]

    def changes(self) -> dict[str, tuple[Any, Any]]:
        """What the recipe has otherwise than its preset: (the preset's, the run's) by the name of the setting."""
        return changes(self.run) if self.run is not None else {}


def changes(run: Train) -> dict[str, tuple[Any, Any]]:
    """What a recipe has otherwise than its preset, or the default one where that is unknown, without APART."""
    preset = presets.get(run.preset) if run.preset in presets.PRESETS else Train()
    before, after = (dict(plain.flat(plain.to_plain(recipe))) for recipe in (preset, run))
    resolved = {"precision"} if preset.precision == "auto" else set()  # what a run has found out on its machine
    return {k: (before[k], after[k]) for k in before if before[k] != after[k] and k not in {*APART, *resolved}}


def find(folder: Path) -> list[Path]:
    """The run folders in a folder, itself included, by name; none is looked for within a run.

    Links are followed, and each folder is looked through once. Raises LewelError where there is no folder.
    """
    if not folder.is_dir():
        why = "it is a file" if folder.exists() else "it is not there"
        raise LewelError(f"{folder} is no folder with runs: {why}; name the one that --out of lewel train lay in")
    runs, seen = [], set()
    for path, inside, files in os.walk(folder, followlinks=True):
        try:
            place = os.stat(path)
        except OSError:  # it has just been removed
            inside.clear()
            continue
        known = (place.st_dev, place.st_ino) in seen
        seen.add((place.st_dev, place.st_ino))
        if known:
            inside.clear()
        elif len({"config.yaml", "log.jsonl", "checkpoints"} & {*files, *inside}) > 1:
            runs.append(Path(path))
            inside.clear()
        inside.sort()
    return sorted(runs)


def look(folder: Path, name: str = "") -> Found:
    """What is found in a run folder; what is wrong with a broken one is in the answer, and no error."""
    name = name or folder.name
    changed = _changed(folder)
    try:
        for file in ("config.yaml", "log.jsonl"):
            folders.check_run(folder, file)
        run = presets.load(folder / "config.yaml")
        ends = _last_records(folder / "log.jsonl", wants_knn=bool(run.knn_every))
        linear = linear_results.told(linear_results.own(folder, run))
    except LewelError as error:
        return Found(name, folder, "broken", changed, wrong=str(error))
    except OSError as error:
        return Found(name, folder, "broken", changed, wrong=f"{error.filename}: {error.strerror}")
    step = max([record["step"] for record in ends.values()], default=0)
    epoch = _epoch(run, step, ends.get("epoch"))
    done = "epoch" in ends and ends["epoch"].get("epoch") == run.epochs
    return Found(
        name, folder, "running" if lock.lives(folder) else "finished" if done else "stopped", changed, run, epoch, step,
        knn.accuracies(ends.get("knn", {})), ends.get("epoch", {}).get("probe"), linear,
    )  # fmt: skip


def through(folder: Path) -> Iterator[Found]:
    """Every run in a folder."""
    for run in find(folder):
        path = run.relative_to(folder)
        yield look(run, str(path) if path.parts else run.resolve().name)


def _last_records(path: Path, wants_knn: bool) -> dict[str, dict[str, Any]]:
    """The last record of a log of any kind as "last", the last "epoch", and the last of these with "knn"."""
    found: dict[str, dict[str, Any]] = {}
    for line in _backwards(path):
        if "last" in found and b'"epoch"' not in line:
            continue
        record = _record(line)
        if record is None:
            continue
        found.setdefault("last", record)
        if record["kind"] == "epoch":
            found.setdefault("epoch", record)
            if knn.accuracies(record):
                found["knn"] = record
                break
            if not wants_knn:
                break
    return found


def _record(line: bytes) -> dict[str, Any] | None:
    """A line of a log: its kind, its step, and of its other values the finite numbers; None where it is no record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # cut off, or no JSON
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    record = {key: value for key, value in record.items() if key == "kind" or linear_results.is_number(value)}
    return record if type(record.get("step")) is int and record["step"] >= 0 else None


def _backwards(path: Path) -> Iterator[bytes]:
    """The lines of a file, the last one first, read from its end."""
    with open(path, "rb") as file:
        place, rest, block = file.seek(0, os.SEEK_END), b"", BLOCK
        while place > 0:
            size, block = min(block, place), 2 * block  # so that a line of the whole file takes no square of its time
            place -= size
            file.seek(place)
            first, *lines = (file.read(size) + rest).split(b"\n")
            yield from (line for line in reversed(lines) if line.strip())
            rest = first
        if rest.strip():
            yield rest


def _epoch(run: Train, step: int, last: Mapping[str, Any] | None) -> int | None:
    """The finished epochs after a step; last is the newest record of an epoch, which tells how many steps one has."""
    if last and last.get("epoch", 0) > 0:
        steps = last["step"] / last["epoch"]
    else:
        images = run.data.embedded_train if run.data.name == "embedded" else presets.published_images(run) or 0
        steps = images // max(run.data.batch_size, 1)
    return math.floor(step / steps) if steps else 0 if not step else None


def _changed(folder: Path) -> float:
    files = [folder, folder / "config.yaml", folder / "log.jsonl", *checkpoints(folder)[-1:]]
    files += (folder / "eval").glob("*.json")
    times = []
    for file in files:
        try:
            times.append(file.stat().st_mtime)
        except OSError:
            continue
    # The folder itself changes with every look at a lock of another host; it counts where there is nothing else.
    return max(times[1:] or times or [0.0])


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; none where they cannot be listed."""
    try:
        return checkpoint.found(folder / "checkpoints")
    except LewelError:
        return []
