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
from lewel_kernels.triton import backward_launches, forward_launches
from lewel_kernels.triton.launch import Plan


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


def passes(case: Case) -> dict[str, list[tuple[str, Cost]]]:
    """Equations and cost of each launch that the triton backend plans for an H100, forward and backward.

    The casts of W and dW by autocast are among them.
    """
    call, copy = case.call(), _weight_copy(case)
    whole = Cost(2 * copy + copy, 0)  # the weight in float32, and its copy
    cast, cast_back = ([(name, whole)] if copy else [] for name in ("W to 16 bits", "dW to 32 bits"))
    return {
        "forward": [*cast, *_costs(forward_launches.plan(call))],
        "backward": [*_costs(backward_launches.plan(call.backward())), *cast_back],
    }


def _costs(plan: Plan) -> list[tuple[str, Cost]]:
    return [(launch.equations, Cost(launch.nbytes, launch.flops)) for launch in plan.launches]


def _weight_copy(case: Case) -> int:
    """Bytes of the weight's copy in 16 bits, which autocast makes; none where everything is float32."""
    return case.call().weight.nbytes if DTYPES[case.dtype].itemsize == 2 else 0


def saved_bytes(case: Case) -> int:
    """Bytes that the fused op keeps for the backward beyond its inputs: M as stored, norms, the copy of the weight."""
    _, _, heat, norm = case.call().outputs()
    return heat.nbytes + norm.nbytes + _weight_copy(case)


def predicted_seconds(case: Case, gpu: GPU) -> dict[str, float]:
    """Predicted seconds of the triton backend by mode: the sum over its passes on a GPU."""
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
    """Counts what eager reads, writes and saves in a case, at full size and under the autocast rules of the CPU.

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
