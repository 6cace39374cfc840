"""lewel ablate TABLE: a table of the paper's ablations as runs."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass

import tyro

from lewel.ablations import rows, tables
from lewel.ablations import run as ablations
from lewel.errors import LewelError
from lewel.evaluation import protocols


@dataclass(frozen=True)
class AblateCommand:
    """Trains and evaluates the rows of a table of the paper, and prints it with the paper's numbers beside ours.

    Rows that are done are left as they are, and interrupted ones go on: the same command continues. Without a table,
    all are listed.
    """

    table: tyro.conf.Positional[str] = ""
    """table5, table6, table7, fig3a, fig3b; fig3: both pictures; all: everything"""
    data: str = "embedded"
    """a data set that has presets of moco_v2, lewel_m, byol and lewel_b: embedded, cifar10, imagenet100 and so on"""
    root: tuple[str, ...] = ()
    """where the images are, data.root of every row: one place or several"""
    classes: str = ""
    """a file with one class folder a line, the only ones used (ImageNet-100)"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """each row is trained with every one of them"""
    epochs: int | None = None
    """of every row; None means those of the presets"""
    protocol: protocols.Name = "cached"
    """of the linear classifier, see lewel eval linear --help"""
    jobs: int = 1
    """rows at a time on this machine, which share its cores and, where there are several, its GPUs"""
    out: str = ""
    """where the rows' folders and the tables lie; empty means runs/ablate/DATA. Tables share their rows there"""
    set: tuple[str, ...] = ()
    """further settings of every row, none that rows differ in, each NAME=VALUE: --set optim.momentum=0.95
    precision=bf16"""
    commands: bool = False
    """print a line of the shell for each row that is not done, for a Slurm array or xargs, and run nothing"""
    report: bool = False
    """make table and picture of the rows that are there, and run nothing"""


def run(arguments: list[str]) -> None:
    """Runs the rows, or prints their commands, or only reports; status 1 where a row failed."""
    command = tyro.cli(AblateCommand, args=arguments, prog="lewel ablate")
    tell = functools.partial(print, flush=True)
    if not command.table:
        tell("\n".join(f"{name:7} {title}" for name, title in tables.TITLES.items()))
        tell("\n".join(f"{name:7} {', '.join(parts)}" for name, parts in tables.GROUPS.items()))
        tell(f"each on one of --data {', '.join(tables.BASES)}")
        return
    if command.commands and command.report:
        raise LewelError("--commands prints what is to be run and --report what has come out; give one of them")
    asked = rows.Asked(
        tables.chosen(command.table), command.data, command.root, command.classes, command.seeds, command.epochs,
        command.protocol, command.out, rows.settings_of(command.set),
    )  # fmt: skip
    if command.commands:
        for line in ablations.commands(asked):
            tell(line)
    elif command.report:
        ablations.report(asked, tell)
    elif ablations.ablate(asked, command.jobs, tell):
        sys.exit(1)
