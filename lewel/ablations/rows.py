"""The rows of a table as runs: their folders, recipes and commands, and how far each has come."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lewel.ablations import tables
from lewel.ablations.tables import Row, Table
from lewel.errors import LewelError
from lewel.evaluation.protocols import PROTOCOLS
from lewel.recipe import checks, plain, presets
from lewel.recipe.schema import Train
from lewel.results import found_runs, linear_results
from lewel.results.found_runs import Found
from lewel.run import folders

OWN = {  # settings that have a flag of the command
    "preset": "--data", "data.name": "--data", "data.root": "--root", "data.classes": "--classes", "seed": "--seeds",
    "epochs": "--epochs", "out": "--out",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What is to be ablated, and how."""

    tables: tuple[str, ...]
    """names of tables.TITLES"""
    data: str = "embedded"
    """one of tables.BASES"""
    roots: tuple[str, ...] = ()
    classes: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int | None = None
    """None: those of the presets"""
    protocol: str = "cached"
    """of lewel eval linear"""
    out: str = ""
    """where the rows' folders lie; empty means runs/ablate/DATA"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """further settings of every row, by dotted names"""

    @property
    def folder(self) -> Path:
        return folders.expanded(self.out) if self.out else Path("runs", "ablate", self.data)


@dataclass(frozen=True)
class RowRun:
    """A row with a seed: a run."""

    row: Row
    seed: int
    folder: Path
    run: Train
    """its recipe, out included"""
    flags: tuple[str, ...]
    """what makes that recipe of its preset on the command line"""
    protocol: str
    roots: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        """Where what its commands print is kept; the run folder need not be there yet."""
        return self.folder.with_name(f"{self.name}.log")

    @property
    def train(self) -> list[str]:
        """The command that trains it, or goes on with it."""
        return [sys.executable, "-m", "lewel", "train", *self.flags, "--out", str(self.folder), "--resume", "auto"]

    @property
    def evaluate(self) -> list[str]:
        """The command that evaluates it, or goes on with that."""
        places = [word for root in self.roots for word in ("--data-root", root)]
        linear = ["eval", "linear", str(self.folder), "--protocol", self.protocol]
        again = ["--resume", "auto"] if PROTOCOLS[self.protocol].augmented else []  # cached ones have no state
        return [sys.executable, "-m", "lewel", *linear, *places, *again]

    def found(self) -> Found | None:
        """What there is of it; None where nothing is."""
        return found_runs.look(self.folder) if (self.folder / "config.yaml").exists() else None

    def trained(self) -> bool:
        """Whether it has been trained to its last epoch, and has its report."""
        found = self.found()
        return found is not None and found.state == "finished" and (self.folder / "report.txt").exists()

    def linear(self) -> Mapping[str, Any] | None:
        """The result of its own command, of the checkpoint that training ended with; None where there is none.

        One of other settings, weights or images, made by hand, is none.
        """
        last = found_runs.checkpoints(self.folder)[-1:]
        return linear_results.of_row(self.folder, self.run, self.protocol, last[0].stem) if last else None

    def done(self) -> bool:
        """Whether it is trained and evaluated."""
        return self.trained() and self.linear() is not None


def of_tables(asked: Asked) -> dict[str, Table]:
    """The tables that are asked for, by name. Raises LewelError for data that there are no rows of."""
    if asked.data not in tables.BASES:
        raise LewelError(f"--data must be one of {', '.join(tables.BASES)}, got {asked.data!r}")
    bases = tables.BASES[asked.data]
    own = [presets.get(bases[method]).heads.num_maps for method in ("lewel_m", "lewel_b")]
    sizes = [asked.settings.get(tables.MAPS, size) for size in own]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise LewelError(f"--set {tables.MAPS} must be a whole number of 1 or more, got {sizes[0]!r}")
    return {name: tables.made(name, *sizes) for name in asked.tables}


def of(asked: Asked) -> list[RowRun]:
    """The runs of all rows that are asked for, each once, seed after seed.

    Raises LewelError where settings do not fit a row, so that its recipe cannot be trained.
    """
    if not asked.seeds or len(set(asked.seeds)) < len(asked.seeds):
        given = " ".join(map(str, asked.seeds)) or "none"
        raise LewelError(f"--seeds must be one whole number or several different ones, got {given}")
    unique = {row.name: row for table in of_tables(asked).values() for row in table.rows}
    compared = tables.compared(asked.data)
    for name in asked.settings:
        if name in compared:
            raise LewelError(f"--set {name} would change what rows are compared by: {compared[name]}; leave it out")
    return [_run(asked, row, seed) for seed, row in itertools.product(asked.seeds, unique.values())]


def _run(asked: Asked, row: Row, seed: int) -> RowRun:
    preset = tables.BASES[asked.data][row.method]
    start = presets.get(preset)
    common: dict[str, Any] = {"epochs": asked.epochs} if asked.epochs is not None else {}
    common["knn_every"] = common.get("epochs", start.epochs)
    settings = {**row.settings, **common, **{k: v for k, v in asked.settings.items() if k not in row.settings}}
    settings |= {"data.root": list(asked.roots)} if len(asked.roots) > 1 else {"data.root": "".join(asked.roots)}
    settings |= {"data.classes": asked.classes, "seed": seed}
    settings = {name: value for name, value in settings.items() if name not in PLACES or value}
    _check_places(asked, start)
    run = plain.changed(start, {"data.name": start.data.name, **settings}, source="lewel ablate")
    checks.check(run)
    folder = asked.folder / f"{row.name}-seed{seed}"
    flags = ("--preset", preset, *itertools.chain.from_iterable(_flag(k, v) for k, v in settings.items()))
    return RowRun(row, seed, folder, replace(run, out=str(folder)), flags, asked.protocol, asked.roots)


PLACES = ("data.root", "data.classes")


def _check_places(asked: Asked, start: Train) -> None:
    if start.data.name == "folder" and not asked.roots:
        raise LewelError(f"{asked.data} is a folder of images; name it by --root DIR")
    if start.data.name == "embedded" and (asked.roots or asked.classes):
        raise LewelError(
            "--root and --classes name image files, and the embedded images are in none; leave them out or choose "
            "other --data"
        )


def _flag(name: str, value: Any) -> list[str]:
    """A setting as words of lewel train's command line."""
    section, dot, last = name.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return [f"--{section}{dot}{'' if value else 'no-'}{last}"]
    words = value if isinstance(value, (list, tuple)) else [value]
    return [f"--{section}{dot}{last}", *map(str, words)]


def settings_of(given: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE of --set as settings by name; a value is read as YAML. Raises LewelError for what is none."""
    settings: dict[str, Any] = {}
    known = dict(plain.flat(plain.to_plain(Train())))
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name:
            raise LewelError(f"--set takes NAME=VALUE, as in --set optim.momentum=0.95, got {text}")
        if name in OWN:
            raise LewelError(f"--set {name} has a flag of its own: {OWN[name]}")
        if name in settings:
            raise LewelError(f"--set {name} is given twice; give it once")
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            raise LewelError(f"--set {name}: {value} is no value; write a number, a word, or a list [1, 2]") from None
        settings[name] = value if isinstance(known.get(name), str) else read
    return settings
