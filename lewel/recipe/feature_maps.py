"""Which feature map a module makes of an image, and timm's models by name: what a recipe must know of its encoder.

It runs modules, yet is in lewel.recipe: the checks and Train.map_side ask it for the map of a timm model.
"""

from __future__ import annotations

import difflib
import functools
import math
import os
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lewel.errors import LewelError

RESNETS = (
    "tiny", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
)  # fmt: skip
"""The encoder's names, beside timm/NAME and CUSTOM."""
CUSTOM = "custom"
"""The name of an encoder that came from Python."""


class Look(NamedTuple):
    """What `look` finds out about a module by one pass over one image."""

    channels: int
    side: int  # positions of the square map, a side
    unused: frozenset[str]  # parameters that the map does not depend on, such as a classifier's


def of(module: nn.Module, images: Tensor) -> Tensor:
    """images (N, 3, S, S) -> the map (N, C, h, w) of module.

    module returns the map itself, or has timm's forward_features: a map, a map with channels last, or tokens (N, T, C),
    whose prefix (class and register tokens) is left out and whose others are the positions of a square map, in rows.
    Raises LewelError for anything else.
    """
    named = hasattr(module, "forward_features")
    out = module.forward_features(images) if named else module(images)  # type: ignore[operator]
    if isinstance(out, Tensor) and named and out.ndim == 3:
        prefix = getattr(module, "num_prefix_tokens", None)
        tokens = out[:, prefix or 0 :]
        side = math.isqrt(tokens.shape[1])
        if side * side == tokens.shape[1] and (side > 1 or prefix is not None):  # a single one may be a class token
            return tokens.transpose(1, 2).unflatten(2, (side, side))
    elif isinstance(out, Tensor) and out.ndim == 4:
        return out.permute(0, 3, 1, 2) if getattr(module, "output_fmt", "NCHW") == "NHWC" else out
    got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    raise LewelError(
        f"an encoder must make a feature map (N, channels, h, w) of images (N, 3, H, W), but {type(module).__name__} "
        f"makes {got} of {tuple(images.shape)}; leave out its pooling and its classifier"
    )


def look(module: nn.Module, image_size: int) -> Look:
    """Finds channels and side of module's map, and the parameters that it does not depend on; module stays as it was.

    Runs module forward and backward on one black image in eval mode. Raises LewelError if it makes no map.
    """
    named = dict(module.named_parameters())
    like = next(iter(named.values()), torch.empty(0))
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.enable_grad():
            features = of(module, like.new_zeros(1, 3, image_size, image_size))
            trained = {name: p for name, p in named.items() if p.requires_grad}
            grads: tuple[Tensor | None, ...] = (None,) * len(trained)
            if features.requires_grad:
                grads = torch.autograd.grad(features.sum(), list(trained.values()), allow_unused=True)
    finally:
        for part, mode in training.items():
            part.training = mode
    unused = frozenset(name for name, grad in zip(trained, grads, strict=True) if grad is None)
    return Look(features.shape[1], features.shape[2], unused)


def timm_model(name: str, image_size: int, *, pretrained: bool = False) -> nn.Module:
    """timm's model name ("timm/vit_small_patch16_224"), for images of image_size pixels a side; fresh by default."""
    model = name.removeprefix("timm/")
    return _timm().create_model(model, pretrained=pretrained, **timm_options(name, image_size))


def timm_pretrained(name: str) -> tuple[str, bool, tuple[float, ...], tuple[float, ...]] | None:
    """Where timm has the trained weights of a model, whether they are on this machine, and mean and deviation of the
    images that they were made with; None where it has none."""
    timm, model = _timm(), name.removeprefix("timm/")
    config = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if config is None or not config.has_weights:
        return None
    if not config.hf_hub_id:
        file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(config.url))
        return config.url, os.path.isfile(file), config.mean, config.std
    from huggingface_hub import try_to_load_from_cache

    cached = (
        try_to_load_from_cache(config.hf_hub_id, f"{kind}") for kind in ("model.safetensors", "pytorch_model.bin")
    )
    return config.hf_hub_id, any(isinstance(found, str) for found in cached), config.mean, config.std


def timm_options(name: str, image_size: int) -> dict[str, int]:
    """Arguments of timm.create_model beside the name; img_size only for models whose weights depend on image_size."""
    sized = {"num_classes": 0, "img_size": image_size}
    try:
        with torch.device("meta"):
            _timm().create_model(name.removeprefix("timm/"), **sized)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        del sized["img_size"]
    return sized


@functools.cache
def of_timm(name: str, image_size: int) -> Look:
    """The Look of timm's model name at image_size, found on meta tensors, without computing anything.

    Raises LewelError where timm is not installed, has no such model (and names the nearest), or the model makes no map
    or cannot take images of this size.
    """
    _check_known(name)
    try:
        with torch.device("meta"):
            return look(timm_model(name, image_size), image_size)
    except LewelError as error:
        raise LewelError(f"encoder.name {name}: {error}") from None
    except Exception as error:  # each of timm's models has asserts of its own
        reason = (str(error).splitlines() or [""])[0]
        raise LewelError(
            f"encoder.name {name} cannot take images of {image_size} pixels a side "
            f"({type(error).__name__}: {reason}); choose another data.image_size or model"
        ) from None


def _check_known(name: str) -> None:
    timm, model = _timm(), name.removeprefix("timm/")
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=3)
        meant = f"did you mean {' or '.join(f'timm/{other}' for other in near)}?" if near else "see timm.list_models()"
        raise LewelError(f"encoder.name {name}: timm has no such model; {meant}")


def _timm():  # type: ignore[no-untyped-def]
    try:
        import timm
    except ImportError:
        raise LewelError('models of timm need it installed: pip install "lewel[timm]"') from None
    return timm
