"""The weights that an encoder starts from: torchvision's, timm's, those of a file or of another run."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
import torchvision
from torch import Tensor, nn

from lewel import distributed
from lewel.data.batched import MEAN, STD
from lewel.errors import LewelError
from lewel.methods import matching
from lewel.methods.encoders import Wrapped
from lewel.methods.method import Method
from lewel.recipe import feature_maps
from lewel.recipe.feature_maps import CUSTOM
from lewel.recipe.schema import EncoderSettings, Train
from lewel.run import checkpoint, folders, foreign_files, weight_files
from lewel.run.session import Session

OFFICIAL = "official"
KNOWN = "torchvision, timm, a file of weights, a run folder or official:FILE"
HUB = re.compile(r"(hf[-_]hub:)?[\w.-]+/[\w.-]+(@\w+)?")


@dataclass(frozen=True)
class Source:
    """Where initial weights are."""

    said: str
    """the place in words"""
    tensors: Callable[[], dict[str, Tensor]]
    """reads them, or downloads them first; raises LewelError where that fails"""
    to_fetch: str = ""
    """what a run downloads before it reads them, or nothing"""


def source(run: Train) -> Source:
    """The place that run.init names. Raises LewelError where there is none such, or none for this encoder."""
    given = run.init
    if given in ("torchvision", "timm"):
        if run.encoder.name == CUSTOM:
            raise LewelError(f"{given} has no weights of an encoder that came from Python; give --init a file of them")
        return _of_torchvision(run) if given == "torchvision" else _of_timm(run)
    if given in (OFFICIAL, f"{OFFICIAL}:"):
        raise LewelError(
            "the authors' LEWEL_B files are downloaded by hand, from where they publish them; then name the file: "
            "--init official:lewel_b.pth"
        )
    if "://" in given:
        raise LewelError(f"--init {given} is an address, and nothing is fetched from it; download the file and name it")
    path = folders.expanded(given.removeprefix(f"{OFFICIAL}:"))
    if path.is_dir():
        return _of_run(path, run)
    if not path.is_file():
        raise LewelError(f"there is no file or run folder {path} of weights (--init); {_meant(given)}")
    return Source(f"{path}{differences(encoder_in(path), run)}", lambda: weight_files.read(path))


def begin(session: Session) -> None:
    """Puts the weights that session.run.init names into the encoders of the online and the momentum network.

    The first process reads them, and all get them from it; it says what was loaded. Heads, predictors and queue stay
    fresh. Raises LewelError, before anything is changed, where they are not there or do not fit.
    """
    online, target = session.method.online.encoder, session.method.target
    said = into(online, session.run)
    if target is not None:
        own = _tensors(online)
        with torch.no_grad():
            for name, value in _tensors(target.encoder).items():
                value.copy_(own[name])
    if session.world.leads:
        print(f"the encoder begins with {said}; heads are fresh", flush=True)


@torch.no_grad()
def into(encoder: nn.Module, run: Train, flag: str = "--init") -> str:
    """Puts the weights that run.init names into an encoder of run, and returns a clause about them.

    The first process reads them, and all get them from it. Raises LewelError, before anything is changed, where they
    are not there or are not all of the encoder's; it names flag as what they were given by.
    """
    own = _tensors(encoder)

    def read() -> str:
        with named(flag):
            found = _found(run, encoder)
        for name, value in found.values.items():
            own[name].copy_(value)
        return found.said

    said = distributed.from_leader(read)
    distributed.share(own.values())
    return said


@contextlib.contextmanager
def named(flag: str) -> Iterator[None]:
    """A context whose LewelErrors say flag in place of --init."""
    try:
        yield
    except LewelError as error:
        raise LewelError(str(error).replace("--init", flag)) from None


def plan(run: Train) -> str:
    """What begin would say, or download: for a dry run. Raises its LewelError where that takes no download."""
    place = source(run)
    if place.to_fetch:
        return f"init: {place.to_fetch} would be downloaded"
    if run.encoder.name == CUSTOM:
        return f"init: {place.said}"
    with torch.device("meta"):
        encoder = Method(run).online.encoder
    return f"init: the encoder begins with {_found(run, encoder).said}; heads are fresh"


@dataclass(frozen=True)
class _Found:
    said: str
    values: dict[str, Tensor]


def _found(run: Train, encoder: nn.Module) -> _Found:
    place = source(run)
    own = _tensors(encoder)
    unused = frozenset(name for name, p in _inner(encoder).named_parameters() if not p.requires_grad)
    found = matching.match(own, unused, place.tensors(), place.said)
    official = " (the authors' LEWEL_B)" if "online_net.backbone." in found.prefix else ""
    if run.init.startswith(f"{OFFICIAL}:") and not official:
        raise LewelError(f"{place.said} is none of the authors' files: no name in it begins with online_net.backbone.")
    under = f", under {found.prefix.rstrip('.')}" if found.prefix else ""
    aside = f"; left aside: {matching.some(found.aside)}" if found.aside else ""
    kept = [name for name in own if name not in found.values and not name.endswith(matching.COUNT)]
    kept_said = f"; as they were: {matching.some(kept)}" if kept else ""
    return _Found(f"{len(found.values)} tensors of {place.said}{official}{under}{aside}{kept_said}", found.values)


def _inner(encoder: nn.Module) -> nn.Module:
    return encoder.model if isinstance(encoder, Wrapped) else encoder


def _tensors(encoder: nn.Module) -> dict[str, Tensor]:
    """Weights and statistics of an encoder by the names of its library."""
    return {name: value for name, value in _inner(encoder).state_dict().items() if isinstance(value, Tensor)}


def _of_torchvision(run: Train) -> Source:
    name = run.encoder.name
    if name.startswith("timm/"):
        raise LewelError(f"torchvision has no {name}; its weights are timm's: --init timm")
    if name == "tiny":
        raise LewelError("torchvision has no encoder tiny, only lewel has; choose --encoder.name resnet18, or a file")
    _check_stem(run, "torchvision")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(weights.url))

    def tensors() -> dict[str, Tensor]:
        if file.is_file():
            return weight_files.read(file)
        try:
            return weight_files.flat(weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True))
        except Exception as error:  # of the network, the disk or a broken file
            raise LewelError(
                f"the weights could not be downloaded from {weights.url} ({_line(error)}); fetch the file by other "
                f"means and put it at {file}, or give its path to --init"
            ) from None

    return Source(f"{weights} of torchvision ({file})", tensors, "" if file.is_file() else weights.url)


def _of_timm(run: Train) -> Source:
    name = run.encoder.name.removeprefix("timm/")
    if name == "tiny":
        raise LewelError("timm has no encoder tiny, only lewel has; choose --encoder.name resnet18, or a file")
    if not run.encoder.from_timm:
        _check_stem(run, "timm")
    pretrained = feature_maps.timm_pretrained(name)
    if pretrained is None:
        raise LewelError(f"timm has no trained weights of {name}; choose another encoder, or give --init a file")
    whence, cached, mean, std = pretrained

    def tensors() -> dict[str, Tensor]:
        try:
            with torch.random.fork_rng(devices=[]):
                model = feature_maps.timm_model(name, run.data.image_size, pretrained=True)
        except Exception as error:  # of the network, the disk or a broken file
            raise LewelError(
                f"timm's weights of {name} could not be loaded from {whence} ({_line(error)}); where there is no "
                "network, fetch the file by other means and give its path to --init"
            ) from None
        return weight_files.flat(model.state_dict())

    other = "" if (mean, std) == (MEAN, STD) else f", made for images with mean {mean} and deviation {std}, not ours"
    return Source(f"{whence} of timm{other}", tensors, "" if cached else whence)


def _of_run(path: Path, run: Train) -> Source:
    def tensors() -> dict[str, Tensor]:
        return weight_files.flat(folders.newest(path)[1])

    remedy = "" if checkpoint.found(path / "checkpoints") else foreign_files.in_folder(path)
    if remedy:
        raise LewelError(f"{path} is no run folder with checkpoints in it; {remedy}")
    newest, _, other = folders.newest(path)
    return Source(f"{newest}{differences(other.encoder, run)}", tensors)


def recipe_in(path: Path) -> Train | None:
    """The recipe that a file holds which is a checkpoint of lewel train, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, "cpu", mmap=True, weights_only=True)  # no weight is read yet
        return checkpoint.config_of(state, path) if state["format"].startswith("lewel checkpoint ") else None
    except Exception:  # of a foreign file, which weight_files.read has the sentence for
        return None


def encoder_in(path: Path) -> EncoderSettings | None:
    """The encoder whose weights a file holds, where it says so: a checkpoint of ours, or a safetensors export."""
    if known := recipe_in(path):
        return known.encoder
    try:
        with safetensors.safe_open(path, "pt") as file:
            return EncoderSettings(*json.loads(file.metadata()["encoder"]))
    except Exception:  # of any other file
        return None


def differences(other: EncoderSettings | None, run: Train) -> str:
    """What of the encoder, which no weight tells, is not as in the run that weights come from, in brackets, or ""."""
    differ = [
        f"its encoder.{setting} is {getattr(other, setting)}, this run's {getattr(run.encoder, setting)}"
        for setting in ("stem", "last_stride")
        if other is not None and getattr(other, setting) != getattr(run.encoder, setting)
    ]
    return f" ({'; '.join(differ)})" if differ else ""


def _meant(given: str) -> str:
    """What somebody may have meant who named a file that is not there."""
    near = difflib.get_close_matches(given, ("torchvision", "timm", OFFICIAL), n=1)
    if near:
        return f"did you mean {near[0]}?"
    if HUB.fullmatch(given) and Path(given).suffix not in foreign_files.SUFFIXES and not Path(given).parent.is_dir():
        return (
            "if it is a name of the Hugging Face hub, download its file of weights and name that, or give --init timm, "
            "which takes timm's weights of --encoder.name"
        )
    return f"it is {KNOWN}"


def _check_stem(run: Train, library: str) -> None:
    if run.encoder.stem != "imagenet":
        raise LewelError(
            f"{library}'s {run.encoder.name} has a 7x7 convolution of stride 2 first, and the {run.encoder.stem} stem "
            "3x3; add --encoder.stem imagenet"
        )


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
