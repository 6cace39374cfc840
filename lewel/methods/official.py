"""Weights of the official LEWEL_B release in a model of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lewel.errors import LewelError
from lewel.methods.heads import CoupledHead
from lewel.methods.matching import some
from lewel.methods.method import Method

NAMES = (  # ours -> official, applied in this order
    (r"^(online|target)\.", r"\1_net."),
    (r"_net\.encoder\.", "_net.backbone."),
    (r"_net\.head\.mlp\.", "_net.neck.proj.mlp."),
    (r"_net\.aligned_head\.", "_net.neck.proj_obj.mlp."),
    (r"^objective\.predictor\.", "predictor.mlp."),
    (r"^objective\.aligned_predictor\.", "predictor_obj.mlp."),
    (r"\.mlp\.hidden\.", ".mlp."),
    (r"\.mlp\.out\.", ".mlp.3."),
)
RELEASED = (
    "the released models are resnet50 with the imagenet stem, heads.hidden 4096, heads.num_maps 256, heads.num_groups 4"
)
MOCO = ("encoder_q.", "encoder_k.", "base_encoder.", "momentum_encoder.", "queue")


def load_official(model: Method, state_dict: Mapping[str, Any]) -> None:
    """Puts the weights of an official LEWEL_B file into model: all of them, or none.

    state_dict is what torch.load gives for the file: a checkpoint with the weights under "state_dict", or the weights
    themselves, named online_net.*, target_net.*, predictor.* and predictor_obj.*, with "module." before them or not.
    Weights of 1x1 convolutions (out, in, 1) become those of linear layers (out, in). num_batches_tracked may be absent;
    the model then keeps its own. No weight tells heads.num_groups, heads.tau or method.target: they stay the model's.

    Raises LewelError for a model that is no lewel_b with a coupled head, and for names or shapes that are not its own.
    """
    if model.settings.name != "lewel_b":
        raise LewelError(
            f"the official release holds LEWEL_B but the model is {model.settings.name}; "
            'make one of lewel.config.MethodSettings(loss="byol", w_aligned=0.5)'
        )
    if not isinstance(model.online.head, CoupledHead):
        raise LewelError(
            f"the official LEWEL_B has a CoupledHead but the model a {type(model.online.head).__name__}; "
            "make it with heads.coupling coupled and heads.maps learned"
        )
    given = _official_weights(state_dict)
    own = {official_name(name): value for name, value in model.state_dict().items()}
    _check_fit(own, given)
    for name, value in given.items():
        own[name].copy_(value.reshape(own[name].shape))


def official_name(name: str) -> str:
    """The name in the official release of the weight that Method calls name."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return name


def _official_weights(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    weights = state_dict.get("state_dict", state_dict) if isinstance(state_dict, Mapping) else state_dict
    if not isinstance(weights, Mapping):
        raise LewelError(f"the state dict must be what torch.load gives for the file, got a {type(weights).__name__}")
    weights = {str(name).removeprefix("module."): value for name, value in weights.items()}
    if any(name.startswith("online_net.") for name in weights):
        return weights
    found = f"it has {some(weights)}" if weights else "it is empty"
    if any(name.startswith(MOCO) for name in weights):
        advice = "these are of a MoCo-type method, and LEWEL_M was not released"
    elif "conv1.weight" in weights:
        advice = "an encoder alone is what a run begins with: lewel train --init FILE"
    else:
        advice = "give the file of the release as it is"
    raise LewelError(
        f"the state dict is none of the official LEWEL_B: no name begins with online_net., {found}; {advice}"
    )


def _check_fit(own: dict[str, Tensor], given: dict[str, Any]) -> None:
    missing = [name for name in own if name not in given and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in given if name not in own]
    misshapen = [
        f"{name} is {_shape(value)}, the model's {_shape(own[name])}"
        for name, value in given.items()
        if name in own and not _fits(value, own[name])
    ]
    problems = [f"it lacks {some(missing)}"] if missing else []
    problems += [f"the model has no {some(unexpected)}"] if unexpected else []
    problems += [f"shapes differ: {some(misshapen)}"] if misshapen else []
    if problems:
        raise LewelError(
            f"the official state dict does not fit the model: {'; '.join(problems)}; {RELEASED}; nothing was loaded"
        )


def _fits(value: Any, own: Tensor) -> bool:
    if not isinstance(value, Tensor):
        return False
    return value.shape == own.shape or (own.ndim == 2 and value.shape == (*own.shape, 1))


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
