"""The registered op in PyTorch: opcheck, vmap, autocast, every subset and every order of gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from op_cases import CASES, SMALL, OpCase, OpInputs, make, run_eager, run_op
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradgradcheck

from lewel_kernels import fused_align_aggregate, reference, signature

pytestmark = pytest.mark.usefixtures("poisoned")

OPS = torch.ops.lewel_kernels
CASE = OpCase("usual", N=4, C=16, D=12, K=8, G=4, space=(5, 3), bias=True)
SHARED = OpCase("shared", N=4, C=12, D=None, K=8, G=4, space=(15,))
AFFINE = OpCase("affine", N=4, C=16, D=12, K=8, G=4, space=(5, 3), bias=True, affine=True)
EMPTY = OpCase("empty", N=0, C=16, D=12, K=8, G=4, space=(5, 3), bias=True)


def flat(inputs: OpInputs) -> tuple[Tensor | None, ...]:
    pixels = None if inputs.pixels is None else inputs.pixels.detach().flatten(2).requires_grad_()
    features = inputs.features.detach().flatten(2).requires_grad_()
    return features, pixels, inputs.weight, inputs.bias, inputs.scale, inputs.shift


@pytest.mark.parametrize("return_maps", [False, True], ids=["pooled", "pooled_and_maps"])
@pytest.mark.parametrize("case", [CASE, SHARED, AFFINE, EMPTY], ids=str)
def test_opcheck_of_the_forward(case: OpCase, return_maps: bool, backend: str, device: torch.device) -> None:
    inputs = flat(make(case, dtype=torch.float32, device=device))
    arguments = (*inputs, case.G, 0.3, 1e-12, torch.float32, return_maps, backend)
    torch.library.opcheck(OPS.align_aggregate_fwd.default, arguments, rtol=1e-4, atol=1e-4)


def layout(outputs: Iterable[Tensor]) -> list[tuple[object, ...]]:
    return [(x.shape, x.stride(), x.dtype) for x in outputs]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [*CASES, AFFINE], ids=str)
def test_the_fake_kernels_tell_the_truth(case: OpCase, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    """Shapes, strides and dtypes of results and statistics; opcheck does not compare strides."""
    inputs = make(case, dtype=dtype, device=device)
    tensors = tuple(None if x is None else x.detach() for x in flat(inputs))
    mode = FakeTensorMode()

    def fakes(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in arguments)

    for out_dtype, return_maps in ((torch.float32, True), (dtype, False)):
        arguments = (*tensors, case.G, 0.3, 1e-12, out_dtype, return_maps, backend)
        outputs = OPS.align_aggregate_fwd(*arguments)
        with mode:
            assert layout(OPS.align_aggregate_fwd(*fakes(arguments))) == layout(outputs)
        gradients = (inputs.grad_pooled.to(out_dtype), inputs.grad_maps.to(out_dtype) if return_maps else None)
        needs = [True, case.affine, True, True, False, case.affine]
        arguments = (*gradients, *tensors, *outputs[2:], case.G, 0.3, 1e-12, needs, backend)
        outputs = OPS.align_aggregate_bwd(*arguments)
        with mode:
            assert layout(OPS.align_aggregate_bwd(*fakes(arguments))) == layout(outputs)


@pytest.mark.parametrize("case", [CASE, SHARED, AFFINE, EMPTY], ids=str)
def test_opcheck_of_the_backward(case: OpCase, backend: str, device: torch.device) -> None:
    inputs = make(case, dtype=torch.float32, device=device)
    tensors = flat(inputs)
    constants = (case.G, 0.3, 1e-12)
    _, _, *saved = OPS.align_aggregate_fwd(*tensors, *constants, torch.float32, False, backend)
    for grad_maps in (None, inputs.grad_maps):
        needs = [True, case.D is not None, True, case.bias, case.affine, case.affine]
        arguments = (inputs.grad_pooled, grad_maps, *tensors, *(x.detach() for x in saved), *constants, needs, backend)
        torch.library.opcheck(OPS.align_aggregate_bwd.default, arguments, rtol=1e-3, atol=1e-3)


def test_vmap_over_a_leading_dimension(backend: str, device: torch.device) -> None:
    """A batch of batches, with shared parameters and with parameters of their own; values and gradients."""
    features = torch.randn(3, 2, 16, 15, device=device, dtype=torch.float64, requires_grad=True)
    pixels = torch.randn(3, 2, 12, 15, device=device, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 8, 12, device=device, dtype=torch.float64, requires_grad=True)

    def op(f: Tensor, p: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return fused_align_aggregate(f, w, pixels=p, temperature=0.3, return_maps=True, backend=backend)

    for weight, dim in ((weights, 0), (weights[0], None)):
        found = torch.vmap(op, in_dims=(0, 0, dim))(features, pixels, weight)
        rows = [op(features[i], pixels[i], weight[i] if dim == 0 else weight) for i in range(3)]
        expected = [torch.stack(column) for column in zip(*rows, strict=True)]
        leaves = (features, pixels, weights)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        gradients = torch.autograd.grad(sum(x.square().sum() for x in found), leaves)
        wanted = torch.autograd.grad(sum(x.square().sum() for x in expected), leaves)
        torch.testing.assert_close(gradients, wanted)


def test_vmap_over_another_dimension(backend: str, device: torch.device) -> None:
    features = torch.randn(2, 16, 15, 3, device=device)
    weight = torch.randn(8, 16, device=device)
    found = torch.vmap(lambda f: fused_align_aggregate(f, weight, backend=backend), in_dims=3, out_dims=1)(features)
    for i in range(3):
        torch.testing.assert_close(found[:, i], fused_align_aggregate(features[..., i], weight, backend=backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cast_to", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(cast_to: torch.dtype, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    """Parameters of any dtype run in the autocast dtype and get gradients of their own."""
    inputs = make(CASE, dtype=dtype, device=device)
    with torch.autocast(device.type, cast_to):
        found = run_op(inputs, backend, return_maps=True)
    assert found["pooled"].dtype == found["maps"].dtype == cast_to
    plain = run_op(inputs.to(cast_to), backend, return_maps=True)
    for name, x in plain.items():
        wanted = dtype if name.startswith("d_") else cast_to
        assert torch.equal(found[name], x.to(wanted)), name


def test_autocast_leaves_float64_alone_and_out_dtype_wins(backend: str, device: torch.device) -> None:
    with torch.autocast(device.type, torch.bfloat16):
        assert run_op(make(CASE, device=device), backend)["pooled"].dtype == torch.float64
        inputs = make(CASE, dtype=torch.float32, device=device)
        assert run_op(inputs, backend, out_dtype=torch.float32)["pooled"].dtype == torch.float32


NAMES = ("features", "pixels", "weight", "bias")


@pytest.mark.parametrize("wanted", [w for r in range(5) for w in itertools.combinations(NAMES, r)], ids="+".join)
def test_every_subset_of_gradients(wanted: tuple[str, ...], backend: str, device: torch.device) -> None:
    inputs = make(CASE, device=device)
    everything = run_op(inputs, backend)
    for name, x in inputs.leaves.items():
        x.requires_grad_(name in wanted)
    found = run_op(inputs, backend)
    assert found["pooled"].requires_grad == bool(wanted)
    assert set(found) == {"pooled"} | {f"d_{name}" for name in wanted}
    for name, x in found.items():
        torch.testing.assert_close(x, everything[name], rtol=1e-12, atol=1e-12, msg=name)


def test_gradient_of_the_maps_alone(backend: str, device: torch.device) -> None:
    inputs, twin = make(CASE, device=device), make(CASE, device=device)
    inputs.grad_pooled.zero_()
    expected = run_eager(inputs, temperature=0.3, return_maps=True)
    _, maps = fused_align_aggregate(
        twin.features, twin.weight, twin.bias, pixels=twin.pixels, temperature=0.3, return_maps=True, backend=backend
    )
    names = ("pixels", "weight", "bias")
    found = torch.autograd.grad(maps, [twin.leaves[name] for name in names], twin.grad_maps)
    for name, x in zip(names, found, strict=True):
        torch.testing.assert_close(x, expected[f"d_{name}"])


def test_an_empty_batch_gives_zero_parameter_gradients(backend: str, device: torch.device) -> None:
    found = run_op(make(EMPTY, dtype=torch.float32, device=device), backend, return_maps=True)
    assert found["pooled"].shape == (0, 2, 16)
    assert found["maps"].shape == (0, 8, 15)
    assert found["d_features"].shape == (0, 16, 5, 3)
    assert torch.equal(found["d_weight"], torch.zeros_like(found["d_weight"]))
    assert torch.equal(found["d_bias"], torch.zeros_like(found["d_bias"]))


def test_batched_gradients(backend: str, device: torch.device) -> None:
    """The backward under vmap, as vectorised Jacobians run it."""
    inputs = make(SMALL[0], device=device)

    def op(features: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
        return fused_align_aggregate(features, weight, pixels=pixels, num_groups=2, temperature=0.3, backend=backend)

    leaves = (inputs.features, inputs.pixels, inputs.weight)
    found = torch.autograd.functional.jacobian(op, leaves, vectorize=True)
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(op, leaves))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_trace_computes_anew(backend: str, device: torch.device) -> None:
    """By the registered op, not by what a backend makes of it here."""
    features, others, weight = (torch.randn(*shape, device=device) for shape in ((2, 16, 15), (2, 16, 15), (8, 16)))

    def op(x: Tensor) -> Tensor:
        return fused_align_aggregate(x, weight, backend=backend)

    traced = torch.jit.trace(op, (features,), check_trace=False)
    assert "lewel_kernels::align_aggregate_fwd" in str(traced.graph)
    torch.testing.assert_close(traced(others), op(others))


def test_inference_mode(backend: str, device: torch.device) -> None:
    inputs = make(CASE, device=device)
    expected = run_op(inputs, backend)["pooled"]
    with torch.inference_mode():
        found = fused_align_aggregate(
            inputs.features, inputs.weight, inputs.bias, pixels=inputs.pixels, temperature=0.05, backend=backend
        )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("return_maps", [False, True], ids=["pooled", "pooled_and_maps"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_second_order(case: OpCase, return_maps: bool, backend: str, device: torch.device) -> None:
    inputs = make(case, device=device)
    names = list(inputs.leaves)

    def op(*leaves: Tensor) -> object:
        return fused_align_aggregate(
            **dict(zip(names, leaves, strict=True)),
            num_groups=case.G, temperature=0.3, return_maps=return_maps, backend=backend,
        )  # type: ignore[call-overload]  # fmt: skip

    assert gradgradcheck(op, tuple(inputs.leaves.values()))


def test_third_order(backend: str, device: torch.device) -> None:
    """Of the inputs of a second derivative that was taken with a graph; the same through plain PyTorch."""
    inputs = make(SHARED, device=device)
    leaves = (inputs.features.detach().requires_grad_(), inputs.weight.detach().requires_grad_())

    def third(pooled: Tensor) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(pooled.square().sum(), leaves[:1], create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaves[:1], create_graph=True)
        return torch.autograd.grad(second.square().sum(), leaves)

    options: dict[str, Any] = {"num_groups": SHARED.G, "temperature": 0.3, "eps": 1e-12}
    found = third(fused_align_aggregate(*leaves, **options, backend=backend))
    inputs = signature.Inputs(leaves[0].flatten(2), None, leaves[1], None)
    plain, *_ = reference.forward(inputs, signature.Options(**options, out_dtype=leaves[0].dtype))
    torch.testing.assert_close(found, third(plain), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mapped", ["images", "weights"])
@pytest.mark.parametrize("return_maps", [False, True], ids=["pooled", "pooled_and_maps"])
def test_vmap_over_an_empty_batch(mapped: str, return_maps: bool, backend: str, device: torch.device) -> None:
    x, weight = torch.randn(3, 2, 8, 9, device=device), torch.randn(3, 4, 8, device=device)

    def op(x: Tensor, w: Tensor) -> Any:
        return fused_align_aggregate(x, w, return_maps=return_maps, backend=backend)

    dims = (0, None) if mapped == "images" else (None, 0)
    full, empty = ((a, weight[0]) if mapped == "images" else (x[0], w) for a, w in ((x, weight), (x[:0], weight[:0])))
    expected, found = torch.vmap(op, dims)(*full), torch.vmap(op, dims)(*empty)
    for a, b in zip(expected, found, strict=True) if return_maps else [(expected, found)]:
        assert b.shape == (0, *a.shape[1:])


@pytest.mark.parametrize(
    ("C", "K", "G"),
    [(4, 4, 1), (4, 4, 4), (4, 8, 4), (6, 2, 2)],
    ids=["one_group", "one_vector_of_one_channel", "one_channel_groups", "one_vector"],
)
def test_the_result_may_be_changed_in_place(C: int, K: int, G: int, backend: str, device: torch.device) -> None:
    x = torch.randn(3, C, 9, device=device, requires_grad=True)
    pooled = fused_align_aggregate(x, torch.randn(K, C, device=device), num_groups=G, backend=backend)
    assert pooled.is_contiguous()
    expected = torch.autograd.grad(pooled.relu().sum(), x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(pooled.relu_().sum(), x), expected)


def test_a_profile_names_the_op_and_its_backend(backend: str, device: torch.device) -> None:
    x = torch.randn(2, 8, 9, device=device, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fused_align_aggregate(x, torch.randn(4, 8, device=device), backend=backend).sum().backward()
    names = {event.name for event in profile.events()}
    assert {f"lewel_kernels::align_aggregate_{way}[{backend}]" for way in ("fwd", "bwd")} <= names
