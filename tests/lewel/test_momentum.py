"""How the momentum network follows, and which BN statistics it uses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lewel.errors import LewelError
from lewel.methods.momentum import follow, split_bn


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    target = copy.deepcopy(online)
    nn.init.normal_(online[0].weight)
    online(torch.randn(8, 3))
    return target, online


@pytest.mark.parametrize("statistics", [False, True], ids=["parameters", "eman"])
def test_follow_averages_parameters_and_with_eman_the_bn_statistics(statistics):
    target, online = networks()
    before = copy.deepcopy(target)
    follow(target, online, 0.9, statistics=statistics)
    torch.testing.assert_close(target[0].weight, 0.9 * before[0].weight + 0.1 * online[0].weight)
    if statistics:
        torch.testing.assert_close(target[1].running_var, 0.9 * before[1].running_var + 0.1 * online[1].running_var)
        torch.testing.assert_close(target[1].running_mean, 0.9 * before[1].running_mean + 0.1 * online[1].running_mean)
        assert target[1].num_batches_tracked == online[1].num_batches_tracked == 1
    else:
        torch.testing.assert_close(target[1].running_var, before[1].running_var, rtol=0, atol=0)
        assert target[1].num_batches_tracked == 0


def test_split_bn_normalises_every_group_by_its_own_statistics():
    norm = nn.BatchNorm2d(2).double()
    images = torch.randn(6, 2, 3, 3, dtype=torch.float64) + torch.arange(6).view(6, 1, 1, 1)
    (split,) = split_bn(lambda x: (norm(x),), images, 3)
    for group, result in zip(images.chunk(3), split.chunk(3), strict=True):
        mean, variance = group.mean((0, 2, 3), keepdim=True), group.var((0, 2, 3), keepdim=True, unbiased=False)
        torch.testing.assert_close(result, (group - mean) / (variance + 1e-5).sqrt(), rtol=1e-12, atol=1e-12)


def test_split_bn_of_groups_that_are_not_equal_is_a_sentence():
    """chunk would make groups of 3, 3 and 1 image, or fewer groups than asked for."""
    with pytest.raises(LewelError, match="groups of equal size, got 7 images for 3 groups; choose another"):
        split_bn(lambda x: (x,), torch.zeros(7, 2), 3)
