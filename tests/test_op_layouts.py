"""Strides: every layout of the inputs and of the gradient that comes back gives the result of contiguous tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from op_cases import OpCase, OpInputs, make, run_eager, run_op
from torch import Tensor

pytestmark = pytest.mark.usefixtures("poisoned")

CASES = (
    OpCase("pixels", N=3, C=40, D=24, K=16, G=4, space=(5, 7), bias=True),
    OpCase("shared", N=3, C=32, D=None, K=8, G=2, space=(4, 4)),
)
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp64": 1e-11, "fp32": 1e-4, "bf16": 6e-2}

Layout = Callable[[Tensor], Tensor]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) inside rows (N, 1 + P, C) whose first row is another token, as LEWEL's coupled head has it."""
    rows = x.flatten(2).transpose(1, 2)
    return torch.cat([torch.full_like(rows[:, :1], 7.0), rows], 1)[:, 1:].transpose(1, 2).unflatten(2, x.shape[2:])


def _narrowed_channels(x: Tensor) -> Tensor:
    other = torch.full_like(x[:, :3], 7.0)
    return torch.cat([other, x, other], 1)[:, 3:-3]


def _narrowed_width(x: Tensor) -> Tensor:
    other = torch.full_like(x[..., :1], 7.0)
    return torch.cat([other, x, other], -1)[..., 1:-1]


def _odd_offset(x: Tensor) -> Tensor:
    return torch.cat([x.new_full((1,), 7.0), x.flatten()])[1:].view(x.shape)


def _batch_last(x: Tensor) -> Tensor:
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def _every_other_column(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, 7.0)], -1).flatten(-2)[..., ::2]


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def _expanded(dim: int) -> Layout:
    return lambda x: x.narrow(dim, 0, 1).expand_as(x)


LAYOUTS: dict[str, Layout] = {
    "channels_last": _channels_last,
    "rows": _rows,
    "narrowed_channels": _narrowed_channels,
    "narrowed_width": _narrowed_width,
    "odd_offset": _odd_offset,
    "batch_last": _batch_last,
    "every_other_column": _every_other_column,
    "transposed": _transposed,
    "expanded_batch": _expanded(0),
    "expanded_channels": _expanded(1),
    "expanded_rows": _expanded(2),
}
GRADIENT_LAYOUTS: dict[str, Layout] = {
    "transposed": _transposed,
    "narrowed": _narrowed_width,
    "narrowed_vectors": lambda x: torch.cat([x, x], 1)[:, x.shape[1] :],
    "odd_offset": _odd_offset,
    "every_other": _every_other_column,
    "batch_last": _batch_last,
    "expanded_batch": _expanded(0),
    "expanded_vectors": _expanded(1),
    "expanded_channels": _expanded(2),
    "of_a_sum": lambda x: x.new_ones(()).expand_as(x),
}


def compare(inputs: OpInputs, backend: str, dtype: str) -> dict[str, Tensor]:
    found = run_op(inputs, backend, temperature=0.3, return_maps=True)
    expected = run_eager(inputs.to(torch.float64), temperature=0.3, return_maps=True)
    for name, x in found.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(x.double(), expected[name], rtol=0, atol=TOLERANCE[dtype] * scale, msg=name)
    return found


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["features", "pixels", "both", "shared"])
def test_inputs(which: str, layout: str, dtype: str, backend: str, device: torch.device) -> None:
    inputs = make(CASES[which == "shared"], dtype=DTYPES[dtype], device=device)
    if which != "pixels":
        inputs.features = leaf(LAYOUTS[layout](inputs.features.detach()))
    if inputs.pixels is not None and which != "features":
        inputs.pixels = leaf(LAYOUTS[layout](inputs.pixels.detach()))
    found = compare(inputs, backend, dtype)
    for name in ("features", "pixels"):
        if (x := getattr(inputs, name)) is not None:
            gradient = found[f"d_{name}"]
            assert gradient.stride() == torch.empty_like(x.flatten(2)).view(x.shape).stride(), f"layout of d_{name}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["transposed", "narrowed", "odd_offset", "expanded"])
def test_parameters(layout: str, dtype: str, backend: str, device: torch.device) -> None:
    inputs = make(CASES[0], dtype=DTYPES[dtype], device=device)
    weight, bias = inputs.weight.detach(), inputs.bias
    assert bias is not None
    changed = {
        "transposed": lambda: (_transposed(weight), bias),
        "narrowed": lambda: (_narrowed_width(weight), _every_other_column(bias.detach())),
        "odd_offset": lambda: (_odd_offset(weight), _odd_offset(bias.detach())),
        "expanded": lambda: (weight, _expanded(0)(bias.detach())),
    }[layout]()
    inputs.weight, inputs.bias = leaf(changed[0]), leaf(changed[1])
    compare(inputs, backend, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", GRADIENT_LAYOUTS)
@pytest.mark.parametrize("of", ["pooled", "maps"])
def test_incoming_gradients(of: str, layout: str, dtype: str, backend: str, device: torch.device) -> None:
    inputs = make(CASES[0], dtype=DTYPES[dtype], device=device)
    if of == "pooled":
        changed = replace(inputs, grad_pooled=GRADIENT_LAYOUTS[layout](inputs.grad_pooled))
    else:
        changed = replace(inputs, grad_maps=GRADIENT_LAYOUTS[layout](inputs.grad_maps))
    compare(changed, backend, dtype)


def test_channels_last_gradients_stay_channels_last(backend: str, device: torch.device) -> None:
    inputs = make(CASES[0], dtype=torch.float32, device=device)
    inputs.features = leaf(_channels_last(inputs.features.detach()))
    gradient = run_op(inputs, backend)["d_features"]
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_weight_of_a_convolution(backend: str, device: torch.device) -> None:
    """(K, D), (K, D, 1) and (K, D, 1, 1) are the same projection; the gradient has the shape that was given."""
    plain = run_op(make(CASES[0], device=device), backend)
    for ones in ((1,), (1, 1)):
        inputs = make(CASES[0], device=device)
        inputs.weight = leaf(inputs.weight.detach().reshape(*inputs.weight.shape, *ones))
        found = run_op(inputs, backend)
        assert torch.equal(found["pooled"], plain["pooled"])
        assert torch.equal(found["d_weight"], plain["d_weight"].reshape(inputs.weight.shape))
