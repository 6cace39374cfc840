"""Which recipe, weights and folder an evaluation has: those of a run folder, or of a file of weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lewel import distributed
from lewel.errors import LewelError
from lewel.recipe import checks, presets
from lewel.recipe.schema import Train
from lewel.run import checkpoint, folders, initial, weight_files
from lewel.run.checkpoint import CheckpointError

WORDS = ("torchvision", "timm")
ENCODER = "online.encoder."  # what stands before the names of its weights in a checkpoint


@dataclass(frozen=True)
class Asked:
    """How a person names what is to be evaluated; empty fields leave it to the run."""

    run: Path | None = None
    """run folder, whose recipe and, without weights, newest checkpoint are taken"""
    weights: str = ""
    """a file of weights, or "torchvision" or "timm\""""
    preset: str = ""
    config: str = ""
    """a recipe of encoder and data, where weights come without a run"""
    data_root: tuple[str, ...] = ()
    data_eval: str = ""
    workers: int | None = None
    out: str = ""
    """folder of the results, in place of the run's"""
    data: Any = None
    """from Python: data.Datasets, or two data sets (train, test), see lewel.data.own.DataSet"""
    encoder: nn.Module | None = None
    """from Python, of a recipe whose encoder came from there; it gets the weights, and is frozen"""
    kind: str = "knn"
    """the evaluation that it is for, for sentences"""


@dataclass(frozen=True)
class Opened:
    """What is evaluated, without its tensors."""

    run: Train
    folder: Path
    name: str
    epoch: int | None = None
    step: int | None = None
    path: Path | None = None
    """checkpoint of ours; None for a file of weights, which run.init names then"""
    own: bool = False
    """whether it is a checkpoint of the run in folder, on the images of its recipe"""


Put = Callable[[nn.Module, Train, bool], tuple[str, bool]]
"""Puts the weights into an encoder of run, unless dry and they would have to be downloaded first; what is to be said of
them, and whether they are there."""


def open_(asked: Asked, world: distributed.World) -> tuple[Opened, Put]:
    """Finds recipe, weights and folder in the first process; every process calls it, and put too."""
    states: list[dict[str, Any]] = []  # of the first process alone, which sends the tensors once they have a place

    def look() -> Opened:
        opened, state = _opened(asked)
        states.append(state)
        run = _placed(opened.run, asked)
        same = (run.data.name, run.data.eval) == (opened.run.data.name, opened.run.data.eval)
        here = opened.path is not None and opened.path.resolve().parent == (opened.folder / "checkpoints").resolve()
        return replace(opened, run=run, own=same and here)

    opened = distributed.from_leader(look)

    def put(encoder: nn.Module, run: Train, dry: bool) -> tuple[str, bool]:
        if opened.path is None:
            fetch = distributed.from_leader(lambda: _to_fetch(run)) if dry else ""
            if fetch:
                return f"{fetch}, which would be downloaded", False
            return initial.into(encoder, run, "--weights"), True
        distributed.from_leader(lambda: _load(encoder, states.pop(), opened.path))
        distributed.share(_tensors(encoder))
        return f"{opened.path} after epoch {opened.epoch} (step {opened.step})", True

    return opened, put


def _opened(asked: Asked) -> tuple[Opened, dict[str, Any]]:
    """What is asked for, and the content of its checkpoint, empty for a file of weights."""
    recipes = [f"--{name} {value}" for name, value in (("preset", asked.preset), ("config", asked.config)) if value]
    if len(recipes) > 1:
        raise LewelError("preset and config both name a recipe; give one of them")
    if asked.run is None and not asked.weights:
        also = f"; {recipes[0]} alone has no weights" if recipes else ""
        raise LewelError(f"lewel eval {asked.kind} needs a run folder, or --weights FILE{also}")
    if asked.run is not None and recipes:
        raise LewelError(f"the run {asked.run} has its own recipe; leave out {recipes[0]}")
    if not asked.weights:
        assert asked.run is not None
        folder = folders.expanded(asked.run)
        return _of_checkpoint(*folders.newest(folder), folder, asked)
    path = None if asked.weights in WORDS else folders.expanded(asked.weights.removeprefix(f"{initial.OFFICIAL}:"))
    if path is not None and path.is_dir() and (asked.run is not None or recipes):
        path = folders.newest(path)[0]
        asked = replace(asked, weights=str(path))
    if asked.run is not None:
        folder = folders.expanded(asked.run)
        folders.check_run(folder, "config.yaml")
        return _of_file(asked, path, presets.load(folder / "config.yaml"), folder)
    if recipes:
        run = presets.get(asked.preset) if asked.preset else presets.load(folders.expanded(asked.config))
        checks.check(run)
        return _of_file(asked, path, run, None)
    if path is not None and path.is_dir():
        return _of_checkpoint(*folders.newest(path), path, asked)
    if path is not None and path.is_file() and initial.recipe_in(path) is not None:
        state = checkpoint.read(path)
        within = path.parent.name == "checkpoints" and (path.parent.parent / "config.yaml").is_file()
        folder = path.parent.parent if within else Path("runs", path.stem)
        return _of_checkpoint(path, state, checkpoint.config_of(state, path), folder, asked)
    if path is not None:  # what is wrong with it is told first
        with initial.named("--weights"):
            initial.source(replace(Train(), init=asked.weights))
        weight_files.read(path)
    raise LewelError(
        f"{asked.weights} says nothing about the images to evaluate with; add a run folder, --preset NAME or --config "
        "FILE, whose encoder and data are taken"
    )


def _of_checkpoint(
    path: Path, state: dict[str, Any], run: Train, folder: Path, asked: Asked
) -> tuple[Opened, dict[str, Any]]:
    folder = folders.expanded(asked.out) if asked.out else folder
    return Opened(run, folder, path.stem, state["epoch"], state["step"], path), state


def _of_file(asked: Asked, path: Path | None, run: Train, folder: Path | None) -> tuple[Opened, dict[str, Any]]:
    """A file of weights, or those of a library where path is None, and the recipe that it is evaluated by."""
    run = replace(run, init=asked.weights)
    if path is not None and path.is_file() and (differ := initial.differences(initial.encoder_in(path), run)):
        raise LewelError(
            f"{path} has the weights of another encoder{differ}, which would make other features of them; evaluate it "
            "with a recipe of its own encoder (a checkpoint of lewel train has it: leave out RUN and --preset)"
        )
    name = path.stem if path is not None else f"{asked.weights}-{run.encoder.name.replace(os.sep, '-')}"
    out = folders.expanded(asked.out) if asked.out else folder or Path("runs", name)
    return Opened(run, out, name), {}


def _placed(run: Train, asked: Asked) -> Train:
    """run with the places of now for its images."""
    config = run.data
    if asked.data_root:
        # As lewel.train takes places: of the sets that lie in no folder they are those of another set.
        name = "folder" if config.name in ("embedded", "custom") else config.name
        config = replace(config, name=name, root=asked.data_root[0] if len(asked.data_root) == 1 else asked.data_root)
    if asked.data_eval:
        config = replace(config, eval=asked.data_eval)
    if asked.workers is not None:
        if asked.workers < 0:
            raise LewelError(f"workers must be 0 or more, got {asked.workers}")
        storage = "auto" if config.storage == "device" else config.storage  # workers cannot reach images on a GPU
        config = replace(config, workers=asked.workers, storage=storage)
    checks.check_eval(config)
    return replace(run, data=config)


def _to_fetch(run: Train) -> str:
    with initial.named("--weights"):
        return initial.source(run).to_fetch


def _load(encoder: nn.Module, state: dict[str, Any], path: Path | None) -> None:
    """Puts the encoder of a checkpoint's content into encoder. Raises CheckpointError where they do not fit."""
    given = {name.removeprefix(ENCODER): v for name, v in state["method"].items() if name.startswith(ENCODER)}
    try:
        encoder.load_state_dict(given)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"the weights in {path} do not fit the encoder ({checkpoint.reason(error)}); nothing was evaluated"
        ) from None


def _tensors(encoder: nn.Module) -> list[Tensor]:
    return [value for value in encoder.state_dict().values() if isinstance(value, torch.Tensor)]
