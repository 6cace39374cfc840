"""lewel runs [FOLDER]: the runs there are."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import tyro

from lewel.errors import LewelError
from lewel.results import found_runs, runs_table
from lewel.run import folders

UNLIMITED = 10_000  # columns of what is no terminal


@dataclass(frozen=True)
class RunsCommand:
    """Lists the runs in a folder: recipe, epochs, last accuracies, and whether each is running, stopped or finished."""

    folder: tyro.conf.Positional[Path] = Path("runs")
    """the folder to look through, at any depth"""
    sort: runs_table.Sort = "date"
    """what the lines are ordered by, the newest or the best last"""
    json: bool = False
    """print a list of records for other programs"""


def run(arguments: list[str]) -> None:
    """Prints a line for each run. Raises LewelError where there is none."""
    command = tyro.cli(RunsCommand, args=arguments, prog="lewel runs")
    folder = folders.expanded(command.folder)
    runs = runs_table.ordered(list(found_runs.through(folder)), command.sort)
    if not runs:
        raise LewelError(f"there is no run in {folder}: no folder at any depth has a config.yaml and a log.jsonl")
    if command.json:
        print(json.dumps(runs_table.records(runs), indent=1, allow_nan=False))
    else:
        print(runs_table.text(runs, shutil.get_terminal_size((UNLIMITED, 24)).columns))
