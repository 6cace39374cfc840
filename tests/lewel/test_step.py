"""One optimizer step: passes that accumulate, the gradient scaler, and draws that only seed, step and process fix."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from tiny_runs import METHODS, TINY, assert_equal, losses_of, run_in

from lewel import distributed
from lewel.methods import losses
from lewel.methods.method import Method
from lewel.recipe.schema import Optim, Train
from lewel.run import session
from lewel.run.step import Stepper

PASSES = list(torch.randn(2, 2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def stepper(run: Train) -> Stepper:
    method, optimizer = session.build(run, torch.device("cpu"))
    scaler = torch.amp.GradScaler("cpu", enabled=run.precision == "fp16", init_scale=1024.0)
    return Stepper(method, method, optimizer, scaler)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_the_passes_are_averaged_and_the_target_follows_once(name):
    ours = stepper(replace(TINY, method=METHODS[name]))
    with torch.no_grad():
        for parameter in ours.method.online.parameters():  # which the target then has to follow
            parameter.mul_(1.1)
    by_hand = copy.deepcopy(ours.method)
    outcome = ours.take(PASSES, 2, step=0, lr=0.1, momentum=0.6)
    steps = [by_hand(*views, 0.6 if number == 0 else None, number) for number, views in enumerate(PASSES)]
    trained = [p for p in by_hand.parameters() if p.requires_grad]
    both = [torch.autograd.grad(step.loss, trained) for step in steps]
    with torch.no_grad():
        for p, first, second in zip(trained, *both, strict=True):
            p.sub_(0.1 * ((first + second) / 2 + TINY.optim.weight_decay * p))
    keys = [step.keys for step in steps if step.keys is not None]
    by_hand.finish(torch.cat(keys) if keys else None, 0.6)
    mine, theirs = ours.method.state_dict(), by_hand.state_dict()
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(mine[key], value, msg=lambda m, key=key: f"{key}: {m}")
    torch.testing.assert_close(outcome.loss, sum(step.loss for step in steps).detach() / 2)
    for part, loss in outcome.parts.items():
        torch.testing.assert_close(loss, sum(step.parts[part] for step in steps).detach() / 2)
    torch.testing.assert_close(outcome.z, steps[-1].z)


def test_the_keys_of_all_passes_enter_the_queue():
    ours = stepper(TINY)
    before = ours.method.objective.queue.keys.clone()
    keys = []
    method_forward = Method.forward

    def keep(method: Method, *arguments):
        keys.append((step := method_forward(method, *arguments)).keys)
        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Method, "forward", keep)
        ours.take(PASSES, 2, step=0, lr=0.1, momentum=0.6)
    torch.testing.assert_close(ours.method.objective.queue.keys[:16], losses.unit(torch.cat(keys)))
    assert torch.equal(ours.method.objective.queue.keys[16:], before[16:])
    assert ours.method.objective.queue.pointer == 16


def test_schedules_of_an_accumulating_run_count_optimizer_steps(tmp_path, finished):
    plain, twice = finished, run_in(tmp_path, replace(TINY, accumulate=2))
    assert twice.steps_done == plain.steps_done == 9
    assert len(losses_of(twice)) == 9
    lrs = [[group["lr"] for group in s.optimizer.param_groups] for s in (plain, twice)]
    assert lrs[0] == lrs[1]
    assert losses_of(twice) != losses_of(plain)  # other batches for batch norm


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_fp16_skips_a_step_that_overflowed_and_takes_the_next(name):
    ours = stepper(replace(TINY, precision="fp16", optim=Optim(name=name, decay_all=False)))
    before = copy.deepcopy(ours.method.online.state_dict())
    ours.scaler._init_scale = 2.0**100  # before its first use
    ours.take(PASSES[:1], 1, step=0, lr=0.1, momentum=0.9)
    weights = [key for key, _ in ours.method.online.named_parameters()]
    after = ours.method.online.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in weights)
    assert ours.scaler.get_scale() == 2.0**99
    ours.scaler.update(1024.0)
    ours.take(PASSES[:1], 1, step=1, lr=0.1, momentum=0.9)
    after = ours.method.online.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(before[weights[0]], after[weights[0]])


def test_draws_depend_on_the_step_and_not_on_what_was_drawn_before():
    ours = stepper(replace(TINY, heads=replace(TINY.heads, maps="random")))
    other = copy.deepcopy(ours)
    torch.randn(3)
    same = other.take(PASSES[:1], 1, step=7, lr=0.1, momentum=0.9)
    torch.randn(5)
    assert torch.equal(ours.take(PASSES[:1], 1, step=7, lr=0.1, momentum=0.9).loss, same.loss)
    assert_equal(ours.method.state_dict(), other.method.state_dict())


def test_draws_differ_between_processes_seeds_steps_and_passes(monkeypatch):
    """All else is equal, weights and images too: only the draws can make random maps pool them differently."""
    run, pooled = replace(TINY, heads=replace(TINY.heads, maps="random"), method=METHODS["lewel_b-eman"]), []
    start = stepper(run)
    views = [PASSES[0]] * 2
    for rank, seed, step in itertools.product((0, 1), (0, 1), range(3)):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        ours = copy.deepcopy(start)
        ours.method.seed = seed
        ours.method.online.head.register_forward_hook(lambda *call: pooled.append(call[-1][1].detach()))
        ours.take(views, 2, step=step, lr=0.0, momentum=1.0)
    assert len(pooled) == 2 * 2 * 3 * 2 * 2  # of both views
    assert len({tuple(R[0, 0].tolist()) for R in pooled}) == len(pooled)


def test_a_method_draws_by_the_seed_of_its_run():
    assert [stepper(replace(TINY, seed=seed)).method.seed for seed in (3, 4)] == [3, 4]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.usefixtures("narrow")  # a CPU multiplies in fp16 slowly
def test_a_run_in_16_bits_keeps_weights_in_float32_and_resumes_bitwise(precision, tmp_path):
    run = replace(TINY, precision=precision, method=METHODS["lewel_b-eman"], epochs=2)
    whole = run_in(tmp_path / "whole", run)
    assert {p.dtype for p in whole.method.parameters()} == {torch.float32}
    run_in(tmp_path / "killed", run, epochs=1)
    resumed = run_in(tmp_path / "killed", run, resume=tmp_path / "killed" / "checkpoints" / "step-00000003.pt")
    assert_equal(whole.method.state_dict(), resumed.method.state_dict())
    assert whole.scaler.state_dict() == resumed.scaler.state_dict()
