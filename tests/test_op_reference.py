"""The specification itself: E1-E5 against loops written by hand, E6-E10 against autograd, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from op_cases import BY_NAME, CASES, SHARP, SMALL, OpCase, OpInputs, make, run_eager, run_op
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from lewel_kernels import fused_align_aggregate, reference
from lewel_kernels.signature import Inputs, Options

pytestmark = pytest.mark.usefixtures("poisoned")

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def by_hand(inputs: OpInputs, temperature: float, eps: float) -> tuple[Tensor, Tensor]:
    """E1-E5 one number at a time, on Python floats."""
    case = inputs.case
    features = inputs.features.detach().flatten(2).tolist()
    pixels = features if inputs.pixels is None else inputs.pixels.detach().flatten(2).tolist()
    weight = inputs.weight.tolist()
    bias = [0.0] * case.K if inputs.bias is None else inputs.bias.tolist()
    P, L = len(features[0][0]), case.K // case.G
    pooled = torch.zeros(case.N, L, case.C, dtype=torch.float64)
    maps = torch.zeros(case.N, case.K, P, dtype=torch.float64)
    for n in range(case.N):
        M = [
            [bias[k] + sum(w * pixels[n][d][p] for d, w in enumerate(weight[k])) for p in range(P)]
            for k in range(case.K)
        ]
        for p in range(P):
            norm = max(math.sqrt(sum(M[k][p] ** 2 for k in range(case.K))), eps)
            for k in range(case.K):
                M[k][p] = math.exp(M[k][p] / norm / temperature)
        for k in range(case.K):
            maps[n, k] = torch.tensor([value / sum(M[k]) for value in M[k]], dtype=torch.float64)
        for c in range(case.C):
            g = c // (case.C // case.G)
            for l in range(L):
                pooled[n, l, c] = sum(float(maps[n, g * L + l, p]) * features[n][c][p] for p in range(P))
    return pooled, maps


@pytest.mark.parametrize("temperature", [SHARP, 1.0])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_forward_is_e1_to_e5_by_hand(case: OpCase, temperature: float) -> None:
    inputs = make(case)
    pooled, maps = by_hand(inputs, temperature, 1e-12)
    found = run_op(inputs, "reference", temperature=temperature, return_maps=True)
    torch.testing.assert_close(found["pooled"], pooled, **EXACT)
    torch.testing.assert_close(found["maps"], maps, **EXACT)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_truth_of_the_other_tests_is_e1_to_e5_by_hand(case: OpCase) -> None:
    inputs = make(case)
    pooled, maps = by_hand(inputs, SHARP, 1e-12)
    found = run_eager(inputs, return_maps=True)
    torch.testing.assert_close(found["pooled"], pooled, **EXACT)
    torch.testing.assert_close(found["maps"], maps, **EXACT)


def test_eps_replaces_smaller_norms() -> None:
    inputs = make(SMALL[0])
    pooled, maps = by_hand(inputs, SHARP, eps=1.5)
    found = run_op(inputs, "reference", return_maps=True, eps=1.5)
    torch.testing.assert_close(found["maps"], maps, **EXACT)
    torch.testing.assert_close(found["pooled"], pooled, **EXACT)


@pytest.mark.parametrize("return_maps", [False, True], ids=["pooled", "pooled_and_maps"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_closed_form_backward_is_autograd_of_the_plain_lines(case: OpCase, return_maps: bool) -> None:
    inputs = make(case)
    found = run_op(inputs, "reference", return_maps=return_maps)
    expected = run_eager(inputs, return_maps=return_maps)
    assert found.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max().item() if expected[name].numel() else 0.0
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12 * max(scale, 1.0), msg=name)


@pytest.mark.parametrize("eps", [1e-12, 1.5], ids=["norm", "eps_branch"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_closed_form_backward_is_autograd_of_the_reference_forward(case: OpCase, eps: float) -> None:
    inputs = make(case)
    pixels = None if inputs.pixels is None else inputs.pixels.flatten(2)
    given = Inputs(inputs.features.flatten(2), pixels, inputs.weight, inputs.bias)
    options = Options(case.G, SHARP, eps, torch.float64, return_maps=True)
    pooled, maps, *saved = reference.forward(given, options)
    expected = torch.autograd.grad(
        [pooled, maps], list(inputs.leaves.values()), [inputs.grad_pooled, inputs.grad_maps], retain_graph=True
    )
    found = reference.backward((inputs.grad_pooled, inputs.grad_maps), given, (saved[0], saved[1]), options)
    for a, b in zip((x for x in found if x is not None), expected, strict=True):
        torch.testing.assert_close(a.reshape(b.shape), b, **EXACT)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("return_maps", [False, True], ids=["pooled", "pooled_and_maps"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck_of_the_reference(case: OpCase, return_maps: bool, check) -> None:  # type: ignore[no-untyped-def]
    inputs = make(case)
    names = list(inputs.leaves)

    def op(*leaves: Tensor) -> object:
        return fused_align_aggregate(
            **dict(zip(names, leaves, strict=True)),
            num_groups=case.G, temperature=0.3, return_maps=return_maps, backend="reference",
        )  # type: ignore[call-overload]  # fmt: skip

    assert check(op, tuple(inputs.leaves.values()))


def test_needs_limits_the_backward_to_what_is_asked() -> None:
    inputs = make(BY_NAME["tall"])
    assert inputs.pixels is not None
    given = Inputs(inputs.features.flatten(2), inputs.pixels.flatten(2), inputs.weight, None)
    options = Options(inputs.case.G, SHARP, 1e-12, torch.float64)
    saved = reference.forward(given, options)[2:]
    for i in range(3):
        needs = tuple(j == i for j in range(6))
        found = reference.backward((inputs.grad_pooled, None), given, saved, options._replace(needs=needs))
        assert [x is not None for x in found] == list(needs)
