"""The three losses against loops, and their values at the start of training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lewel.methods import losses


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return a @ b / (a.norm() * b.norm())


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_info_nce_against_a_loop():
    query, key, queue = normal(4, 6, seed=1), normal(4, 6, seed=2), losses.unit(normal(7, 6, seed=3))
    total = 0.0
    for q, k in zip(query, key, strict=True):
        positive = (cosine(q, k) / 0.2).exp()
        total -= (positive / (positive + sum((cosine(q, n) / 0.2).exp() for n in queue))).log()
    torch.testing.assert_close(losses.info_nce(query, key, queue, 0.2), total / 4, rtol=1e-12, atol=1e-12)


def test_aligned_info_nce_against_a_loop_without_the_same_image():
    query, key = normal(3, 4, 5, seed=1), normal(3, 4, 5, seed=2)
    total = 0.0
    for n in range(3):
        for i in range(4):
            positive = (cosine(query[n, i], key[n, i]) / 0.2).exp()
            others = sum((cosine(query[n, i], key[m, j]) / 0.2).exp() for m in range(3) if m != n for j in range(4))
            total -= (positive / (positive + others)).log()
    torch.testing.assert_close(losses.aligned_info_nce(query, key, 0.2), total / 12, rtol=1e-12, atol=1e-12)


def test_byol_distance_is_two_minus_twice_the_cosine():
    prediction, target = normal(3, 2, 5, seed=1), normal(3, 2, 5, seed=2)
    expected = sum(2 - 2 * cosine(prediction[n, i], target[n, i]) for n in range(3) for i in range(2)) / 6
    torch.testing.assert_close(losses.byol_distance(prediction, target), expected, rtol=1e-12, atol=1e-12)
    assert losses.byol_distance(target, 3 * target).abs() < 1e-12


@pytest.mark.parametrize("queue_size", [64, 4096])
def test_info_nce_starts_near_the_logarithm_of_the_number_of_candidates(queue_size):
    same = torch.ones(8, 16)  # an untrained network sends all images to about the same place
    queue = losses.unit(torch.ones(queue_size, 16))
    assert losses.info_nce(same, same, queue, 0.2).item() == pytest.approx(math.log(1 + queue_size), abs=1e-4)


def test_aligned_info_nce_starts_near_the_logarithm_of_the_number_of_candidates():
    same = torch.ones(8, 4, 16)
    assert losses.aligned_info_nce(same, same, 0.2).item() == pytest.approx(math.log(1 + 7 * 4), abs=1e-5)


def test_losses_are_float32_for_bfloat16_embeddings():
    half = torch.randn(4, 2, 8).bfloat16()
    queue = losses.unit(torch.randn(16, 8))
    assert losses.aligned_info_nce(half, half, 0.2).dtype == torch.float32
    assert losses.info_nce(half[:, 0], half[:, 1], queue, 0.2).dtype == torch.float32
    assert losses.byol_distance(half, half).dtype == torch.float32
