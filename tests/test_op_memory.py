"""What is kept for the backward: the inputs themselves, the heat maps and their norms; no copy of any input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from op_cases import OpCase, OpInputs, make
from torch import Tensor

from benchmarks.op.providers import eager_maps, eager_pool
from lewel_kernels import fused_align_aggregate

CASE = OpCase("memory", N=4, C=64, D=32, K=16, G=4, space=(7, 7), bias=True)
SHARED = OpCase("shared", N=4, C=64, D=None, K=16, G=4, space=(7, 7), bias=True)
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def saved_bytes(call: Callable[[], object], inputs: OpInputs) -> int:
    """Bytes of the storages kept alive for the backward that are not the storage of an input."""
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = call()
    own = {x.untyped_storage().data_ptr() for x in inputs.leaves.values()}
    del result
    return sum(size for pointer, size in storages.items() if pointer not in own)


def leaf_rows(x: Tensor) -> Tensor:
    """(N, C, P) as the trainer has it: a view of rows (N, 1 + P, C) without their first."""
    rows = x.detach().flatten(2).transpose(1, 2)
    return torch.cat([rows[:, :1], rows], 1).requires_grad_()[:, 1:].transpose(1, 2)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(),
    "rows": leaf_rows,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [CASE, SHARED], ids=str)
def test_saved_for_backward(case: OpCase, layout: str, dtype: str, backend: str, device: torch.device) -> None:
    inputs = make(case, dtype=DTYPES[dtype], device=device)
    inputs.features = LAYOUTS[layout](inputs.features)
    if inputs.pixels is not None:
        inputs.pixels = LAYOUTS[layout](inputs.pixels)

    def call() -> Tensor:
        return fused_align_aggregate(
            inputs.features, inputs.weight, inputs.bias, pixels=inputs.pixels, num_groups=case.G, backend=backend
        )

    P = 49
    heat = case.N * case.K * P * DTYPES[dtype].itemsize
    norms = case.N * P * (8 if dtype == "fp64" else 4)
    assert saved_bytes(call, inputs) == heat + norms


def test_saved_for_backward_under_autocast(backend: str, device: torch.device) -> None:
    """The 16-bit copy of the parameters is all that autocast adds."""
    inputs = make(CASE, dtype=torch.float32, device=device)
    inputs.features = inputs.features.detach().bfloat16().requires_grad_()
    assert inputs.pixels is not None
    inputs.pixels = inputs.pixels.detach().bfloat16().requires_grad_()

    def call() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return fused_align_aggregate(
                inputs.features, inputs.weight, inputs.bias, pixels=inputs.pixels, num_groups=4, backend=backend
            )

    P, D, K, N = 49, 32, CASE.K, CASE.N
    assert saved_bytes(call, inputs) == N * K * P * 2 + N * P * 4 + (K * D + K) * 2


def test_nothing_is_saved_without_gradients(backend: str, device: torch.device) -> None:
    inputs = make(CASE, device=device)
    for x in inputs.leaves.values():
        x.requires_grad_(False)
    call = lambda: fused_align_aggregate(inputs.features, inputs.weight, pixels=inputs.pixels, backend=backend)  # noqa: E731
    assert saved_bytes(call, inputs) == 0


def test_the_instrument_sees_the_copy_that_eager_keeps() -> None:
    """Eager keeps the features twice in channels_last; a count that misses this would prove nothing above."""
    inputs = make(CASE)
    inputs.features = LAYOUTS["channels_last"](inputs.features)
    assert inputs.pixels is not None
    pixels = inputs.pixels
    eager = saved_bytes(lambda: eager_pool(inputs.features, eager_maps(pixels, inputs.weight, inputs.bias)), inputs)
    assert eager > inputs.features.nbytes
