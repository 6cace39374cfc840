"""The verbs of the command line as functions, for whoever uses lewel from Python; docs/extending.md shows each."""

from __future__ import annotations

import os
import reprlib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch.distributed
from torch import nn
from torch.utils.data import Dataset

from lewel import data, distributed
from lewel.data import own
from lewel.errors import LewelError
from lewel.evaluation.features import knn_accuracy
from lewel.recipe import checks, plain, presets, schema
from lewel.results import export as files
from lewel.results import maps as pictures
from lewel.run import folders
from lewel.run.session import Session
from lewel.start import Run, start
from lewel.watching.progress import Progress

__all__ = ["Run", "eval", "export", "maps", "train"]

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def train(
    *,
    out: str | os.PathLike[str] = "",
    data: Any = None,
    preset: str = "",
    config: str | os.PathLike[str] | Mapping[str, Any] | schema.Train = "",
    encoder: Any = None,
    resume: str | os.PathLike[str] = "",
    **settings: Any,
) -> Run:
    """Trains as `lewel train` does, prints what it prints, and returns the run.

    Args:
        out: the run folder; empty means runs/<preset>, with a number if that is taken.
        data: the folder with the images, several, or a file that lists images; or two data sets of one's own, (train,
            test), see lewel.data.own.DataSet; or a lewel.data.Datasets, which makes its views itself. None leaves the
            recipe's.
        preset: a recipe by name; without one, and without config, the default one, lewel_m on the embedded set.
        config: a YAML recipe, a table with the same content, or a config.Train, to start from instead of a preset.
        encoder: a module that makes a feature map (N, C, h, w) of images (N, 3, H, W), trained in place.
        resume: a checkpoint to continue from, or "auto". A run with data or an encoder from Python needs them again.
        settings: those of `lewel train --help` by the same names: epochs=2, **{"optim.lr": 0.1} or optim={"lr": 0.1}.
            data and encoder may be such tables too.

    Raises:
        LewelError: a setting that there is none of, with the nearest name, or of the wrong type; a recipe that cannot
            run; data that are not there; anything that lewel train refuses.
    """
    if preset and config:
        raise LewelError("preset and config both name a recipe to start from; give one of them")
    for name, value in (("data", data), ("encoder", encoder)):
        if isinstance(value, Mapping):
            settings[name] = value
    run = _start(preset, config)
    if places := _places_of(data):
        name = "folder" if run.data.name in ("embedded", "custom") else run.data.name  # these two lie in no folder
        settings = {"data.name": name, "data.root": places[0] if len(places) == 1 else places, **settings}
    run = plain.changed(run, {"out": out, **settings} if out else settings, source=plain.PYTHON)
    sets, module = _sets(data, run), _module(encoder)
    if module is not None and not any(parameter.requires_grad for parameter in module.parameters()):
        warnings.warn(
            f"lewel: the encoder {type(module).__name__} has no parameter with requires_grad, so the heads alone are "
            "trained",
            stacklevel=2,
        )
    before = torch.distributed.is_initialized()
    if not isinstance(resume, (str, os.PathLike)):
        raise LewelError(f'resume is a checkpoint to continue from, or "auto", got {resume!r}')
    made = start(run, os.fspath(resume), encoder=module, sets=sets)
    if not before:
        distributed.leave()
    return made


def eval(
    kind: Literal["knn"],
    run: str | os.PathLike[str],
    data_root: Paths = "",
    *,
    data_eval: str | os.PathLike[str] = "",
    k: int | Sequence[int] | None = None,
    temperature: float | None = None,
    bank: int | None = None,
    data: Any = None,
    encoder: Any = None,
) -> dict[int, float]:
    """What the features of a run's newest checkpoint are worth: kNN accuracy in percent for each k, as in {200: 41.4}.

    data_root says where the images are now; empty means where they were in training. data_eval names labelled images to
    compare, for a run on images without labels (data.eval). k, temperature and bank replace those of the run's recipe.
    A run whose data or encoder came from Python needs them again, as lewel.train takes them.
    """
    if kind != "knn":
        raise LewelError(f"lewel.eval knows knn, got {kind!r}")
    many = plain.bare(k)
    asked = (many,) if isinstance(many, int) else tuple(many) if isinstance(many, range) else many
    places = _places_of(data_root) or _places_of(data)
    labelled = str(_path("data_eval", data_eval)) if data_eval else ""
    found = knn_of(_path("run", run), places, labelled, asked, temperature, bank, data=data, encoder=encoder)
    return found[2]


def knn_of(
    folder: Path,
    data_root: tuple[str, ...],
    data_eval: str,
    k: Sequence[int] | None,
    temperature: float | None,
    bank: int | None,
    *,
    data: Any = None,
    encoder: Any = None,
) -> tuple[Session, int, dict[int, float]]:
    """The session and the epoch of its checkpoint, and what `eval` computes in it; None leaves a recipe's setting."""
    folder = folders.expanded(folder)
    opened = folders.newest(folder)
    run = opened[2]
    asked = {"knn_k": k, "knn_temperature": temperature, "knn_bank": bank}
    changed = plain.changed(
        run, {name: value for name, value in asked.items() if value is not None}, source="lewel.eval"
    )
    checks.check_knn(changed)
    checks.check_eval(replace(run.data, eval=data_eval or run.data.eval))
    sets = _sets(data, run)
    session = folders.load(folder, data_root, data_eval=data_eval, encoder=_module(encoder), sets=sets, opened=opened)
    if not session.sets.num_classes:
        raise LewelError(
            f"kNN compares labels, and the images of {folder} have none; --data-eval ROOT (in Python data_eval) names "
            "labelled images, in a folder for each class"
        )
    knn = {name: getattr(changed, name) for name in asked}
    session.run = replace(session.run, **knn)
    return session, opened[1]["epoch"], knn_accuracy(session, Progress(print, bar=sys.stderr.isatty()))


def maps(
    run: str | os.PathLike[str],
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "maps.png",
) -> None:
    """Draws the alignment maps of a run's newest checkpoint over an image file or several, into the picture out."""
    given = [images] if isinstance(images, (str, os.PathLike)) or not isinstance(images, Iterable) else images
    named = [_path("an image", image) for image in given]
    pictures.over_files(_path("run", run), named, _path("out", out))


def export(
    run: str | os.PathLike[str], to: files.Library, out: str | os.PathLike[str] = "", network: files.Which = "online"
) -> str:
    """Writes the encoder of a run's newest checkpoint as a file for another library, and tells how it loads there.

    Without out the file lies in the run folder.
    """
    for name, given, known in (("to", to, files.Library), ("network", network, files.Which)):
        if given not in get_args(known):
            raise LewelError(f"{name} must be one of {', '.join(get_args(known))}, got {given!r}")
    return files.export(_path("run", run), to, _path("out", out) if out else None, network)


def _start(preset: Any, config: Any) -> schema.Train:
    """The recipe that lewel.train starts from."""
    if not isinstance(preset, str):
        raise LewelError(f"preset is the name of a recipe, got {preset!r}")
    if isinstance(config, schema.Train):
        return config
    if isinstance(config, Mapping):
        return presets.made(config, source=plain.PYTHON)
    return presets.get(preset) if preset else presets.load(_path("config", config)) if config else schema.Train()


def _path(name: str, given: Any) -> Path:
    if not isinstance(given, (str, os.PathLike)):
        raise LewelError(f"{name} is a path, got {reprlib.repr(given)}")
    return folders.expanded(given)


def _places_of(given: Any) -> tuple[str, ...]:
    """The places that a path or a list of paths names; none for anything else."""
    named = given if isinstance(given, (list, tuple)) else [given]
    if not all(isinstance(place, (str, os.PathLike)) for place in named):
        return ()
    return tuple(os.fspath(place) for place in named) if given != "" else ()


def _sets(given: Any, run: schema.Train) -> data.Datasets | None:
    if given is None or isinstance(given, Mapping) or _places_of(given):
        return None
    if isinstance(given, data.Datasets):
        return given
    pair = isinstance(given, (tuple, list)) and len(given) == 2
    if pair and not any(place is None or isinstance(place, (str, os.PathLike)) for place in given):
        return own.build(given[0], given[1], run.data, run.seed)
    one = given[0] if pair and given[1] is None else given
    if isinstance(one, Dataset) or hasattr(one, "classes"):
        raise LewelError(
            f"data is two data sets, to train on and to test by, and {type(one).__name__} is one; hold some of it "
            "back, data=torch.utils.data.random_split(dataset, [0.9, 0.1]), or give the folder of its images, which "
            "needs no test set"
        )
    raise LewelError(
        "data is a folder or several, two data sets (train, test), a lewel.data.Datasets or a table of settings, "
        f"got {reprlib.repr(given)}"
    )


def _module(given: Any) -> nn.Module | None:
    if given is None or isinstance(given, Mapping):
        return None
    if not isinstance(given, nn.Module):
        raise LewelError(
            f"encoder is a torch.nn.Module or a table of settings, such as {{'name': 'resnet18'}}, got {given!r}"
        )
    return given
