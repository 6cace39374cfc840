"""State dicts as the official release names and shapes them, made from a model of ours, loaded into another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from saved_runs import filled
from tiny_runs import METHODS, TINY, assert_equal
from torch import Tensor
from torch.nn import functional as F

from lewel.errors import LewelError
from lewel.methods.method import Method
from lewel.methods.official import load_official
from lewel.recipe.schema import EncoderSettings

RUN = replace(TINY, method=METHODS["lewel_b-eman"])
MLPS = {
    "online.head.mlp": "online_net.neck.proj.mlp",
    "online.aligned_head": "online_net.neck.proj_obj.mlp",
    "target.head.mlp": "target_net.neck.proj.mlp",
    "target.aligned_head": "target_net.neck.proj_obj.mlp",
    "objective.predictor": "predictor.mlp",
    "objective.aligned_predictor": "predictor_obj.mlp",
}


def official(method: Method) -> dict[str, Tensor]:
    """As saved by the official code: 1x1 convolutions, and the "module." of DistributedDataParallel."""
    named = {}
    for network in ("online", "target"):
        for name, value in method.get_submodule(f"{network}.encoder").state_dict().items():
            named[f"{network}_net.backbone.{name}"] = value
    for ours, theirs in MLPS.items():
        mlp = method.get_submodule(ours)
        named[f"{theirs}.0.weight"] = mlp.hidden[0].weight[:, :, None]
        named |= {f"{theirs}.1.{name}": value for name, value in mlp.hidden[1].state_dict().items()}
        named[f"{theirs}.3.weight"] = mlp.out.weight[:, :, None]
    return {f"module.{name}": value.detach().clone() for name, value in named.items()}


@torch.no_grad()
def outputs(method: Method) -> list[Tensor]:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    method.eval()
    online, target = method.online(images), method.target(images)
    predict, predict_aligned = method.objective.predictor, method.objective.aligned_predictor
    return [*online, *target, predict(online.z), predict_aligned(online.aligned.flatten(0, 1))]


def linear(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.squeeze(2) if value.ndim == 3 else value for name, value in weights.items()}


def bare(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): value for name, value in weights.items()}


def whole_checkpoint(weights: dict[str, Tensor]) -> dict[str, Any]:
    return {"epoch": 100, "arch": "LEWELB_EMAN", "state_dict": weights, "best_acc1": 0.0, "optimizer": {}}


@pytest.mark.parametrize("form", [dict, linear, bare, whole_checkpoint], ids=lambda form: form.__name__)
def test_an_official_state_dict_makes_the_same_model(form):
    source, model = filled(RUN, seed=1), filled(RUN, seed=2)
    load_official(model, form(official(source)))
    assert_equal(model.state_dict(), source.state_dict())
    for mine, theirs in zip(outputs(model), outputs(source), strict=True):
        assert torch.equal(mine, theirs)


def test_the_heads_are_those_that_the_names_say():
    """proj reads z off the GAP token, predictor predicts from it; computed with the convolutions of the state dict."""
    model = filled(RUN, seed=2)
    weights = bare(official(filled(RUN, seed=1)))
    load_official(model, weights)

    def mlp(x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            weights[f"{name}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        hidden = F.batch_norm(F.conv1d(x, weights[f"{name}.0.weight"]), mean, var, scale, shift).relu()
        return F.conv1d(hidden, weights[f"{name}.3.weight"])

    images = torch.randn(2, 3, 32, 32)
    gap = model.eval().online.encoder(images).mean((2, 3))[:, :, None]
    z = mlp(gap, "online_net.neck.proj.mlp")
    torch.testing.assert_close(model.online(images).z, z[:, :, 0])
    torch.testing.assert_close(model.objective.predictor(z[:, :, 0]), mlp(z, "predictor.mlp")[:, :, 0])


def test_counts_of_batches_may_be_absent_and_stay_the_models():
    source, model = filled(RUN, seed=1), filled(RUN, seed=2)
    counts = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    weights = official(source)
    load_official(model, {name: weights[name] for name in weights if "num_batches" not in name})
    assert_equal(model.state_dict(), source.state_dict() | counts)


@pytest.mark.parametrize(
    ("loss", "w_aligned", "name"), [("infonce", 0.0, "moco_v2"), ("infonce", 0.5, "lewel_m"), ("byol", 0.0, "byol")]
)
def test_a_model_of_another_method_is_refused(loss, w_aligned, name):
    other = replace(RUN, method=replace(RUN.method, loss=loss, w_aligned=w_aligned))
    with pytest.raises(LewelError, match=f"holds LEWEL_B but the model is {name}; make one of"):
        load_official(Method(other), {})


@pytest.mark.parametrize(
    ("setting", "head"), [({"coupling": "separate"}, "SeparateHead"), ({"maps": "random"}, "FixedMapsHead")]
)
def test_a_model_with_another_head_is_refused(setting, head):
    """Random maps have the weights of learned ones, so names and shapes would not tell."""
    other = replace(RUN, heads=replace(RUN.heads, **setting))
    with pytest.raises(LewelError, match=f"has a CoupledHead but the model a {head}; make it with heads.coupling"):
        load_official(Method(other), official(filled(RUN, seed=1)))


def without(weights: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: value for name, value in weights.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param(
            lambda weights: without(weights, "target_net.neck.proj_obj"),
            "it lacks target_net.neck.proj_obj.mlp.0.weight, target_net.neck.proj_obj.mlp.1.weight, "
            "target_net.neck.proj_obj.mlp.1.bias and 3 more; the released models are resnet50",
            id="missing",
        ),
        pytest.param(
            lambda weights: weights | {"module.online_net.backbone.fc.weight": torch.ones(1)},
            "the model has no online_net.backbone.fc.weight; ",
            id="unexpected",
        ),
        pytest.param(
            lambda weights: weights | {"module.predictor.mlp.3.weight": torch.ones(256, 4096, 1)},
            "shapes differ: predictor.mlp.3.weight is (256, 4096, 1), the model's (8, 16); ",
            id="shape",
        ),
        pytest.param(
            lambda weights: weights | {"module.predictor.mlp.3.weight": [1.0]},
            "predictor.mlp.3.weight is a list, the model's (8, 16); ",
            id="no-tensor",
        ),
        pytest.param(
            lambda weights: {"state_dict": {"module.encoder_q.conv1.weight": torch.ones(1), "module.queue": 0}},
            "no name begins with online_net., it has encoder_q.conv1.weight, queue; these are of a MoCo-type method",
            id="moco",
        ),
        pytest.param(
            lambda weights: {"conv1.weight": torch.ones(1)},
            "an encoder alone is what a run begins with: lewel train --init FILE",
            id="encoder",
        ),
        pytest.param(lambda weights: {}, "it is empty; give the file of the release as it is", id="empty"),
        pytest.param(lambda weights: "lewel.pth", "must be what torch.load gives for the file, got a str", id="path"),
    ],
)
def test_what_does_not_fit_is_a_sentence_and_nothing_is_loaded(change, sentence):
    model = filled(RUN, seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(LewelError) as error:
        load_official(model, change(official(filled(RUN, seed=1))))
    assert sentence in str(error.value)
    assert_equal(model.state_dict(), before)


def test_all_that_differs_is_told_at_once():
    other = replace(RUN, encoder=EncoderSettings("resnet18", stem="imagenet"))
    with pytest.raises(LewelError, match=r"it lacks .* and \d+ more; shapes differ: .*; the released .* nothing was"):
        load_official(Method(other), official(filled(RUN, seed=1)))
