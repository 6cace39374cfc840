"""The four methods: what is trained, what follows, in which order, and where losses start."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from lewel import losses, optim, watch
from lewel.config import Data, Encoder, Heads, Method, Optim, Train
from lewel.errors import LewelError
from lewel.method import Method as Model
from lewel.method import Step
from lewel.momentum import split_bn

SWITCHES = {
    "moco_v2": Method(w_aligned=0.0),
    "lewel_m": Method(),
    "byol": Method(loss="byol", w_aligned=0.0),
    "lewel_b": Method(loss="byol"),
    "lewel_b-eman": Method(loss="byol", target="eman"),
    "lewel_m-symmetric": Method(symmetric=True),
}


def recipe(name: str, **changes) -> Train:
    return Train(
        data=Data(batch_size=8),
        encoder=Encoder("tiny", stem="small"),
        heads=Heads(hidden=32, num_maps=16, num_groups=4),
        method=replace(SWITCHES[name], queue=32, split_bn=2, **changes),
        optim=Optim(lr=0.1),
        backend="reference",
    )


def model(name: str, **changes) -> Model:
    torch.manual_seed(0)
    return Model(recipe(name, **changes))


def views() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(8, 3, 16, 16, generator=generator)
    return first, first + 0.1 * torch.randn(8, 3, 16, 16, generator=generator)


def train_step(method: Model, momentum: float = 0.9) -> Step:
    optimizer = optim.build(Optim(), method.parameters())
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    step = method(*views(), momentum)
    step.loss.backward()
    optimizer.step()
    method.finish(step, momentum)
    return step


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_make_the_method(name):
    run = recipe(name)
    assert run.method.name == name.partition("-")[0]
    method = Model(run)
    assert hasattr(method, "queue") == (run.method.loss == "infonce")
    assert hasattr(method, "predictor") == (run.method.loss == "byol")
    assert hasattr(method, "aligned_predictor") == (run.method.name == "lewel_b")
    assert hasattr(method.online, "aligned_head") == run.method.aligned


@pytest.mark.parametrize("name", SWITCHES)
def test_gradients_reach_everything_online_and_nothing_in_the_target(name):
    method = model(name)
    method(*views(), 0.9).loss.backward()
    missing = {key for key, p in method.named_parameters() if p.grad is None}
    assert missing == {key for key, _ in method.named_parameters() if key.startswith("target.")}
    assert missing == {key for key, p in method.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_step_lowers_the_loss(name):
    method = model(name)
    optimizer = optim.build(Optim(momentum=0.0, weight_decay=0.0), method.parameters())
    for group in optimizer.param_groups:
        group["lr"] = 0.003
    before = method(*views(), 1.0)
    before.loss.backward()
    optimizer.step()
    assert method(*views(), 1.0).loss < before.loss


@pytest.mark.parametrize("name", ["byol", "lewel_b"])
def test_byol_losses_are_sums_over_both_directions_and_start_near_four(name):
    method = model(name)
    first, second = views()
    step = method(first, second, 0.9)
    expected = 0.0
    for query, key in ((first, second), (second, first)):
        prediction = method.predictor(method.online(query).z)
        expected += losses.byol_distance(prediction, method.target(key).z).item()
    assert step.parts["global"].item() == pytest.approx(expected, rel=1e-4)
    assert step.loss.item() == pytest.approx(4, abs=1)


def test_losses_are_weighed_by_w_aligned():
    step = model("lewel_b", w_aligned=0.3)(*views(), 0.9)
    assert step.loss.item() == pytest.approx(0.7 * step.parts["global"].item() + 0.3 * step.parts["aligned"].item())


@pytest.mark.parametrize("name", ["lewel_m", "lewel_b"])
def test_target_follows_before_the_keys_with_infonce_and_after_the_optimizer_with_byol(name):
    method = model(name)
    with torch.no_grad():
        method.online.head.mlp.out.weight.mul_(2)  # online and target start equal: make following visible
    online, target = method.online.head.mlp.out.weight.clone(), method.target.head.mlp.out.weight.clone()
    train_step(method, momentum=0.75)
    source = online if name == "lewel_m" else method.online.head.mlp.out.weight
    torch.testing.assert_close(method.target.head.mlp.out.weight, 0.75 * target + 0.25 * source)


def test_keys_are_the_second_view_through_the_target_in_groups():
    method = model("lewel_m")
    first, second = views()
    reference = copy.deepcopy(method)
    step = method(first, second, 0.9)
    z, aligned = split_bn(reference.target, second, 2)
    torch.testing.assert_close(step.keys, z)
    query = reference.online(first)
    expected = losses.aligned_info_nce(query.aligned, aligned, 0.2)
    torch.testing.assert_close(step.parts["aligned"], expected)
    expected = losses.info_nce(query.z, z, reference.queue.keys, 0.2)
    torch.testing.assert_close(step.parts["global"], expected)


@pytest.mark.parametrize(("name", "added"), [("lewel_m", 8), ("lewel_m-symmetric", 16)])
def test_keys_enter_the_queue_after_the_loss(name, added):
    method = model(name)
    before = method.queue.keys.clone()
    step = method(*views(), 0.9)
    torch.testing.assert_close(method.queue.keys, before, rtol=0, atol=0)
    method.finish(step, 0.9)
    torch.testing.assert_close(method.queue.keys[:added], losses.unit(step.keys))
    torch.testing.assert_close(method.queue.keys[added:], before[added:], rtol=0, atol=0)


@pytest.mark.parametrize("target", ["parameters", "eman"])
def test_target_statistics_are_averaged_with_eman_and_its_own_otherwise(target):
    method = model("lewel_b", target=target)
    start = method.target.encoder.bn1.running_mean.clone()
    train_step(method, momentum=0.75)
    online, followed = method.online.encoder.bn1, method.target.encoder.bn1
    assert followed.training == (target == "parameters")
    if target == "eman":
        torch.testing.assert_close(followed.running_mean, 0.75 * start + 0.25 * online.running_mean)
    else:
        assert followed.num_batches_tracked == 2  # both views went through it in train mode


def test_predictors_have_no_momentum_copy():
    assert not [key for key, _ in model("lewel_b").target.named_parameters() if "predictor" in key]


def test_spread_of_embeddings_is_one_on_the_sphere_and_zero_when_collapsed():
    assert watch.spread_of(torch.randn(4096, 64)) == pytest.approx(1, abs=0.02)
    assert watch.spread_of(torch.ones(64, 64) * torch.rand(64, 1)) == pytest.approx(0, abs=1e-6)


def test_mass_in_boxes_counts_cells_by_the_share_that_is_covered():
    maps = torch.tensor([[0.1, 0.2], [0.3, 0.4]]).view(1, 1, 2, 2)
    inside, area = watch.mass_in_boxes(
        maps, torch.tensor([[4.0, 0.0, 8.0, 6.0]]), 8
    )  # right half, upper three quarters
    assert inside.item() == pytest.approx(0.2 + 0.5 * 0.4)
    assert area.item() == pytest.approx(3 / 8)


def test_map_statistics_of_uniform_maps(monkeypatch):
    features = torch.rand(2, 4, 3, 3)
    uniform = torch.full((2, 8, 3, 3), 1 / 9)
    pooled = features.mean((2, 3)).unsqueeze(1).expand(-1, 2, -1)
    monkeypatch.setattr(watch, "maps_of", lambda method, images: (uniform, pooled, features))
    assert watch.map_statistics(None, None) == pytest.approx({"map_entropy": 1, "map_spread": 0}, abs=1e-6)


def test_groups_that_do_not_divide_the_channels_are_refused():
    run = replace(recipe("lewel_m"), heads=Heads(num_maps=15, num_groups=5))
    with pytest.raises(LewelError, match=r"heads\.num_groups must divide the 256 channels of tiny, got 5"):
        Model(run)
