"""Bitwise: the same call twice, a row of a batch alone, any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from op_cases import OpCase, OpInputs, kernels, make, run_op
from torch import Tensor

CASES = (
    OpCase("usual", N=7, C=96, D=80, K=32, G=4, space=(7, 7), bias=True),
    OpCase("dense", N=3, C=32, D=48, K=16, G=2, space=(28, 28)),
    OpCase("shared", N=5, C=64, D=None, K=16, G=4, space=(4, 4), bias=True),
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PER_IMAGE = ("pooled", "maps", "d_features", "d_pixels")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def in_layout(inputs: OpInputs, layout: str) -> OpInputs:
    for name in ("features", "pixels"):
        if (x := getattr(inputs, name)) is not None:
            setattr(inputs, name, x.detach().contiguous(memory_format=LAYOUTS[layout]).requires_grad_())
    return inputs


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_run_to_run(case: OpCase, layout: str, dtype: str, backend: str, device: torch.device) -> None:
    inputs = in_layout(make(case, dtype=DTYPES[dtype], device=device), layout)
    first = run_op(inputs, backend, return_maps=True)
    for _ in range(5):
        equal(run_op(inputs, backend, return_maps=True), first)


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_repeats_of_a_large_batch(layout: str, dtype: str, backend: str, device: torch.device, poisoned: None) -> None:
    """More programs than a GPU runs at once: their order differs from run to run, and so does a sum that follows it."""
    case = OpCase("large_batch", N=256, C=64, D=48, K=32, G=4, space=(7, 7), bias=True)
    inputs = in_layout(make(case, dtype=DTYPES[dtype], device=device), layout)
    first = run_op(inputs, backend, return_maps=True)
    for _ in range(3 if device.type == "cpu" else 100):  # threads of the CPU take their parts in a fixed order
        equal(run_op(inputs, backend, return_maps=True), first)


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_row_alone(case: OpCase, layout: str, dtype: str, backend: str, device: torch.device) -> None:
    """What an image gives does not depend on its batch: outputs and gradients of row i, alone and among others."""
    batch = in_layout(make(case, dtype=DTYPES[dtype], device=device), layout)
    together = run_op(batch, backend, return_maps=True)
    for i in range(case.N):
        row = slice(i, i + 1)
        alone = OpInputs(
            case,
            batch.features.detach()[row].requires_grad_(),
            None if batch.pixels is None else batch.pixels.detach()[row].requires_grad_(),
            batch.weight, batch.bias, batch.grad_pooled[row], batch.grad_maps[row],
        )  # fmt: skip
        found = run_op(alone, backend, return_maps=True)
        for name in PER_IMAGE:
            if name in together:
                assert torch.equal(found[name], together[name][row]), f"{name} of row {i}"


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_number_of_threads(
    case: OpCase, layout: str, dtype: str, backend: str, device: torch.device, threads: None
) -> None:
    if device.type != "cpu":
        pytest.skip(f"the threads of this process do not compute on {device}")
    inputs = in_layout(make(case, dtype=DTYPES[dtype], device=device), layout)
    torch.set_num_threads(1)
    first = run_op(inputs, backend, return_maps=True)
    for n in (2, 3, 5):
        torch.set_num_threads(n)
        equal(run_op(inputs, backend, return_maps=True), first)
