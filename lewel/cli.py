"""The command line: train, presets, eval, maps."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro

from lewel import checkpoint, config, presets, recipe, report
from lewel.errors import LewelError
from lewel.train import knn_accuracy, prepare, train

USAGE = """usage: lewel COMMAND ...

  train --preset NAME [--data.root DIR] [--resume auto]   pre-train; --help lists every setting of a preset
  presets                                                 the recipes by name, and what is known of them
  eval knn RUN                                            kNN accuracy of a run's newest checkpoint
  maps RUN IMAGES...                                      alignment maps over your own images"""


@dataclass(frozen=True)
class TrainCommand:
    """Pre-trains an encoder: a recipe, changed by any of the settings below."""

    run: Annotated[config.Train, tyro.conf.arg(name="")]
    config: str = ""
    """a YAML recipe to start from instead of a preset"""
    resume: str = ""
    """a checkpoint to continue from, or "auto": the newest of this preset's newest run folder (or of --out)"""


@dataclass(frozen=True)
class MapsCommand:
    """Draws the alignment maps of a run over images."""

    run: tyro.conf.Positional[Path]
    """run folder"""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """image files"""
    out: Path = Path("maps.png")
    """the picture to write"""


@dataclass(frozen=True)
class KnnCommand:
    """Prints kNN-200 accuracy of a run's newest checkpoint."""

    run: tyro.conf.Positional[Path]
    """run folder"""


def main() -> None:
    """Entry point; errors that the caller can put right are printed as one sentence, with exit status 2."""
    try:
        _dispatch(sys.argv[1:])
    except LewelError as error:
        sys.exit(_fail(error))


def _fail(error: LewelError) -> int:
    print(f"lewel: {error}", file=sys.stderr)
    return 2


def _dispatch(arguments: list[str]) -> None:
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": _train,
        "presets": lambda rest: print(tyro.cli(presets.table, args=rest, prog="lewel presets")),
        "eval": _evaluate,
        "maps": _maps,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
    elif arguments[0] not in commands:
        raise LewelError(f"there is no command {arguments[0]!r}; commands are {', '.join(commands)}")
    else:
        commands[arguments[0]](arguments[1:])


def _train(arguments: list[str]) -> None:
    command = parse_train(arguments)
    config.check(command.run)
    folder, resume = _folder(command.run, command.resume)
    _check_writable(folder)
    if command.resume == "auto" and resume is None:
        print(f"nothing to continue: there is no checkpoint in {folder}, so this run starts from the beginning")
    run = replace(command.run, out=str(folder))
    session = prepare(run, folder)
    print(report.recipe_of(session), flush=True)
    train(session, resume)
    report.write(session)


def parse_train(arguments: list[str]) -> TrainCommand:
    """The recipe that the arguments of `lewel train` describe: preset or YAML file first, then every other setting."""
    preset, file = _option(arguments, "--preset"), _option(arguments, "--config")
    if preset and file:
        raise LewelError("--preset and --config both name a recipe to start from; give one of them")
    start = presets.get(preset) if preset else recipe.load(file) if file else config.Train()
    return tyro.cli(TrainCommand, default=TrainCommand(start), args=arguments, prog="lewel train")


def _option(arguments: list[str], name: str) -> str | None:
    given = [value for argument, value in pairwise(arguments) if argument == name]
    given += [argument.partition("=")[2] for argument in arguments if argument.startswith(name + "=")]
    if len(given) > 1:
        raise LewelError(f"{name} is given {len(given)} times ({', '.join(given)}); a run starts from one recipe")
    if given == [""]:
        raise LewelError(f"{name} is empty; name a recipe to start from, or leave it out")
    return given[0] if given else None


def _folder(run: config.Train, resume: str) -> tuple[Path, Path | None]:
    """The run folder and the checkpoint to continue from; a folder that holds a run is never written over."""
    if resume and resume != "auto":
        return _continued(run.out, Path(resume).resolve())
    base = Path(run.out or Path("runs", run.preset.replace("/", "-")))
    taken = [base] if _holds_run(base) else []
    if not run.out:
        taken += sorted(
            (folder for folder in base.parent.glob(f"{base.name}-*") if folder.name[len(base.name) + 1 :].isdigit()),
            key=lambda folder: int(folder.name[len(base.name) + 1 :]),
        )
    if resume and taken:
        checkpoints = checkpoint.found(taken[-1] / "checkpoints")
        return taken[-1], checkpoints[-1] if checkpoints else None
    if not taken:
        return base, None
    if run.out:
        raise LewelError(f"{base} holds a run already; continue it with --resume auto or choose another --out")
    number = int(taken[-1].name[len(base.name) + 1 :] or 1) + 1
    return base.with_name(f"{base.name}-{number}"), None


def _continued(out: str, path: Path) -> tuple[Path, Path]:
    if not path.is_file():
        raise LewelError(f"there is no checkpoint {path} to resume from")
    if not out and path.parent.name != "checkpoints":
        raise LewelError(f"{path} lies in no run folder's checkpoints/, so --out must say where the run goes on")
    folder = Path(out).resolve() if out else path.parent.parent
    if folder != path.parent.parent and _holds_run(folder):
        raise LewelError(f"{folder} holds another run already; choose another --out to continue {path} in")
    return folder, path


def _check_writable(folder: Path) -> None:
    try:
        parent = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise LewelError(f"cannot write to the run folder {folder}: {error.strerror}; choose another --out") from None


def _holds_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists()


def _evaluate(arguments: list[str]) -> None:
    kinds = {"knn": KnnCommand}
    if not arguments or arguments[0] not in kinds:
        given = " ".join(arguments) or "nothing"
        raise LewelError(f"lewel eval needs one of {', '.join(kinds)} and a run folder, got {given}")
    command = tyro.cli(kinds[arguments[0]], args=arguments[1:], prog=f"lewel eval {arguments[0]}")
    session = report.load(command.run)
    print(f"{command.run}: kNN {knn_accuracy(session):.2f} % after epoch {session.epochs_done}")


def _maps(arguments: list[str]) -> None:
    command = tyro.cli(MapsCommand, args=arguments, prog="lewel maps")
    report.draw_maps(command.run, list(command.images), command.out)
    print(f"wrote {command.out}")
