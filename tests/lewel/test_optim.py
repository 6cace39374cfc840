"""LARS by hand, and what is left out of decay and scaling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lewel import optim
from lewel.config import Optim


def parameters() -> tuple[nn.Parameter, nn.Parameter]:
    matrix = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
    vector = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    return matrix, vector


def two_steps(optimizer: torch.optim.Optimizer, matrix: nn.Parameter, vector: nn.Parameter, lrs: list[float]) -> None:
    for lr in lrs:
        matrix.grad = torch.full_like(matrix, 0.5)
        vector.grad = torch.full_like(vector, 2.0)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()


def test_lars_by_hand_with_the_learning_rate_inside_the_velocity():
    matrix, vector = parameters()
    settings = Optim(name="lars", weight_decay=0.1, decay_all=False)
    two_steps(optim.build(settings, [matrix, vector]), matrix, vector, [0.2, 0.6])

    w, v = parameters()
    w, v = w.detach().clone(), v.detach().clone()
    w_velocity, v_velocity = torch.zeros_like(w), torch.zeros_like(v)
    for lr in (0.2, 0.6):
        g = torch.full_like(w, 0.5)
        local = 1e-3 * w.norm() / (g.norm() + 0.1 * w.norm())
        w_velocity = 0.9 * w_velocity + (g + 0.1 * w) * local * lr
        w = w - w_velocity
        v_velocity = 0.9 * v_velocity + 2.0 * lr  # ndim 1: no decay, no local rate
        v = v - v_velocity
    torch.testing.assert_close(matrix.detach(), w, rtol=1e-12, atol=0)
    torch.testing.assert_close(vector.detach(), v, rtol=1e-12, atol=0)


@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_lars_takes_the_plain_rate_where_the_local_one_is_undefined(zero):
    weight = nn.Parameter(torch.zeros(2, 2) if zero == "weight" else torch.ones(2, 2))
    optimizer = optim.build(Optim(name="lars", weight_decay=0.0, decay_all=False), [weight])
    weight.grad = torch.ones(2, 2) if zero == "weight" else torch.zeros(2, 2)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.5
    optimizer.step()
    assert weight.detach().unique().tolist() == [-0.5 if zero == "weight" else 1.0]


@pytest.mark.parametrize("decay_all", [True, False], ids=["decay-all", "decay-matrices"])
def test_sgd_decays_biases_only_where_the_recipe_says(decay_all):
    matrix, vector = parameters()
    two_steps(optim.build(Optim(weight_decay=0.1, decay_all=decay_all), [matrix, vector]), matrix, vector, [0.5])
    decay = 0.1 if decay_all else 0.0
    torch.testing.assert_close(vector.detach(), torch.tensor([1.0, -2.0]).double() * (1 - 0.5 * decay) - 1.0)
    torch.testing.assert_close(matrix.detach()[1, 1].item(), 4 - 0.5 * (0.5 + 0.1 * 4))


def test_frozen_parameters_are_not_optimized():
    frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    matrix, vector = parameters()
    groups = optim.build(Optim(), [frozen, matrix, vector]).param_groups
    assert [p is frozen for group in groups for p in group["params"]] == [False, False]
