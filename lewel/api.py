"""The verbs of the command line as functions, for whoever uses lewel from Python; docs/extending.md shows each."""

from __future__ import annotations

import os
import reprlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch.distributed
from torch import nn
from torch.utils.data import Dataset

from lewel import data, distributed
from lewel.data import own
from lewel.errors import LewelError
from lewel.evaluation import offline
from lewel.evaluation.opening import Asked
from lewel.recipe import plain, presets, schema
from lewel.results import export as files
from lewel.results import maps as pictures
from lewel.run import folders
from lewel.start import Run, start

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
    kind: str,
    run: str | os.PathLike[str] | None = None,
    data_root: Paths = "",
    *,
    weights: str | os.PathLike[str] = "",
    preset: str = "",
    config: str | os.PathLike[str] = "",
    data_eval: str | os.PathLike[str] = "",
    workers: int | None = None,
    out: str | os.PathLike[str] = "",
    data: Any = None,
    encoder: Any = None,
    **settings: Any,
) -> Any:
    """What the features of a run's newest checkpoint, or of a file of weights, are worth.

    kind is one of `lewel eval`. "knn" returns the accuracy in percent for each k, as in {200: 41.4}; every other kind
    the table of values that it also writes to RUN/eval/. settings are those of `lewel eval KIND --help` by the same
    names, such as k, temperature and bank; None leaves the recipe's.

    data_root says where the images are now; empty means where they were in training. data_eval names labelled images to
    compare, for a run on images without labels (data.eval). A run whose data or encoder came from Python needs them
    again, as lewel.train takes them; the encoder then gets the checkpoint's weights.
    """
    if not isinstance(kind, str) or kind not in offline.KINDS:
        raise LewelError(f"lewel.eval knows {', '.join(offline.KINDS)}, got {kind!r}")
    given = _text("weights", weights)
    if run is None and not given:
        raise LewelError(f"run is a path, got {run!r}")
    if workers is not None and type(workers := plain.bare(workers)) is not int:
        raise LewelError(f"workers is a whole number, or None for the recipe's, got {workers!r}")
    if not (data_root is None or data_root in ("", (), []) or _places_of(data_root)):
        raise LewelError(f"data_root is a path or several, got {reprlib.repr(data_root)}")
    asked = Asked(
        run=None if run is None else _path("run", run),
        weights=given,
        preset=_named(preset),
        config=_text("config", config),
        data_root=_places_of(data_root) or _places_of(data),
        data_eval=str(_path("data_eval", data_eval)) if data_eval else "",
        workers=workers,
        out=_text("out", out),
        data=_given(data),
        encoder=_module(encoder),
        kind=kind,
    )
    before = torch.distributed.is_initialized()
    result = offline.run(asked, offline.KINDS[kind].made(settings))
    if not before:
        distributed.leave()
    return offline.KINDS[kind].answer(result.values)


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
    preset = _named(preset)
    if isinstance(config, schema.Train):
        return config
    if isinstance(config, Mapping):
        return presets.made(config, source=plain.PYTHON)
    return presets.get(preset) if preset else presets.load(_path("config", config)) if config else schema.Train()


def _named(preset: Any) -> str:
    if not isinstance(preset, str):
        raise LewelError(f"preset is the name of a recipe, got {preset!r}")
    return preset


def _text(name: str, given: Any) -> str:
    """A path as it was written."""
    if not isinstance(given, (str, os.PathLike)):
        raise LewelError(f"{name} is a path, got {reprlib.repr(given)}")
    return os.fspath(given)


def _path(name: str, given: Any) -> Path:
    return folders.expanded(_text(name, given))


def _places_of(given: Any) -> tuple[str, ...]:
    """The places that a path or a list of paths names; none for anything else."""
    named = given if isinstance(given, (list, tuple)) else [given]
    if not all(isinstance(place, (str, os.PathLike)) for place in named):
        return ()
    return tuple(os.fspath(place) for place in named) if given != "" else ()


def _sets(given: Any, run: schema.Train) -> data.Datasets | None:
    given = _given(given)
    return own.build(given[0], given[1], run.data, run.seed) if isinstance(given, tuple) else given


def _given(given: Any) -> data.Datasets | tuple[Any, Any] | None:
    """Data sets from Python: two of one's own, or what makes its views itself; None for places of images."""
    if given is None or isinstance(given, Mapping) or _places_of(given):
        return None
    if isinstance(given, data.Datasets):
        return given
    pair = isinstance(given, (tuple, list)) and len(given) == 2
    if pair and not any(place is None or isinstance(place, (str, os.PathLike)) for place in given):
        return given[0], given[1]
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
