"""SimSiam: its loss by hand, its stop-gradient, its one network, and the predictor whose rate does not fall."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_runs import TINY, assert_same, losses_of, run_in
from torch import Tensor, nn

from lewel.cost import memory, plan
from lewel.errors import LewelError
from lewel.methods.method import Method as Model
from lewel.methods.objectives.simsiam import SimSiamHead, symmetric_loss
from lewel.recipe import checks, presets
from lewel.recipe.schema import MethodSettings, Optim, Train
from lewel.results.export import export
from lewel.run import checkpoint
from lewel.run.session import build
from lewel.run.step import Stepper, rates
from lewel.watching import log

SIMSIAM = replace(TINY, method=replace(presets.SIMSIAM))
LEWEL_S = replace(SIMSIAM, method=replace(presets.SIMSIAM, w_aligned=0.3))
BOTH = pytest.mark.parametrize("run", [SIMSIAM, LEWEL_S], ids=lambda run: run.method.name)


def views(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    first, noise = torch.randn(2, 8, 3, 32, 32, generator=generator, dtype=dtype)
    return first, first + 0.1 * noise


def model(run: Train) -> Model:
    torch.manual_seed(0)
    return Model(run).double()


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Of rows, without the functions under test."""
    return -((p * z).sum(-1) / (p.square().sum(-1).sqrt() * z.square().sum(-1).sqrt())).mean()


@BOTH
def test_the_loss_and_its_gradient_are_those_of_the_formula(run):
    """D(p1, sg z2) / 2 + D(p2, sg z1) / 2 for the global and the aligned embeddings, weighed."""
    method = model(run)
    step = method(*views(), momentum=None)
    one, two = (method.online(view) for view in views())
    terms = {"global": (method.objective.predictor, one.z, two.z)}
    if run.method.aligned:
        rows = [x.aligned.flatten(0, 1) for x in (one, two)]
        terms["aligned"] = (method.objective.aligned_predictor, *rows)
    expected = {
        name: negative_cosine(predict(a), b.detach()) / 2 + negative_cosine(predict(b), a.detach()) / 2
        for name, (predict, a, b) in terms.items()
    }
    torch.testing.assert_close(step.parts, expected, rtol=1e-12, atol=1e-12)
    w = run.method.w_aligned
    by_hand = (1 - w) * expected["global"] + w * expected.get("aligned", torch.zeros(()))
    trained = list(method.parameters())
    assert all(p.requires_grad for p in trained)
    found, hand = (torch.autograd.grad(loss, trained) for loss in (step.loss, by_hand))
    torch.testing.assert_close(found, hand, rtol=1e-9, atol=1e-12)
    assert step.keys is None


def test_no_gradient_reaches_the_embedding_that_is_predicted():
    one, two = (torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    blind = torch.randn(4, 6, dtype=torch.float64)
    grads = torch.autograd.grad(symmetric_loss(lambda z: 0 * z + blind, one, two), [one, two])
    assert all(not grad.any() for grad in grads)
    grads = torch.autograd.grad(symmetric_loss(nn.Identity(), one, two), [one, two])
    by_hand = negative_cosine(one, two.detach()) / 2 + negative_cosine(two, one.detach()) / 2
    hand = torch.autograd.grad(by_hand, [one, two])
    torch.testing.assert_close(grads, hand)


def test_the_heads_are_those_of_the_paper():
    heads = presets.get("imagenet/simsiam_100").heads
    with torch.device("meta"):
        method = Model(presets.get("imagenet/simsiam_100"))
        small = Model(presets.get("cifar10/simsiam_800"))
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in method.online.head] == [*kinds, *kinds, nn.Linear, nn.BatchNorm1d]
    assert [type(layer) for layer in small.online.head] == [*kinds, nn.Linear, nn.BatchNorm1d]
    assert [p.shape for p in method.online.head.parameters() if p.ndim > 1] == 3 * [(2048, 2048)]
    assert [layer.affine for layer in method.online.head if isinstance(layer, nn.BatchNorm1d)] == [True, True, False]
    assert all(layer.bias is None for layer in method.online.head if isinstance(layer, nn.Linear))
    predictor = method.objective.predictor
    assert [type(layer) for layer in predictor] == [*kinds, nn.Linear]
    assert [tuple(p.shape) for p in predictor.parameters()] == [(512, 2048), (512,), (512,), (2048, 512), (2048,)]
    assert heads.projector == "auto"
    assert type(Model(SIMSIAM).online.head) is SimSiamHead


def test_residual_blocks_start_as_identities_where_the_recipe_says():
    for name, zero in (("imagenet/simsiam_100", True), ("imagenet/moco_v2_100", False)):
        run = presets.get(name)
        encoder = Model(replace(run, encoder=replace(run.encoder, name="resnet18"))).online.encoder
        assert {bool(encoder.get_submodule(f"layer{i}.1").bn2.weight.any()) for i in (1, 2, 3, 4)} == {not zero}


@pytest.mark.parametrize("name", ["sgd", "lars"])
@pytest.mark.parametrize("run", [SIMSIAM, LEWEL_S], ids=lambda run: run.method.name)
def test_the_rate_of_the_predictors_alone_does_not_fall(run, name):
    run = replace(run, optim=Optim(name, lr=0.5, warmup_epochs=1, decay_all=False))
    method, optimizer = build(run, torch.device("cpu"))
    stepper = Stepper(method, method, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    step, peak = 8, 0.5 * 16 / 256
    rate = rates(run, step, 3)
    assert rate.lr < 0.1 * rate.undecayed_lr == pytest.approx(0.1 * peak)
    assert rates(run, 0, 3).undecayed_lr == rates(run, 0, 3).lr == pytest.approx(peak / 3)  # both warm up
    stepper.take([views(torch.float32)], 1, step=step, **rate._asdict())
    of = {p: group for group in optimizer.param_groups for p in group["params"]}
    for key, p in method.named_parameters():
        expected = rate.undecayed_lr if key.startswith("objective.") else rate.lr
        assert of[p]["lr"] == expected, key
        assert of[p]["weight_decay"] == (run.optim.weight_decay if p.ndim > 1 else 0), key
    assert set(of) == set(method.parameters())


@BOTH
def test_there_is_no_momentum_network(run, tmp_path):
    session = run_in(tmp_path / "run", run)
    assert session.method.target is None
    assert not [key for key in session.method.state_dict() if key.startswith("target")]
    state = checkpoint.read(checkpoint.found(session.folder / "checkpoints")[-1])
    assert not [key for key in state["method"] if key.startswith("target")]
    steps = [record for record in log.read(session.folder / "log.jsonl") if record["kind"] == "step"]
    assert not [record for record in steps if "momentum" in record]
    needed = memory.expect(run)
    assert needed.momentum_network == needed.queue == 0
    assert needed.weights == sum(x.nbytes for x in (*session.method.parameters(), *session.method.buffers()))
    told = plan.text(run, 1)
    assert "no momentum network" in told
    assert "  momentum network" not in told
    with pytest.raises(LewelError, match=f"{run.method.name} has no momentum network"):
        export(session.folder, "safetensors", network="target")


@BOTH
def test_a_run_that_is_stopped_continues_bitwise(run, tmp_path):
    whole = run_in(tmp_path / "whole", run)
    run_in(tmp_path / "killed", run, epochs=1)
    resumed = run_in(tmp_path / "killed", run, resume=tmp_path / "killed" / "checkpoints" / "step-00000003.pt")
    assert_same(whole, resumed)
    assert losses_of(whole) == losses_of(resumed)
    assert all(-1 <= loss <= 1 for loss in losses_of(whole))


@pytest.mark.parametrize(
    "setting",
    [
        {"target": "eman"},
        {"momentum": 0.9},
        {"momentum_schedule": "cosine"},
        {"symmetric": True},
        {"key_bn": "plain"},
        {"gather_negatives": True},
    ],
    ids=str,
)
def test_settings_that_simsiam_does_not_read_are_refused(setting: dict[str, Any]):
    ((name, value),) = setting.items()
    with pytest.raises(LewelError, match=f"^method.{name} {value} says nothing where method.loss is simsiam"):
        checks.check(replace(TINY, method=MethodSettings(loss="simsiam", **setting)))


@pytest.mark.parametrize("name", ["embedded/simsiam", "embedded/lewel_s"])
def test_a_few_steps_of_the_preset_lower_its_loss(name):
    run = replace(presets.get(name), precision="fp32")
    method, optimizer = build(run, torch.device("cpu"))
    stepper = Stepper(method, method, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(16, 3, 64, 64, generator=generator)
    second = first + 0.3 * torch.randn(first.shape, generator=generator)
    found = [
        float(stepper.take([(first, second)], 1, step=step, **rates(run, step, 64)._asdict()).loss) for step in range(6)
    ]
    assert abs(found[0]) < 0.3  # predictions of an untrained predictor point anywhere
    assert found[-1] < found[0] - 0.1
