"""E5 alone, with maps from anywhere: the pictures one has in mind of aligned pooling."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from lewel_kernels import align_aggregate

N, C, H, W, K, G = 3, 12, 4, 5, 6, 2
L = K // G


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(N, C, H, W, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_uniform_maps_are_global_average_pooling(features: torch.Tensor) -> None:
    maps = torch.full((N, K, H, W), 1 / (H * W), dtype=torch.float64)
    expected = features.mean((2, 3)).unsqueeze(1).expand(N, L, C)
    torch.testing.assert_close(align_aggregate(features, maps, G), expected)


def test_one_hot_maps_pick_pixels(features: torch.Tensor) -> None:
    maps = torch.zeros(N, K, H, W, dtype=torch.float64)
    maps[:, :, 2, 3] = 1
    torch.testing.assert_close(align_aggregate(features, maps, G), features[:, :, 2, 3].unsqueeze(1).expand(N, L, C))


def test_box_maps_pool_regions(features: torch.Tensor) -> None:
    maps = torch.zeros(N, K, H, W, dtype=torch.float64)
    maps[:, :, 1:3, :2] = 1 / 4
    expected = features[:, :, 1:3, :2].mean((2, 3)).unsqueeze(1).expand(N, L, C)
    torch.testing.assert_close(align_aggregate(features, maps, G), expected)


def test_group_g_of_vector_l_is_pooled_with_map_gL_plus_l(features: torch.Tensor) -> None:
    # Map k looks at position k alone, so the result says which map pooled which channel.
    maps = torch.zeros(N, K, H * W, dtype=torch.float64)
    maps[:, range(K), range(K)] = 1
    pooled = align_aggregate(features, maps, G)
    flat = features.flatten(2)
    for l in range(L):
        for c in range(C):
            g = c // (C // G)
            assert torch.equal(pooled[:, l, c], flat[:, c, g * L + l])


def test_one_group_pools_all_channels_with_every_map(features: torch.Tensor) -> None:
    maps = torch.rand(N, K, H * W, dtype=torch.float64)
    torch.testing.assert_close(align_aggregate(features, maps, 1), maps @ features.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_gradients(features: torch.Tensor, check) -> None:  # type: ignore[no-untyped-def]
    x = features[:1, :4, :2, :2].clone().requires_grad_()
    maps = torch.rand(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert check(lambda f, m: align_aggregate(f, m, 2), (x, maps))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_keeps_the_dtype_of_features(features: torch.Tensor, dtype: torch.dtype) -> None:
    maps = torch.rand(N, K, H, W).to(dtype)
    pooled = align_aggregate(features.to(dtype), maps, G)
    assert pooled.dtype == dtype
    torch.testing.assert_close(
        pooled.double(), align_aggregate(features.to(dtype).double(), maps.double(), G), rtol=1e-2, atol=1e-1
    )
