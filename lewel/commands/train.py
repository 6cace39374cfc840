"""lewel train: pre-trains an encoder."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated

import tyro

from lewel import distributed, meeting
from lewel.cost import plan
from lewel.errors import LewelError
from lewel.recipe import plain, presets, schema
from lewel.run import folders, initial
from lewel.start import start
from lewel.watching import boards


@dataclass(frozen=True)
class TrainCommand:
    """Pre-trains an encoder: a recipe, changed by any of the settings below."""

    run: Annotated[schema.Train, tyro.conf.arg(name="")]
    config: str = ""
    """a YAML recipe to start from instead of a preset"""
    resume: str = ""
    """a checkpoint to continue from, or "auto": the newest of this preset's newest run folder (or of --out)"""
    dry_run: bool = False
    """print what the run comes to, its steps, rates and memory, and neither train nor write anything"""
    processes: int = 0
    """dry run: processes to plan for; 0 means those that torchrun started, or one"""


def run(arguments: list[str]) -> None:
    """Trains from the start or from a checkpoint, and writes the run's report; or only says what it would do."""
    command = parse(arguments)
    if command.dry_run:
        _plan(command)
    else:
        _train(command)


def _plan(command: TrainCommand) -> None:
    if command.processes < 0:
        raise LewelError(f"processes must be positive, or 0 for those that torchrun started, got {command.processes}")
    if meeting.speaks():
        boards.check_installed(command.run)
        folder, found = folders.choose(command.run, command.resume)
        resume = folders.usable(found, command.resume)
        start = f"continue {resume} in" if resume else "be written to"
        print(plan.text(command.run, command.processes or distributed.announced()))
        if command.run.init and not resume:
            print(initial.plan(command.run))
        print(f"it would {start} {folder}")


def _train(command: TrainCommand) -> None:
    if command.processes:
        raise LewelError(
            f"--processes {command.processes} only plans a --dry-run; a run has the processes that torchrun starts: "
            f"torchrun --nproc-per-node {command.processes} -m lewel train ..."
        )
    if said := meeting.apart():
        print(f"lewel: {said}", file=sys.stderr)
    start(command.run, command.resume)
    distributed.leave()


def parse(arguments: list[str]) -> TrainCommand:
    """The recipe that the arguments of `lewel train` describe: preset or YAML file first, then every other setting."""
    preset, file = _option(arguments, "--preset"), _option(arguments, "--config")
    if preset and file:
        raise LewelError("--preset and --config both name a recipe to start from; give one of them")
    _check_once(arguments)
    _check_switches(arguments)
    start = presets.get(preset) if preset else presets.load(folders.expanded(file)) if file else schema.Train()
    if _values(arguments, "--data.root") and not _values(arguments, "--data.name") and start.data.name == "embedded":
        start = replace(start, data=replace(start.data, name="folder"))  # as lewel.train(data=...) does
    return tyro.cli(TrainCommand, default=TrainCommand(start), args=arguments, prog="lewel train")


def _option(arguments: list[str], name: str) -> str | None:
    given = _values(arguments, name)
    if len(given) > 1:
        raise LewelError(f"{name} is given {len(given)} times ({', '.join(given)}); a run starts from one recipe")
    if given == [""]:
        raise LewelError(f"{name} is empty; name a recipe to start from, or leave it out")
    return given[0] if given else None


def _values(arguments: list[str], name: str) -> list[str]:
    """What the first word behind each mention of a flag is."""
    given = [value for argument, value in pairwise(arguments) if argument == name]
    return given + [argument.partition("=")[2] for argument in arguments if argument.startswith(name + "=")]


def _check_once(arguments: list[str]) -> None:
    """Raises LewelError for a flag that is given twice, no- before it or not, of which the last would count."""
    flags = Counter(_switch(argument.partition("=")[0]) for argument in arguments if argument[:2] == "--")
    flag, count = max(flags.items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        several = f"; several places go behind one flag: {flag} A B" if flag == "--data.root" else ""
        raise LewelError(f"{flag} is given {count} times, of which one would count{several or '; give it once'}")


def _check_switches(arguments: list[str]) -> None:
    """Raises LewelError for a value behind a flag that has none, as in --compile true."""
    settings = plain.flat(plain.to_plain(schema.Train()))
    names = ["dry_run", *(name for name, value in settings if isinstance(value, bool))]
    given = [argument.partition("=")[::2] for argument in arguments if "=" in argument]
    given += [(flag, value) for flag, value in pairwise(arguments) if value.lower() in ("true", "false")]
    for flag, value in given:
        name = _switch(flag)
        if name[:2] == "--" and name[2:].replace("-", "_") in names:
            section, dot, last = name[2:].rpartition(".")
            raise LewelError(f"{flag} takes no value, got {value}; {name} switches on, --{section}{dot}no-{last} off")


def _switch(flag: str) -> str:
    """A flag as the help writes it, without the no- that switches off."""
    return re.sub(r"^(--(?:.*\.)?)no-", r"\1", flag.replace("_", "-"))
