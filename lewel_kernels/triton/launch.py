"""`Launch`, a kernel with its grid and arguments; `Plan`, the launches of a call; and what all launches share.

Grids are in forward_launches.py and backward_launches.py alone. Everything here plans from a `lewel_kernels.plan.Call`,
without tensors and without triton, and launches nothing; replay.py does.
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
    """One launch of a kernel: the kernel, its configuration, grid and arguments."""

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
        """The constexpr arguments by name, blocks included; dtypes are those of Triton."""
        import triton.language as tl

        types = {torch.float32: tl.float32, torch.float64: tl.float64}
        given = {**self.config.blocks, **self.constexprs}
        return {name: types[x] if isinstance(x, torch.dtype) else x for name, x in given.items()}

    @property
    def options(self) -> dict[str, Any]:
        """Options of the compiler. Fused products and sums are pinned: an environment variable could turn them off."""
        return {"num_warps": self.config.num_warps, "num_stages": self.config.num_stages, "enable_fp_fusion": True}

    def on(self, tensors: dict[str, Tensor]) -> Launch:
        """The same launch with arrays replaced by the tensors of their names."""
        given = {name: tensors[x.name] if isinstance(x, Array) else x for name, x in self.arguments.items()}
        return replace(self, arguments=given)

    def run(self) -> None:
        """Launches the kernel; the arguments must be tensors, which `on` puts in place of arrays."""
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)


class Plan(NamedTuple):
    """The results of a call and the launches that fill them."""

    outputs: tuple[Array | None, ...]
    launches: list[Launch]

    @property
    def made(self) -> list[Array]:
        """Arrays that have to be allocated: the outputs, and those that one launch writes for a later one."""
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
    """The configuration of the kernel ``name`` for a call; ``key`` are the further words of its key."""
    return configs.find(name, configs.architecture(call.capability), call.dtype, **key)


def launch(
    call: Call, config: configs.Config, equations: str, kernel: str, grid: Sequence[int], arguments: dict[str, Any],
    flops: int | None = None, **constexprs: Any,
) -> Launch:  # fmt: skip
    """A Launch with ACC and PRECISION from the call. ``flops``: those of the kernel's products, None if it has none."""
    constexprs["ACC"] = call.acc
    if flops is not None:
        constexprs["PRECISION"] = "tf32" if call.tf32 else "ieee"
    return Launch(equations, (*grid, 1, 1)[:3], arguments, flops or 0, config, kernel, constexprs)


def allows_tf32(dtype: torch.dtype) -> bool:
    """Whether PyTorch's settings let products of a dtype be rounded to TF32."""
    if dtype != torch.float32:
        return False
    # Not allow_tf32, which raises where somebody has used this newer switch. "none" leaves it to the one for all.
    allowed = torch.backends.cuda.matmul.fp32_precision
    everywhere = torch.backends.fp32_precision  # type: ignore[attr-defined]
    return bool((everywhere if allowed == "none" else allowed) == "tf32")


def e0(call: Call) -> dict[str, bool]:
    """The word E0 of a configuration's key, for kernels that read pixels: activating them (E0) takes registers."""
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
    """How many tiles of ``block`` rows x (N, D, P) has, as the kernels' `blocks.rows_of` counts them."""
    n, _, p = x.shape
    return cdiv(n * p, block) if tiling(x) == "rows" else n * cdiv(p, block)
