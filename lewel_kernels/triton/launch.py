"""A kernel with its grid and arguments, and what the launches of a call share.

Grids are in forward_launches.py and backward_launches.py alone. These plan from a `lewel_kernels.plan.Call`, without
tensors and without triton, and launch nothing; replay.py does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lewel_kernels import plan
from lewel_kernels.plan import Array, Call, cdiv
from lewel_kernels.triton import configs


@dataclass(frozen=True)
class Launch(plan.Pass):
    """One kernel with everything it is launched with."""

    config: configs.Config
    entry: Any  # the name of the kernel, or the triton.JITFunction itself
    constexprs: dict[str, Any]  # beside the blocks of the configuration; types are those of torch

    def __str__(self) -> str:
        grid, work = " x ".join(map(str, self.grid)), f"{self.nbytes / 1e6:.1f} MB, {self.flops / 1e9:.1f} GFLOP"
        return f"{self.config.key}: {self.config}; from {self.config.source}; {grid} programs, {work}"

    @property
    def kernel(self) -> Any:
        """The triton.JITFunction. Looked up here, so that planning imports no triton."""
        if not isinstance(self.entry, str):
            return self.entry
        from lewel_kernels.triton import backward_kernels, forward_kernels

        return getattr(forward_kernels, self.entry, None) or getattr(backward_kernels, self.entry)

    @property
    def constants(self) -> dict[str, Any]:
        """The constexpr arguments, blocks included, as Triton takes them."""
        import triton.language as tl

        types = {torch.float32: tl.float32, torch.float64: tl.float64}
        given = {**self.config.blocks, **self.constexprs}
        return {name: types[x] if isinstance(x, torch.dtype) else x for name, x in given.items()}

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told. The fusion of products and sums is pinned: a variable could turn it off."""
        return {"num_warps": self.config.num_warps, "num_stages": self.config.num_stages, "enable_fp_fusion": True}

    def on(self, tensors: dict[str, Tensor]) -> Launch:
        """The same launch with the tensor of its name in place of each array."""
        given = {name: tensors[x.name] if isinstance(x, Array) else x for name, x in self.arguments.items()}
        return replace(self, arguments=given)

    def run(self) -> None:
        """Launches it; only what `on` returned can be."""
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)


class Plan(NamedTuple):
    """The results of a call and the launches that fill them."""

    outputs: tuple[Array | None, ...]
    launches: list[Launch]

    @property
    def made(self) -> list[Array]:
        """Arrays that have to be allocated: the outputs, and those that launches pass numbers through."""
        used = [x for launch in self.launches for x in launch.arrays]
        every = {x.name: x for x in (*self.outputs, *used) if x is not None}
        return [x for x in every.values() if x in self.outputs or x.name not in plan.TENSORS]

    @property
    def workspace(self) -> int:
        """Bytes of the arrays that are neither inputs nor outputs."""
        return sum(x.nbytes for x in self.made if x not in self.outputs)

    def on(self, tensors: dict[str, Tensor]) -> list[Launch]:
        """The launches with tensors in place of arrays. ``tensors`` has the inputs by name; the others are added."""
        device = tensors["features"].device
        tensors |= {x.name: x.empty(device) for x in self.made}
        return [launch.on(tensors) for launch in self.launches]


def find(call: Call, name: str, **key: int | str) -> configs.Config:
    """The configuration of a kernel for a call."""
    return configs.find(name, configs.architecture(call.capability), call.dtype, **key)


def launch(
    call: Call, config: configs.Config, equations: str, kernel: str, grid: Sequence[int], arguments: dict[str, Any],
    flops: int | None = None, **constexprs: Any,
) -> Launch:  # fmt: skip
    """A launch with the types of the call. ``flops``: of the products that the kernel has; None where it has none."""
    constexprs["ACC"] = call.acc
    if flops is not None:
        constexprs["PRECISION"] = "tf32" if call.tf32 else "ieee"
    return Launch(equations, (*grid, 1, 1)[:3], arguments, flops or 0, config, kernel, constexprs)


def allows_tf32(dtype: torch.dtype) -> bool:
    """Whether products of a dtype may be rounded to TF32, as PyTorch's own."""
    if dtype != torch.float32:
        return False
    # Not allow_tf32, which raises where somebody has used this newer switch. "none" leaves it to the one for all.
    allowed = torch.backends.cuda.matmul.fp32_precision
    everywhere = torch.backends.fp32_precision  # type: ignore[attr-defined]
    return bool((everywhere if allowed == "none" else allowed) == "tf32")


def e0(call: Call) -> dict[str, bool]:
    """For the keys of kernels that read pixels: E0 takes registers."""
    return {"E0": True} if call.scale is not None else {}


def numbers(call: Call) -> dict[str, float]:
    return {"eps": call.options.eps, "factor": math.log2(math.e) / call.options.temperature}


def tiling(x: Array) -> str:
    return "rows" if x.layout == "rows" else "images"


def strides(names: str, x: Array | None) -> dict[str, int]:
    """The strides of x under their names in a kernel: "xn xd xp" gives s_xn, s_xd and s_xp. Zeros without an array."""
    parts = names.split()
    return {f"s_{name}": 0 if x is None else x.stride[i] for i, name in enumerate(parts)}


def row_tiles(x: Array, block: int) -> int:
    """Tiles of rows of x (N, D, P), as `blocks.rows_of` counts them."""
    n, _, p = x.shape
    return cdiv(n * p, block) if tiling(x) == "rows" else n * cdiv(p, block)
