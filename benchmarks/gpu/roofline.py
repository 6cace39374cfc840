"""What GPUs allow on paper: the passes of each design over memory, and the time that each implies.

A prediction is a sum over passes of the scarcer of bytes and flops. Nothing here is measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.op import footprint
from benchmarks.op.cases import DTYPES, LAYOUTS, Case, Inputs
from benchmarks.op.cost import MODES, Cost, Rates, floor_seconds
from benchmarks.op.measure import autocast
from benchmarks.op.providers import eager_align_aggregate


@dataclass(frozen=True)
class GPU:
    """A GPU by its data sheet, and what is expected of it: 90 % of the bandwidth, a library's rate of products."""

    name: str
    folder: str  # the whole name of its folder in results/, as a regular expression
    dtype: str  # the 16 bits of its tensor cores
    bandwidth: float  # bytes/s, nominal
    matmul: float  # flop/s in 16 bits with float32 sums, as large products of cuBLAS reach it
    memory: float  # bytes

    @property
    def rates(self) -> Rates:
        return Rates(0.9 * self.bandwidth, self.matmul)

    def owns(self, folder: str) -> bool:
        return re.fullmatch(self.folder, folder) is not None


# Others of the name are other GPUs: an A100 of 40 GB, an H100 on PCIe and a slice of any (MIG) have less bandwidth.
GPUS = (
    GPU("V100", r".*\bv100\b.*", "fp16", 0.90e12, 90e12, 16e9),
    GPU("A100-80", r".*\ba100(-sxm\d?)?-80gb(-pcie)?", "bf16", 2.04e12, 250e12, 80e9),
    GPU("H100", r".*\bh100-80gb-hbm3", "bf16", 3.35e12, 650e12, 80e9),
    GPU("H200", r".*\bh200", "bf16", 4.80e12, 650e12, 141e9),
)


# Of the triton backend: the programs that the sums for dW are spread over, and what one of them holds of dW.
PROGRAMS, LEAST_TILES, DW_ROWS, DW_COLUMNS = 132, 4, 256, 128


def passes(case: Case) -> dict[str, list[tuple[str, Cost]]]:
    """What the triton backend launches at 7x7 and 14x14, and the casts of the weight and its gradient by autocast.

    Forward: E1 with the row norms in its epilogue; E2-E5. Backward: E6-E7; E8-E9; dX; dW as partial sums in float32,
    and their sum. dA, the gradient of the maps, is float32 too; what a map sums over positions goes beside it.
    """
    s, size = case.shape, DTYPES[case.dtype].itemsize
    features, pixels, heat = (s.N * s.P * width * size for width in (s.C, s.D, s.K))
    pooled, norms, weight, copy = s.N * s.L * s.C * size, 4 * s.N * s.P, s.K * s.D * 4, _weight_copy(case)
    d_maps, sums, parts = 4 * s.N * s.P * s.K, 3 * 4 * s.N * s.K, dw_parts(case) * weight
    projection, pooling = 2 * s.N * s.P * s.D * s.K, 2 * s.N * s.P * s.C * s.L
    stored = copy or weight
    cast, cast_back = ([(name, Cost(weight + copy, 0))] if copy else [] for name in ("W to 16 bits", "dW to 32 bits"))
    return {
        "forward": [
            *cast,
            ("E1, norms", Cost(pixels + stored + heat + norms, projection)),
            ("E2-E5", Cost(heat + norms + features + pooled, pooling)),
        ],
        "backward": [
            ("E6-E7", Cost(heat + norms + features + pooled + features + d_maps + sums, 2 * pooling)),
            ("E8-E9", Cost(heat + norms + d_maps + sums + heat, 0)),
            ("E10, dX", Cost(heat + stored + pixels, projection)),
            ("E10, parts of dW", Cost(heat + pixels + parts, projection)),
            ("E10, sum of dW", Cost(parts + stored, 0)),
            *cast_back,
        ],
    }


def dw_parts(case: Case) -> int:
    """Parts in which dW is summed, in 16 bits: few, so that all programs just fill a GPU, each with some rows."""
    s = case.shape
    columns = -(-s.D // DW_COLUMNS) * -(-s.K // min(s.K, DW_ROWS))
    tiles = -(-s.N * s.P // 64)
    return -(-tiles // max(LEAST_TILES, -(-tiles // max(1, PROGRAMS // columns))))


def _weight_copy(case: Case) -> int:
    """Bytes of the weight's copy in 16 bits, which autocast makes; none where everything is float32."""
    size = DTYPES[case.dtype].itemsize
    return case.shape.K * case.shape.D * size if size == 2 else 0


def saved_bytes(case: Case) -> int:
    """What the fused op keeps for the backward beyond its inputs: M as it is stored, norms, the copy of the weight."""
    s = case.shape
    return s.N * s.K * s.P * DTYPES[case.dtype].itemsize + 4 * s.N * s.P + _weight_copy(case)


def predicted_seconds(case: Case, gpu: GPU) -> dict[str, float]:
    """Seconds of the passes of the triton backend by mode."""
    sums = {way: sum(floor_seconds(cost, gpu.rates) for _, cost in ps) for way, ps in passes(case).items()}
    return {"forward": sums["forward"], "forward+backward": sums["forward"] + sums["backward"]}


@dataclass(frozen=True)
class Eager:
    """Plain PyTorch under bfloat16 autocast, its operators counted on tensors that have shapes and no contents."""

    operators: dict[str, list[tuple[str, Cost]]]  # by mode
    saved_bytes: int

    def seconds(self, mode: str, rates: Rates) -> float:
        return sum(floor_seconds(cost, rates) for _, cost in self.operators[mode])

    def total(self, mode: str) -> Cost:
        return sum((cost for _, cost in self.operators[mode]), Cost(0, 0))


@cache
def eager(case: Case) -> Eager:
    """Counts what eager reads, writes and saves at full size; under the autocast rules of the CPU.

    CUDA's rules run norm and softmax in float32, so a GPU moves somewhat more.
    """
    s, dtype = case.shape, DTYPES[case.dtype]
    with FakeTensorMode():
        image = partial(_image, dtype=dtype, layout=LAYOUTS[case.layout])
        weight = torch.empty(s.K, s.D).requires_grad_()
        inputs = Inputs(image(s.N, s.C, s.H, s.W), image(s.N, s.D, s.H, s.W), weight,
                        torch.empty(s.N, s.L, s.C, dtype=dtype))  # fmt: skip

        def run(mode: str) -> None:
            with autocast(case):
                pooled = eager_align_aggregate(*inputs.leaves)
            if mode != "forward":
                torch.autograd.grad(pooled, inputs.leaves, inputs.grad)

        return Eager({mode: _count(partial(run, mode)) for mode in MODES}, _saved(partial(run, MODES[1]), inputs))


def _image(*shape: int, dtype: torch.dtype, layout: torch.memory_format) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype).contiguous(memory_format=layout).requires_grad_()


def _count(call: Callable[[], object]) -> list[tuple[str, Cost]]:
    with footprint.Operators() as seen:
        call()
    return seen.operators


def _saved(call: Callable[[], object], inputs: Inputs) -> int:
    return footprint.saved_bytes(call, inputs.leaves)
