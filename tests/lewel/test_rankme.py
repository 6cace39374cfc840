"""RankMe against the singular values that NumPy finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lewel.evaluation import rankme as module
from lewel.evaluation.rankme import rankme

DRAW = torch.Generator().manual_seed(0)


def by_numpy(features: torch.Tensor) -> float:
    singular = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = singular / singular.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize(("rows", "width"), [(300, 40), (40, 300), (64, 64)], ids=["long", "wide", "square"])
@pytest.mark.parametrize("block", [7, 1024])
def test_is_that_of_the_singular_values(rows, width, block, monkeypatch):
    """Of features that are no more centred than those after a ReLU are, in blocks or in one."""
    monkeypatch.setattr(module, "BLOCK", block)
    features = torch.randn(rows, width, generator=DRAW).relu() * torch.logspace(0, -3, width)
    assert rankme(features) == pytest.approx(by_numpy(features), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 5, 32])
def test_of_r_equal_directions_is_r(rank):
    left, _ = torch.linalg.qr(torch.randn(200, rank, dtype=torch.float64, generator=DRAW))
    right, _ = torch.linalg.qr(torch.randn(64, rank, dtype=torch.float64, generator=DRAW))
    assert rankme(left @ right.T) == pytest.approx(rank, rel=1e-3)
    assert rankme((left @ right.T).float()) == pytest.approx(rank, rel=1e-3)


def test_scale_repeated_rows_and_rows_of_zeros_change_nothing():
    features = torch.randn(100, 20, generator=DRAW)
    expected = pytest.approx(rankme(features), rel=1e-6)
    assert [rankme(scale * features) for scale in (0.01, 100)] == [expected, expected]
    assert rankme(features.repeat(3, 1)) == expected
    assert rankme(torch.cat([features, torch.zeros(9, 20)])) == expected


def test_of_nothing_and_of_what_is_not_finite():
    """Collapsed features are one direction, or none; an overflow has no rank."""
    assert rankme(torch.ones(10, 4)) == pytest.approx(1, abs=1e-4)
    assert rankme(torch.zeros(10, 4)) == pytest.approx(1, abs=1e-4)
    assert math.isnan(rankme(torch.tensor([[1.0, math.inf], [0.0, 1.0]])))
