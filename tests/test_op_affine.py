"""The prologue of the op, E0 and E11: relu(scale * pixels + shift) is projected, and nothing of it is kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_cases import OpCase, OpInputs, beyond_contract, make, run_eager, run_op
from test_op_compile import calls
from test_op_errors import assert_sentence
from test_op_layouts import LAYOUTS, leaf
from test_op_layouts import compare as compare_with_truth
from test_op_memory import saved_bytes
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck

from lewel_kernels import AlignAggregate, explain, fused_align_aggregate, reference

pytestmark = pytest.mark.usefixtures("poisoned")

TINY = OpCase("tiny", N=2, C=4, D=3, K=4, G=2, space=(2, 3), affine=True)
TINIEST = OpCase("tiniest", N=2, C=2, D=3, K=4, G=2, space=(4,), bias=True, affine=True)
CASE = OpCase("usual", N=3, C=16, D=12, K=8, G=4, space=(5, 3), bias=True, affine=True)
WIDE = OpCase("wide", N=3, C=40, D=37, K=16, G=4, space=(7, 7), bias=True, affine=True)
EMPTY = OpCase("empty", N=0, C=16, D=12, K=8, G=4, space=(5, 3), affine=True)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DRAWS = 4


def affine(inputs: OpInputs) -> tuple[Tensor, Tensor, Tensor]:
    """pixels, scale and shift."""
    assert inputs.pixels is not None
    assert inputs.scale is not None
    assert inputs.shift is not None
    return inputs.pixels, inputs.scale, inputs.shift


def exact(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, x in expected.items():
        scale = x.abs().max().item() if x.numel() else 0.0
        torch.testing.assert_close(found[name], x, rtol=1e-11, atol=1e-11 * max(scale, 1.0), msg=name)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("return_maps", [False, True], ids=["pooled", "pooled_and_maps"])
def test_gradcheck_of_the_reference(return_maps: bool, check: Callable[..., bool]) -> None:
    inputs = make(TINIEST)
    *others, scale, shift = inputs.leaves
    assert run_op(inputs, "reference")["d_scale"].count_nonzero() >= 2  # of one channel alone, no size is seen by E2

    def op(*leaves: Tensor) -> object:
        named = dict(zip((*others, scale, shift), leaves, strict=True))
        pair = named.pop(scale), named.pop(shift)
        return fused_align_aggregate(
            **named, pixels_affine=pair, num_groups=2, temperature=0.3, return_maps=return_maps, backend="reference"
        )  # type: ignore[call-overload]

    assert check(op, tuple(inputs.leaves.values()))


@pytest.mark.parametrize("case", [TINY, CASE, WIDE], ids=str)
def test_exact_in_float64(case: OpCase, backend: str, device: torch.device) -> None:
    inputs = make(case, device=device)
    found, expected = (run(inputs, return_maps=True) for run in (lambda i, **o: run_op(i, backend, **o), run_eager))
    assert found.keys() == expected.keys() >= {"d_pixels", "d_scale", "d_shift"}
    exact(found, expected)


def test_every_subset_of_gradients(backend: str, device: torch.device) -> None:
    inputs = make(TINY, device=device)
    everything = run_eager(inputs)
    leaves = inputs.leaves
    for wanted in itertools.product([False, True], repeat=len(leaves)):
        for x, wants in zip(leaves.values(), wanted, strict=True):
            x.requires_grad_(wants)
        names = {"pooled", *(f"d_{name}" for name, wants in zip(leaves, wanted, strict=True) if wants)}
        found = run_op(inputs, backend)
        assert found.keys() == names
        exact(found, {name: everything[name] for name in names})


@pytest.mark.parametrize("dtype", DTYPES)
def test_as_accurate_as_eager(dtype: str, backend: str, device: torch.device) -> None:
    """Eager applies scale and shift in float32 and stores the result, as its batch normalisation does."""
    assert not beyond_contract(WIDE, backend, DTYPES[dtype], device, draws=DRAWS)


def test_the_activated_pixels_are_rounded_once(backend: str, device: torch.device) -> None:
    """Products and sums of few bits are exact in float32: what is projected is known to the bit."""
    inputs = make(CASE, dtype=torch.bfloat16, device=device)
    pixels, scale, shift = affine(inputs)
    generator = torch.Generator().manual_seed(0)

    def eighths(x: Tensor) -> None:
        x.detach().copy_(torch.randint(-127, 128, x.shape, generator=generator) / 8)

    for x in (pixels, scale, shift):
        eighths(x)
    stored = (scale[:, None, None] * pixels + shift[:, None, None]).relu()
    assert not torch.equal(stored, stored.bfloat16().float())
    options: dict[str, Any] = {"return_maps": True, "out_dtype": torch.float32, "backend": backend}
    found = fused_align_aggregate(
        inputs.features, inputs.weight, pixels=pixels, pixels_affine=(scale, shift), **options
    )
    expected = fused_align_aggregate(inputs.features, inputs.weight, pixels=stored.bfloat16(), **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_mask_is_of_the_unrounded_sum(backend: str, device: torch.device) -> None:
    """1e-9 is stored as 0 in float16, but the ReLU is open."""
    inputs = make(CASE, dtype=torch.float16, device=device)
    pixels, _, shift = affine(inputs)
    pixels.detach()[:, 0] = 0
    shift.detach()[0] = 1e-9
    found, truth = run_op(inputs, backend), run_eager(inputs.to(torch.float64))
    assert truth["d_shift"][0].abs() > 1
    torch.testing.assert_close(found["d_shift"][0].double(), truth["d_shift"][0], rtol=2e-2, atol=0)


def test_the_gradient_at_zero_is_zero(backend: str, device: torch.device) -> None:
    inputs = make(CASE, device=device)
    _, scale, shift = affine(inputs)
    scale.detach()[1], shift.detach()[1] = 0, 0
    scale.detach()[2], shift.detach()[2] = 0, 0.5  # open everywhere, whatever the pixels
    found = run_op(inputs, backend)
    exact(found, run_eager(inputs))
    assert found["d_scale"][1] == found["d_shift"][1] == 0
    assert found["d_scale"][2] != 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_nan_and_infinity_propagate_as_in_pytorch(value: float, backend: str, device: torch.device) -> None:
    """Also through a mask: where the sum is NaN, torch.relu passes its gradient on. Other images are untouched."""
    inputs = make(CASE, device=device)
    pixels, scale, _ = affine(inputs)
    pixels.detach()[1, 2, 0, 0] = value
    scale.detach()[2] = 0.5
    expected = run_eager(inputs)
    for name, x in run_op(inputs, backend).items():
        assert torch.equal(x.isnan(), expected[name].isnan()), name
        torch.testing.assert_close(x, expected[name], rtol=1e-9, atol=1e-9, equal_nan=True, msg=name)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_nothing_more_is_saved(dtype: str, backend: str, device: torch.device) -> None:
    sizes = []
    for case in (WIDE, OpCase(**{**vars(WIDE), "affine": False})):
        inputs = make(case, dtype=DTYPES[dtype], device=device)
        sizes.append(saved_bytes(lambda inputs=inputs: run_forward(inputs, backend), inputs))  # type: ignore[misc]
    P = 49
    assert sizes == 2 * [WIDE.N * WIDE.K * P * DTYPES[dtype].itemsize + WIDE.N * P * 4]


def run_forward(inputs: OpInputs, backend: str, **options: object) -> Any:
    return fused_align_aggregate(
        inputs.features, inputs.weight, inputs.bias, pixels=inputs.pixels, pixels_affine=inputs.affine,
        num_groups=inputs.case.G, temperature=0.3, backend=backend, **options,
    )  # type: ignore[call-overload]  # fmt: skip


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("layout", ["channels_last", "rows", "transposed", "expanded_batch"])
def test_layouts(layout: str, dtype: str, backend: str, device: torch.device) -> None:
    inputs = make(CASE, dtype={"fp64": torch.float64, **DTYPES}[dtype], device=device)
    pixels, _, _ = affine(inputs)
    inputs.pixels = leaf(LAYOUTS[layout](pixels.detach()))
    inputs.features = leaf(LAYOUTS[layout](inputs.features.detach()))
    found = compare_with_truth(inputs, backend, dtype)
    like = torch.empty_like(inputs.pixels.flatten(2)).view(inputs.pixels.shape)
    assert found["d_pixels"].stride() == like.stride()


@pytest.mark.parametrize("layout", ["expanded", "every_other", "odd_offset"])
def test_layouts_of_scale_and_shift(layout: str, backend: str, device: torch.device) -> None:
    inputs = make(CASE, dtype=torch.float32, device=device)
    change: dict[str, Callable[[Tensor], Tensor]] = {
        "expanded": lambda x: x[3:4].expand_as(x),
        "every_other": lambda x: torch.stack([x, torch.full_like(x, 7.0)], -1).flatten()[::2],
        "odd_offset": lambda x: torch.cat([x.new_full((1,), 7.0), x])[1:],
    }
    _, scale, shift = affine(inputs)
    inputs.scale, inputs.shift = (leaf(change[layout](x.detach())) for x in (scale, shift))
    found = compare_with_truth(inputs, backend, "fp32")
    assert found["d_scale"].is_contiguous()


def test_an_empty_batch(backend: str, device: torch.device) -> None:
    found = run_op(make(EMPTY, dtype=torch.float32, device=device), backend)
    assert found["pooled"].shape == (0, 2, 16)
    assert found["d_pixels"].shape == (0, 12, 5, 3)
    for name in ("d_weight", "d_scale", "d_shift"):
        assert torch.equal(found[name], torch.zeros_like(found[name])), name


@pytest.mark.parametrize("mapped", ["images", "pixels", "scale", "shift"])
def test_vmap(mapped: str, backend: str, device: torch.device) -> None:
    one = make(TINY, device=device)
    names = {"images": ("features", "pixels")}.get(mapped, (mapped,))
    tensors = {name: x.detach() for name, x in one.leaves.items()}
    for name in names:
        tensors[name] = torch.stack([tensors[name], tensors[name].flip(0) + 0.1])
    leaves = tuple(x.requires_grad_() for x in tensors.values())
    dims = tuple(0 if name in names else None for name in tensors)

    def op(features: Tensor, pixels: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return fused_align_aggregate(
            features,
            weight,
            pixels=pixels,
            pixels_affine=(scale, shift),
            num_groups=2,
            temperature=0.3,
            backend=backend,
        )

    found = torch.vmap(op, dims)(*leaves)
    expected = torch.stack([op(*(x if d is None else x[i] for x, d in zip(leaves, dims, strict=True))) for i in (0, 1)])
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected.square().sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), leaves), wanted)


@pytest.mark.parametrize("cast_to", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_scale_and_shift_alone(cast_to: torch.dtype, backend: str, device: torch.device) -> None:
    inputs = make(CASE, dtype=torch.float32, device=device)
    with torch.autocast(device.type, cast_to):
        found = run_op(inputs, backend)
    for name, x in run_op(inputs.to(cast_to), backend).items():
        assert torch.equal(found[name], x.to(cast_to if name == "pooled" else torch.float32)), name


def test_autocast_of_float64(backend: str, device: torch.device) -> None:
    inputs = make(TINY, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        exact(run_op(inputs, backend), run_eager(inputs))


def test_compile_with_a_dynamic_batch(backend: str, device: torch.device) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    module = AlignAggregate(12, 8, temperature=0.3, backend=backend, device=device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for n in (4, 2, 3):
        inputs = make(OpCase(**{**vars(CASE), "N": n}), dtype=torch.float32, device=device)
        pixels, scale, shift = affine(inputs)
        leaves = (inputs.features, pixels, scale, shift, module.weight)
        found, expected = (f(inputs.features, pixels, pixels_affine=(scale, shift)) for f in (compiled, module))
        torch.testing.assert_close(found, expected)
        wanted = torch.autograd.grad(expected.square().sum(), leaves)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), leaves), wanted)
    assert len(calls(counter)) == 1
    torch.compiler.reset()


def test_inductor(backend: str, device: torch.device) -> None:
    """A training step's own prologue: scale and shift from the batch's statistics, in the same graph."""
    torch.compiler.reset()
    inputs = make(CASE, dtype=torch.float32, device=device)
    pixels, scale, shift = affine(inputs)

    def step(features: Tensor, pixels: Tensor) -> Tensor:
        factor = scale * pixels.var((0, 2, 3)).rsqrt()
        pair = factor, shift - pixels.mean((0, 2, 3)) * factor
        return fused_align_aggregate(features, inputs.weight, pixels=pixels, pixels_affine=pair, backend=backend)

    leaves = (inputs.features, pixels, scale, shift)
    found, expected = torch.compile(step, fullgraph=True)(*leaves[:2]), step(*leaves[:2])
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected.square().sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), leaves), wanted, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def good() -> dict[str, Any]:
    return {
        "features": torch.zeros(2, 8, 3, 4),
        "pixels": torch.zeros(2, 6, 3, 4),
        "pixels_affine": (torch.zeros(6), torch.zeros(6)),
        "weight": torch.zeros(4, 6),
        "num_groups": 2,
    }


SIX = torch.zeros(6)
# What is changed, the exception, and what the sentence must contain: argument, expectation, finding.
BAD: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "without_pixels": (
        {"pixels": None, "weight": torch.zeros(4, 8)}, ValueError, ("pixels_affine", "needs pixels", "None"),
    ),
    "a_tensor": ({"pixels_affine": SIX}, TypeError, ("pixels_affine", "(scale, shift)", "got Tensor")),
    "one_tensor": ({"pixels_affine": (SIX,)}, TypeError, ("pixels_affine", "(scale, shift)", "got tuple of 1")),
    "a_number": ({"pixels_affine": (1.0, SIX)}, TypeError, ("scale of pixels_affine", "Tensor", "float")),
    "integer": ({"pixels_affine": (SIX, SIX.int())}, TypeError, ("shift of pixels_affine", "float", "int32")),
    "sparse": ({"pixels_affine": (SIX.to_sparse(), SIX)}, TypeError, ("scale of pixels_affine", "dense", "sparse")),
    "scale_shape": (
        {"pixels_affine": (torch.zeros(5), SIX)}, ValueError, ("scale of pixels_affine", "(6,)", "got (5)"),
    ),
    "shift_shape": (
        {"pixels_affine": (SIX, torch.zeros(6, 1, 1))}, ValueError, ("shift of pixels_affine", "(6,)", "(6, 1, 1)"),
    ),
    "16_bits": (
        {"pixels_affine": (SIX, SIX.bfloat16())},
        TypeError, ("shift of pixels_affine", "float32", "got torch.bfloat16", ".to(torch.float32)"),
    ),
    "16_bits_with_16_bits": (
        {**{name: x.half() for name, x in good().items() if isinstance(x, Tensor)}, "pixels_affine": (SIX.half(), SIX)},
        TypeError, ("scale of pixels_affine", "float32", "got torch.float16", ".to(torch.float32)"),
    ),
    "float64": (
        {**{name: x.double() for name, x in good().items() if isinstance(x, Tensor)}},
        TypeError, ("scale of pixels_affine", "float64", "got torch.float32", ".to(torch.float64)"),
    ),
    "scale_device": (
        {"pixels_affine": (torch.zeros(6, device="meta"), SIX)},
        ValueError, ("scale of pixels_affine must be on cpu", "features", "got meta"),
    ),
    "shift_device": (
        {"pixels_affine": (SIX, torch.zeros(6, device="meta"))},
        ValueError, ("shift of pixels_affine must be on cpu", "features", "got meta"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", [fused_align_aggregate, explain], ids=lambda f: f.__name__)
@pytest.mark.parametrize("change", BAD)
def test_bad_arguments(change: str, call: Callable[..., object]) -> None:
    edits, exception, words = BAD[change]
    call(**good())
    with pytest.raises(exception) as caught:
        call(**{**good(), **edits})
    assert_sentence(caught.value, words)


def test_scale_and_shift_belong_together() -> None:
    """The registered op, called without the function that checks."""
    inputs = make(TINY)
    pixels, scale, shift = affine(inputs)
    for given in ((pixels, scale, None), (pixels, None, shift), (None, scale, shift)):
        with pytest.raises(ValueError, match="scale and shift are given together, and with pixels"):
            reference.projection_input(inputs.features, *given)


def test_the_module_takes_them_too(backend: str, device: torch.device) -> None:
    inputs = make(CASE, device=device)
    pixels, scale, shift = affine(inputs)
    module = AlignAggregate(12, 8, temperature=0.3, backend=backend, device=device, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(inputs.weight)
    inputs.bias = None
    found = module(inputs.features, pixels, pixels_affine=(scale, shift))
    assert torch.equal(found, run_forward(inputs, backend))
