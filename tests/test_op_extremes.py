"""The edges of the number range: the eps branch, one-hot maps, the largest float16, NaN and infinity."""

from __future__ import annotations

import math

import pytest
import torch
from op_cases import OpCase, OpInputs, make, run_eager, run_op
from torch import Tensor

from lewel_kernels import fused_align_aggregate

pytestmark = pytest.mark.usefixtures("poisoned")

CASE = OpCase("extreme", N=3, C=24, D=16, K=8, G=2, space=(4, 5))
FLOATS = {"fp64": torch.float64, "fp32": torch.float32}
ALL = {**FLOATS, "bf16": torch.bfloat16, "fp16": torch.float16}
RELATIVE = {"fp64": 1e-10, "fp32": 1e-4, "bf16": 6e-2, "fp16": 1e-2}


def edit(x: Tensor | None) -> Tensor:
    """The values of a leaf, to be changed in place."""
    assert x is not None
    return x.detach()


def close(found: dict[str, Tensor], expected: dict[str, Tensor], dtype: str) -> None:
    for name, x in found.items():
        assert x.isfinite().all(), name
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(x.double(), expected[name], rtol=0, atol=RELATIVE[dtype] * scale, msg=name)


@pytest.mark.parametrize("dtype", FLOATS)
def test_zero_pixels_take_the_eps_branch(dtype: str, backend: str, device: torch.device) -> None:
    """A pixel whose heat is zero has the constant eps as its norm: unit maps zero, gradient dM = dMh / eps (E9)."""
    inputs = make(CASE, dtype=FLOATS[dtype], device=device)
    edit(inputs.pixels)[:, :, 1, 2:] = 0
    edit(inputs.pixels)[0] = 0
    found = run_op(inputs, backend, return_maps=True)
    close(found, run_eager(inputs.to(torch.float64), return_maps=True), dtype)
    torch.testing.assert_close(found["maps"][0], torch.full_like(found["maps"][0], 1 / 20))
    assert found["d_pixels"][0].abs().max() > 1e9


@pytest.mark.parametrize("dtype", ALL)
def test_norms_below_eps_have_no_projection_term(dtype: str, backend: str, device: torch.device) -> None:
    """A large eps puts about half of the pixels on each side of the branch."""
    inputs = make(CASE, dtype=ALL[dtype], device=device)
    norms = (edit(inputs.weight) @ edit(inputs.pixels).flatten(2)).double().norm(dim=1)
    eps = norms.median().item()
    # Halfway between two norms: none may change sides by being rounded.
    eps = (eps + norms[norms > eps].min().item()) / 2
    found = run_op(inputs, backend, temperature=0.3, eps=eps)
    close(found, run_eager(inputs.to(torch.float64), temperature=0.3, eps=eps), dtype)


@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
@pytest.mark.parametrize("eps", [0.0, 1e-45, 1e-40, 1e-30, 1e30, 3e38, math.inf], ids=str)
def test_an_eps_far_from_the_usual_one(eps: float, compiled: bool, backend: str, device: torch.device) -> None:
    """Also of one image's zero pixels: NaN where eps is 0, uniform maps where its inverse is too large for float32."""
    inputs = make(CASE, dtype=torch.float32, device=device)
    edit(inputs.pixels)[0, :, :2] = 0
    if compiled:
        pooled = torch.compile(fused_align_aggregate, fullgraph=True, backend="aot_eager")(
            inputs.features, inputs.weight, pixels=inputs.pixels, num_groups=CASE.G, eps=eps, backend=backend
        )
        assert torch.equal(pooled.isnan(), run_eager(inputs, temperature=1.0, eps=eps)["pooled"].isnan())
        return
    found = run_op(inputs, backend, temperature=0.5, return_maps=True, eps=eps)
    expected = run_eager(inputs, temperature=0.5, return_maps=True, eps=eps)
    for name in ("pooled", "maps"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)
    # The gradient of a zero pixel is dM / eps: beyond float32 it is infinite or NaN, as it comes.
    others = {name: (found[name][1:], expected[name][1:]) for name in ("d_features", "d_pixels")}
    for name, (a, b) in others.items():
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * b.abs().max().item(), msg=name)


@pytest.mark.parametrize("dtype", ALL)
def test_a_norm_of_exactly_eps_is_the_constant(dtype: str, backend: str, device: torch.device) -> None:
    """As E9 has it: there the gradient of the projection has no radial part, and just above eps it has."""
    case = OpCase("pythagoras", N=1, C=2, D=2, K=2, G=1, space=(3,))
    inputs = make(case, dtype=ALL[dtype], device=device)
    edit(inputs.weight).copy_(torch.eye(2))
    edit(inputs.pixels).copy_(torch.tensor([[[3.0, 6.0, 1.0], [4.0, 8.0, 2.0]]]))  # of norms 5, 10 and less

    def radial(eps: float) -> list[bool]:
        d_pixels = run_op(inputs, backend, temperature=1.0, eps=eps)["d_pixels"].double()
        along = (d_pixels * edit(inputs.pixels)).sum(1).flatten()
        return (along.abs() > 0.05 * d_pixels.norm(dim=1).flatten()).tolist()

    assert radial(5.0) == [True, False, True]  # of what comes in; none is left where a norm is above eps
    assert radial(4.0) == [False, False, True]


@pytest.mark.parametrize("dtype", FLOATS)
def test_small_maps_are_accurate(dtype: str, backend: str, device: torch.device) -> None:
    """Each to its own size, down to the least normal float32."""
    inputs = make(CASE, dtype=FLOATS[dtype], device=device)
    found = run_op(inputs, backend, temperature=0.018, return_maps=True)["maps"].double()
    truth = run_eager(inputs.to(torch.float64), temperature=0.018, return_maps=True)["maps"]
    assert torch.finfo(torch.float32).tiny < truth.min() < 1e-36
    torch.testing.assert_close(found, truth, rtol={"fp64": 1e-12, "fp32": 1e-4}[dtype], atol=0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", [1e-3, 1e-4])
def test_one_hot_maps(temperature: float, dtype: str, backend: str, device: torch.device) -> None:
    """Logits of 1e3 and 1e4: exp without a running maximum overflows."""
    inputs = make(CASE, dtype=FLOATS[dtype], device=device)
    found = run_op(inputs, backend, temperature=temperature, return_maps=True)
    truth = run_eager(inputs.to(torch.float64), temperature=temperature, return_maps=True)
    peaks = found["maps"].max(-1)
    assert (peaks.values > 0.99).double().mean() > 0.8
    assert torch.equal(peaks.indices, truth["maps"].argmax(-1))
    # A logit of 1e4 known to 24 bits is known to 1e-3: that is the accuracy of everything computed from it.
    tolerance = {"fp64": 1e-9, "fp32": 5e-7 / temperature}[dtype]
    for name, x in found.items():
        assert x.isfinite().all(), name
        scale = truth[name].abs().max().item()
        torch.testing.assert_close(x.double(), truth[name], rtol=0, atol=tolerance * scale, msg=name)


@pytest.mark.parametrize("dtype", ALL)
def test_flat_maps_are_global_average_pooling(dtype: str, backend: str, device: torch.device) -> None:
    inputs = make(CASE, dtype=ALL[dtype], device=device)
    inputs.grad_pooled = inputs.grad_pooled * 2**12  # what flows through the maps is divided by the temperature
    found = run_op(inputs, backend, temperature=1e6)
    mean = edit(inputs.features).double().mean((2, 3)).unsqueeze(1).expand_as(found["pooled"])
    torch.testing.assert_close(found["pooled"].double(), mean, rtol=0, atol=max(RELATIVE[dtype], 1e-5))
    close(found, run_eager(inputs.to(torch.float64), temperature=1e6), dtype)
    shared = inputs.grad_pooled.double().sum(1)[:, :, None, None] / 20
    atol = max(RELATIVE[dtype], 1e-5) * shared.abs().max().item()
    torch.testing.assert_close(found["d_features"].double(), shared.expand_as(inputs.features), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", ALL)
def test_large_heat_maps(dtype: str, backend: str, device: torch.device) -> None:
    """Heat maps of 1e4: their squares do not fit into float16, their norm must not be computed in it."""
    inputs = make(CASE, dtype=ALL[dtype], device=device)
    edit(inputs.pixels).mul_(1e3)
    edit(inputs.weight).mul_(4.0)
    inputs.grad_pooled = inputs.grad_pooled * 100
    found = run_op(inputs, backend, temperature=0.3, return_maps=True)
    close(found, run_eager(inputs.to(torch.float64), temperature=0.3, return_maps=True), dtype)


def test_largest_float16_features(backend: str, device: torch.device) -> None:
    """Weights that sum to one cannot leave the range of what they average."""
    inputs = make(CASE, dtype=torch.float16, device=device)
    edit(inputs.features).copy_(inputs.features.detach().sign() * 65504)
    edit(inputs.features)[0] = 65504
    inputs.grad_pooled = inputs.grad_pooled * 1e-4
    found = run_op(inputs, backend, temperature=0.3)
    close(found, run_eager(inputs.to(torch.float64), temperature=0.3), "fp16")
    assert torch.equal(found["pooled"][0], torch.full_like(found["pooled"][0], 65504))


@pytest.mark.parametrize("dtype", ALL)
def test_one_map(dtype: str, backend: str, device: torch.device) -> None:
    """With K = 1 the unit map is the sign of the heat, and nothing flows back through it."""
    case = OpCase("one_map", N=4, C=16, D=16, K=1, G=1, space=(7, 7), bias=True)
    inputs = make(case, dtype=ALL[dtype], device=device)
    found = run_op(inputs, backend, temperature=0.3)
    close({n: found[n] for n in ("pooled", "d_features")}, run_eager(inputs.to(torch.float64), temperature=0.3), dtype)
    for name in ("d_pixels", "d_weight", "d_bias"):
        assert found[name].abs().max() < 1e-5


def _nan_feature(inputs: OpInputs) -> None:
    edit(inputs.features)[1, 3, 0, 1] = float("nan")


def _inf_feature(inputs: OpInputs) -> None:
    edit(inputs.features)[1, 3, 0, 1] = float("-inf")


def _nan_pixel(inputs: OpInputs) -> None:
    edit(inputs.pixels)[1, 3, 0, 1] = float("nan")


def _inf_pixel(inputs: OpInputs) -> None:
    edit(inputs.pixels)[1, 3, 0, 1] = float("inf")


def _nan_weight(inputs: OpInputs) -> None:
    edit(inputs.weight)[2, 3] = float("nan")


def _nan_gradient(inputs: OpInputs) -> None:
    inputs.grad_pooled[1, 2, 3] = float("nan")


def _inf_gradient(inputs: OpInputs) -> None:
    inputs.grad_pooled[1, 2, 3] = float("inf")


SPOILERS = (_nan_feature, _inf_feature, _nan_pixel, _inf_pixel, _nan_weight, _nan_gradient, _inf_gradient)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda f: f.__name__[1:])
def test_nan_and_infinity_go_where_they_go_in_pytorch(spoil, dtype: str, backend: str, device: torch.device) -> None:  # type: ignore[no-untyped-def]
    inputs = make(CASE, dtype=ALL[dtype], device=device)
    spoil(inputs)
    found, expected = run_op(inputs, backend), run_eager(inputs)
    assert found["pooled"].isfinite().any() or spoil is _nan_weight
    for name, x in found.items():
        assert torch.equal(x.isfinite(), expected[name].isfinite()), name
    # In 16 bits eager rounds small maps to zero, and zero times infinity is NaN where a small number's is infinity.
    for kind in (torch.isnan, torch.isposinf, torch.isneginf) if dtype in FLOATS else ():
        assert torch.equal(kind(found["pooled"]), kind(expected["pooled"])), kind.__name__
