"""The four methods: what is trained, what follows, in which order, and where losses start."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from lewel import distributed
from lewel.errors import LewelError
from lewel.methods import losses
from lewel.methods.heads import MLP, CoupledHead
from lewel.methods.method import Method as Model
from lewel.methods.method import Pass
from lewel.methods.momentum import follow, split_bn
from lewel.methods.objectives.contrast import MoCoHead
from lewel.recipe.schema import Data, EncoderSettings, Heads, MethodSettings, Optim, Train
from lewel.run import optim

SWITCHES = {
    "moco_v2": MethodSettings(w_aligned=0.0),
    "lewel_m": MethodSettings(),
    "byol": MethodSettings(loss="byol", w_aligned=0.0),
    "lewel_b": MethodSettings(loss="byol"),
    "lewel_b-eman": MethodSettings(loss="byol", target="eman"),
    "lewel_m-symmetric": MethodSettings(symmetric=True),
}


def recipe(name: str, **changes) -> Train:
    return Train(
        data=Data(batch_size=8),
        encoder=EncoderSettings("tiny", stem="small"),
        heads=Heads(hidden=32, num_maps=16, num_groups=4, tau=0.7),
        method=replace(SWITCHES[name], queue=32, split_bn=2, **changes),
        optim=Optim(lr=0.1),
        backend="reference",
    )


def model(name: str, **changes) -> Model:
    torch.manual_seed(0)
    return Model(recipe(name, **changes))


def drifted(name: str, **changes) -> Model:
    """A method whose online network has left its target, to which it is equal at the start."""
    method = model(name, **changes)
    with torch.no_grad():
        for parameter in method.online.parameters():
            parameter.add_(0.2 * parameter.abs().mean() * torch.randn_like(parameter))
    return method


def views() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(8, 3, 16, 16, generator=generator)
    return first, first + 0.1 * torch.randn(8, 3, 16, 16, generator=generator)


def train_step(method: Model, momentum: float = 0.9) -> Pass:
    optimizer = optim.build(Optim(), method.named_parameters())
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    step = method(*views(), momentum)
    step.loss.backward()
    optimizer.step()
    method.finish(step.keys, momentum)
    return step


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_make_the_method(name):
    run = recipe(name)
    assert run.method.name == name.partition("-")[0]
    method = Model(run)
    assert hasattr(method.objective, "queue") == (run.method.loss == "infonce")
    assert hasattr(method.objective, "predictor") == (run.method.loss == "byol")
    assert hasattr(method.objective, "aligned_predictor") == (run.method.name == "lewel_b")
    assert hasattr(method.online, "aligned_head") == run.method.aligned
    head = CoupledHead if run.method.aligned else MoCoHead if name == "moco_v2" else MLP
    for network in (method.online, method.target):
        assert type(network.head) is head
        if run.method.aligned:
            assert (network.head.settings.tau, network.head.backend) == (0.7, "reference")


@pytest.mark.parametrize("name", SWITCHES)
def test_the_target_starts_as_a_copy(name):
    method = model(name)
    for mine, theirs in zip(method.target.parameters(), method.online.parameters(), strict=True):
        assert mine is not theirs
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["moco_v2", "byol"])
def test_without_maps_the_head_reads_the_mean_over_positions(name):
    network = model(name).online
    features = network.encoder(views()[0])
    torch.testing.assert_close(network(views()[0]).z, network.head(features.flatten(2).mean(2)))


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
    optimizer = optim.build(Optim(momentum=0.0, weight_decay=0.0), method.named_parameters())
    for group in optimizer.param_groups:
        group["lr"] = 0.003
    before = method(*views(), 1.0)
    before.loss.backward()
    optimizer.step()
    assert method(*views(), 1.0).loss < before.loss


@pytest.mark.parametrize("name", ["byol", "lewel_b"])
def test_byol_losses_are_sums_over_both_directions_and_start_near_four(name):
    method = drifted(name)
    first, second = views()
    step = method(first, second, 0.9)
    expected, aligned = 0.0, 0.0
    for query, key in ((first, second), (second, first)):
        online, target = method.online(query), method.target(key)
        expected += losses.byol_distance(method.objective.predictor(online.z), target.z).item()
        if name == "lewel_b":
            predicted = method.objective.aligned_predictor(online.aligned.flatten(0, 1)).unflatten(0, (8, 4))
            aligned += losses.byol_distance(predicted, target.aligned).item()
    assert step.parts["global"].item() == pytest.approx(expected, rel=1e-4)
    if name == "lewel_b":
        assert step.parts["aligned"].item() == pytest.approx(aligned, rel=1e-4)
    assert model(name)(first, second, 0.9).loss.item() == pytest.approx(4, abs=1)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_networks_run_in_the_precision_and_the_aligned_branch_in_float32(precision, dtype):
    method = Model(replace(recipe("lewel_m"), precision=precision))
    with method.autocast():
        z, aligned = method.online(views()[0])
    assert z.dtype == dtype
    assert aligned.dtype == torch.float32


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


def test_keys_are_the_second_view_through_the_followed_target_in_groups():
    method = drifted("lewel_m", temperature=0.13)
    first, second = views()
    reference = copy.deepcopy(method)
    step = method(first, second, 0.6)
    follow(reference.target, reference.online, 0.6, statistics=False)
    z, aligned = split_bn(reference.target, second, 2)
    torch.testing.assert_close(step.keys, z)
    query = reference.online(first)
    torch.testing.assert_close(step.z, query.z)
    expected = losses.aligned_info_nce(query.aligned, aligned, 0.13)
    torch.testing.assert_close(step.parts["aligned"], expected)
    expected = losses.info_nce(query.z, z, reference.objective.queue.keys, 0.13)
    torch.testing.assert_close(step.parts["global"], expected)


def test_plain_keys_take_their_statistics_over_the_whole_batch():
    """As queries do, also where split_bn is not one."""
    method = drifted("lewel_m", key_bn="plain")
    step = method(*views(), 1.0)
    torch.testing.assert_close(step.keys, method.target(views()[1]).z)


def test_a_process_that_is_not_the_first_contrasts_with_its_own_aligned_keys(monkeypatch):
    method = drifted("lewel_m")
    alone = copy.deepcopy(method)(*views(), 1.0)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "gather", lambda x: torch.cat([torch.randn_like(x), x]))
    torch.testing.assert_close(method(*views(), 1.0).parts, alone.parts)


def test_keys_are_shuffled_anew_in_every_view_pass_and_run():
    """By the images in the order that the target network sees them; the first pixel of each is its number."""
    method, seen = model("lewel_m-symmetric", key_bn="shuffle"), []
    method.target.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0, 0, 0].tolist()))
    first, second = views()
    for x in (first, second):
        x[:, 0, 0, 0] = torch.arange(8.0)
    for seed in (0, 1):
        method.seed = seed
        for draw in (0, 1, 2):
            method(first, second, 1.0, draw)
    assert all(sorted(order) == list(range(8)) for order in seen)
    assert len({tuple(order) for order in seen}) == len(seen) == 2 * 3 * 2


def test_a_symmetric_step_is_the_sum_of_both_directions_with_one_target():
    method = drifted("lewel_m-symmetric")
    first, second = views()
    reference = copy.deepcopy(method)
    step = method(first, second, 0.6)
    follow(reference.target, reference.online, 0.6, statistics=False)
    keys, parts = [], {"global": 0.0, "aligned": 0.0}
    for query, key in ((first, second), (second, first)):
        online, (z, aligned) = reference.online(query), split_bn(reference.target, key, 2)
        parts["global"] += losses.info_nce(online.z, z, reference.objective.queue.keys, 0.2)
        parts["aligned"] += losses.aligned_info_nce(online.aligned, aligned, 0.2)
        keys.append(z)
    torch.testing.assert_close(step.keys, torch.cat(keys))
    torch.testing.assert_close(step.parts, parts)


@pytest.mark.parametrize(("name", "added"), [("lewel_m", 8), ("lewel_m-symmetric", 16)])
def test_keys_enter_the_queue_after_the_loss(name, added):
    method = model(name)
    before = method.objective.queue.keys.clone()
    step = method(*views(), 0.9)
    torch.testing.assert_close(method.objective.queue.keys, before, rtol=0, atol=0)
    method.finish(step.keys, 0.9)
    torch.testing.assert_close(method.objective.queue.keys[:added], losses.unit(step.keys))
    torch.testing.assert_close(method.objective.queue.keys[added:], before[added:], rtol=0, atol=0)


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


def test_groups_that_do_not_divide_the_channels_are_refused():
    run = replace(recipe("lewel_m"), heads=Heads(num_maps=15, num_groups=5))
    with pytest.raises(LewelError, match=r"heads\.num_groups must divide the 256 channels of tiny, got 5"):
        Model(run)
