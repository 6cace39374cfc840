"""Whole runs of a vision transformer, with AdamW and LARS."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_runs import METHODS, TINY, assert_equal, assert_same, losses_of, run_in, weights

from lewel.cost import memory
from lewel.recipe.schema import EncoderSettings, Optim
from lewel.run import checkpoint
from lewel.run.session import build

VIT = replace(
    TINY,
    encoder=EncoderSettings("timm/vit_tiny_patch16_224", "imagenet"),
    method=METHODS["lewel_b-eman"],
    optim=Optim("adamw", lr=0.005, decay_all=False),
    epochs=2,
)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_resumed_run_ends_bitwise_as_the_uninterrupted_one(precision, tmp_path):
    run = replace(VIT, precision=precision)
    whole = run_in(tmp_path / "whole", run)
    run_in(tmp_path / "killed", run, epochs=1)
    resumed = run_in(tmp_path / "killed", run, resume=checkpoint.found(tmp_path / "killed" / "checkpoints")[-1])
    assert_same(resumed, whole)
    assert_equal(resumed.probe.state_dict(), whole.probe.state_dict())
    assert whole.probe.fast.any()
    assert losses_of(resumed) == losses_of(whole)
    assert all(math.isfinite(loss) for loss in losses_of(whole))
    for mine, theirs in zip(resumed.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in ("step", "exp_avg", "exp_avg_sq"))
        assert mine["step"] > 0


@pytest.mark.parametrize("optim", [VIT.optim, Optim("lars", lr=0.5, decay_all=False)], ids=["adamw", "lars"])
def test_tokens_and_positions_are_trained_without_decay(optim, tmp_path):
    run = replace(VIT, optim=optim, epochs=1)
    session = run_in(tmp_path, run)
    fresh, _ = build(run, torch.device("cpu"))
    for name in ("cls_token", "pos_embed"):
        key = f"online.encoder.model.{name}"
        assert not torch.equal(weights(session)[key], fresh.state_dict()[key])
        parameter = session.method.get_parameter(key)
        assert [any(p is parameter for p in group["params"]) for group in session.optimizer.param_groups] == [0, 1]


def test_memory_is_counted_with_both_moments():
    needed = memory.expect(VIT)
    real, optimizer = build(VIT, torch.device("cpu"))
    tensors = sum(len(group["params"]) for group in optimizer.param_groups)
    trained = sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert (needed.trained, needed.optimizer) == (trained, 2 * 4 * trained + 4 * tensors)
    assert needed.activations > 0
