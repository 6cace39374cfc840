"""The layer: the op with its projection as parameters, and nothing of its own but their first values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_cases import OpCase, make

from lewel_kernels import AlignAggregate, fused_align_aggregate

CASE = OpCase("usual", N=3, C=16, D=12, K=8, G=2, space=(5, 3), bias=True, affine=True)
# None of them the default.
OPTIONS: dict[str, Any] = {
    "num_groups": 2,
    "temperature": 0.3,
    "eps": 6.0,
    "out_dtype": torch.float64,
    "backend": "reference",
}


def layer(**changes: Any) -> AlignAggregate:
    torch.manual_seed(0)
    return AlignAggregate(12, 8, bias=True, **{**OPTIONS, **changes})


@pytest.mark.parametrize("with_affine", [False, True], ids=["pixels", "affine"])
@pytest.mark.parametrize("return_maps", [False, True], ids=["pooled", "pooled_and_maps"])
def test_it_is_the_op(return_maps: bool, with_affine: bool) -> None:
    inputs, module = make(CASE, dtype=torch.float32), layer()
    assert module.bias is not None
    torch.nn.init.normal_(module.bias)
    options: dict[str, Any] = {"pixels_affine": inputs.affine if with_affine else None, "return_maps": return_maps}
    found = module(inputs.features, inputs.pixels, **options)
    expected = fused_align_aggregate(
        inputs.features, module.weight, module.bias, pixels=inputs.pixels, **options, **OPTIONS
    )
    for a, b in zip(found, expected, strict=True) if return_maps else [(found, expected)]:
        assert torch.equal(a, b)


@pytest.mark.parametrize("option", ["num_groups", "temperature", "eps", "out_dtype"])
def test_each_option_counts(option: str) -> None:
    """Otherwise the test above would not see one that is dropped."""
    inputs = make(CASE, dtype=torch.float32)
    default = {"num_groups": 4, "temperature": 1.0, "eps": 1e-12, "out_dtype": None}[option]
    found, other = (module(inputs.features, inputs.pixels) for module in (layer(), layer(**{option: default})))
    assert found.dtype != other.dtype or found.shape != other.shape or not torch.equal(found, other)


def test_without_pixels_the_features_are_projected() -> None:
    module = AlignAggregate(16, 8, backend="reference")
    x = torch.randn(2, 16, 9)
    assert module.bias is None
    assert torch.equal(module(x), fused_align_aggregate(x, module.weight, backend="reference"))


def test_the_first_weights_are_kaiming_normal_by_fan_out() -> None:
    torch.manual_seed(0)
    module = AlignAggregate(600, 200, bias=True)
    assert module.weight.shape == (200, 600)
    assert module.weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert module.weight.abs().max() > 3 * module.weight.std()  # normal, not uniform
    assert abs(module.weight.mean().item()) < 0.002
    assert torch.equal(module.bias, torch.zeros(200))
    first = module.weight.detach().clone()
    module.reset_parameters()
    assert not torch.equal(module.weight, first)


def test_parameters_are_where_and_what_is_asked() -> None:
    module = AlignAggregate(6, 4, bias=True, device="meta", dtype=torch.bfloat16)
    assert {(x.device.type, x.dtype) for x in module.parameters()} == {("meta", torch.bfloat16)}
    assert [name for name, _ in module.named_parameters()] == ["weight", "bias"]


def test_tensors_without_contents_give_results_without_contents() -> None:
    module = AlignAggregate(6, 4, num_groups=2, device="meta")
    pooled, maps = module(torch.empty(3, 8, 9, device="meta"), torch.empty(3, 6, 9, device="meta"), return_maps=True)
    assert (pooled.shape, maps.shape) == ((3, 2, 8), (3, 4, 9))
    assert pooled.is_meta
    assert maps.is_meta


def test_repr_shows_what_was_asked() -> None:
    assert "12, 8, num_groups=2, temperature=0.3, bias=True, backend=reference (demanded by" in repr(layer())
    assert "16, 8, num_groups=4, temperature=1.0, bias=False, backend=" in repr(AlignAggregate(16, 8))
