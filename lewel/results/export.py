"""The encoder of a run as a file that another library loads, and the lines that load it there."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import safetensors.torch
import torch

from lewel.data.batched import MEAN, STD
from lewel.errors import LewelError
from lewel.methods.encoders import Encoder, Wrapped
from lewel.methods.matching import detectron2_name
from lewel.methods.method import Method
from lewel.recipe import feature_maps, schema
from lewel.run import checkpoint, folders
from lewel.whole import written

Library = Literal["torchvision", "timm", "detectron2", "mmseg", "safetensors"]
Which = Literal["online", "target"]

TORCHVISION = """\
model = torchvision.models.{name}()
model.load_state_dict(torch.load({path}), strict=False)  # the file has no fc: the classifier is yours to train"""
TIMM = """\
model = timm.create_model("{name}", {options})
model.load_state_dict(torch.load({path}))"""
# Size, strides, colours and deviations are not detectron2's defaults, which are those of Caffe2's ResNet-50.
DETECTRON2 = """\
cfg.merge_from_list(["MODEL.WEIGHTS", {path}, "MODEL.RESNETS.DEPTH", {depth}, \
"MODEL.RESNETS.RES2_OUT_CHANNELS", {res2}, "MODEL.RESNETS.STRIDE_IN_1X1", False{detectron2_groups}])
cfg.merge_from_list(["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", {mean}, "MODEL.PIXEL_STD", {std}])  # not BGR"""
# Most configurations there have ResNetV1c, with another stem, and a pretrained that excludes init_cfg.
MMSEG = """\
backbone = dict(type="{mmseg_type}", depth={depth}, {mmseg_groups}\
init_cfg=dict(type="Pretrained", checkpoint={path}))  # without prefix
model = dict(pretrained=None, backbone=backbone)  # images as usual: bgr_to_rgb=True, mean={mean}, std={std}"""
SAFETENSORS = """\
encoder = lewel.build_encoder(lewel.config.{settings}, {image_size}).eval()
encoder.load_state_dict(safetensors.torch.load_file({path}))"""


class Trained(NamedTuple):
    """An encoder, its weights named as in its library, and where it comes from."""

    encoder: Encoder
    run: schema.Train
    network: Which
    epochs: int
    steps: int


@dataclass(frozen=True)
class Format:
    """How a library wants its file."""

    suffix: str
    pack: Callable[[Trained], bytes]
    use: str


def _torch_file(trained: Trained) -> bytes:
    module = trained.encoder.model if isinstance(trained.encoder, Wrapped) else trained.encoder
    file = io.BytesIO()
    torch.save(dict(module.state_dict()), file)
    return file.getvalue()


def _detectron2_file(trained: Trained) -> bytes:
    weights = {detectron2_name(name): value.numpy() for name, value in trained.encoder.state_dict().items()}
    content = {"model": weights, "__author__": "lewel", "matching_heuristics": True}
    return pickle.dumps(content, protocol=4)  # protocol 5 names a module of numpy 2 that numpy 1 lacks


def _safetensors_file(trained: Trained) -> bytes:
    run = trained.run
    known = {
        "format": "pt",
        "method": run.method.name,
        "network": trained.network,
        "epochs": str(trained.epochs),
        "steps": str(trained.steps),
        "preset": run.preset,
        "encoder": json.dumps([run.encoder.name, run.encoder.stem, run.encoder.last_stride]),
        "image_size": str(run.data.image_size),
        "mean": json.dumps(MEAN),
        "std": json.dumps(STD),
    }
    return safetensors.torch.save(trained.encoder.state_dict(), known)


FORMATS: dict[Library, Format] = {
    "torchvision": Format(".pth", _torch_file, TORCHVISION),
    "timm": Format(".pth", _torch_file, TIMM),
    "detectron2": Format(".pkl", _detectron2_file, DETECTRON2),
    "mmseg": Format(".pth", _torch_file, MMSEG),
    "safetensors": Format(".safetensors", _safetensors_file, SAFETENSORS),
}


def export(folder: Path, to: Library, out: Path | None = None, network: Which = "online") -> str:
    """Writes the encoder of a run's newest checkpoint for a library, and returns what to tell about it.

    Without out the file lies in the run folder. Raises LewelError for an encoder that the library does not know.
    """
    path, state, run = folders.newest(folder)
    _check_known(run.encoder, to)
    kind = FORMATS[to]
    out = out or folder / f"{run.encoder.name.replace('/', '-')}-{network}-{to}{kind.suffix}"
    if out.suffix != kind.suffix:
        raise LewelError(f"a file for {to} must end in {kind.suffix}, got --out {out}")
    method = Method(run)
    checkpoint.load_weights(method, state, path)
    if network == "target" and method.target is None:
        raise LewelError(f"{run.method.name} has no momentum network; export its encoder with --network online")
    trained = Trained(getattr(method, network).encoder, run, network, state["epoch"], state["step"])
    _write(out, kind.pack(trained))
    return (
        f"wrote {out}: the {network} encoder of {run.method.name} after {trained.epochs} epochs, {trained.steps} steps"
        f"\n{to} loads it with\n\n{how_to_load(trained, to, out)}\n"
    )


def how_to_load(trained: Trained, to: Library, path: Path) -> str:
    """Python that loads the file; images are RGB, normalised by the mean and deviation of ImageNet."""
    encoder, size = trained.run.encoder, trained.run.data.image_size
    options = feature_maps.timm_options(encoder.name, size) if encoder.from_timm else {"num_classes": 0}
    width = _width(encoder.name)
    return FORMATS[to].use.format(
        path=json.dumps(str(path), ensure_ascii=False),
        name=encoder.name.removeprefix("timm/"),
        options=", ".join(f"{key}={value}" for key, value in options.items()),
        depth="".join(re.findall(r"nex?t(\d+)", encoder.name)),
        res2=trained.encoder.channels // 8,
        detectron2_groups=f', "MODEL.RESNETS.NUM_GROUPS", {width[0]}, "MODEL.RESNETS.WIDTH_PER_GROUP", {width[1]}'
        if width
        else "",
        mmseg_type="ResNeXt" if width else "ResNet",
        mmseg_groups=f"groups={width[0]}, base_width={width[1]}, " if width else "",
        settings=encoder,
        image_size=size,
        mean=[round(255 * value, 3) for value in MEAN],
        std=[round(255 * value, 3) for value in STD],
    )


def _width(name: str) -> tuple[int, int] | None:
    """Groups of the 3x3 convolutions of a wide ResNet or a ResNeXt, and their width a group at stage one; else None."""
    if name.startswith("wide"):
        return 1, 128
    found = re.search(r"_(\d+)x(\d+)d$", name)
    return (int(found[1]), int(found[2])) if found else None


def _check_known(encoder: schema.EncoderSettings, to: Library) -> None:
    if to == "safetensors" or (to == "timm" and encoder.from_timm):
        return
    if encoder.from_timm:
        raise LewelError(
            f"{to} has no {encoder.name}; export it --to timm, or --to safetensors, which lewel.build_encoder loads"
        )
    instead = "export it --to safetensors, which lewel.build_encoder loads"
    if encoder.name == "tiny":
        raise LewelError(f"{to} has no such encoder as tiny, only lewel has; {instead}")
    if to == "mmseg" and encoder.name.startswith("wide"):
        raise LewelError(f"mmseg has no {encoder.name}: its ResNets have one width; {instead}")
    if encoder.stem != "imagenet":
        raise LewelError(f"the {encoder.stem} stem is a 3x3 convolution, and {to}'s {encoder.name} has 7x7; {instead}")
    if encoder.last_stride != 2:
        raise LewelError(
            f"the last stage has stride {encoder.last_stride}, and with the 2 of {to}'s {encoder.name} "
            f"its weights would give other features; {instead}"
        )


def _write(path: Path, content: bytes) -> None:
    try:
        with written(path) as temporary, open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise LewelError(f"could not write {path}: {error.strerror}; choose another --out") from None
