"""A kernel with its grid and arguments, and what the launches of a call share.

Grids are in forward_launches.py and backward_launches.py alone. These plan from tensors that may have no contents
(device "meta") and launch nothing; replay.py does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from lewel_kernels import reference
from lewel_kernels.triton import configs


@dataclass(frozen=True)
class Launch:
    """One kernel with everything it is launched with."""

    config: configs.Config
    kernel: Any  # triton.JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.config.key}: {self.config}; from {self.config.source}"

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told. The fusion of products and sums is pinned: a variable could turn it off."""
        return {"num_warps": self.config.num_warps, "num_stages": self.config.num_stages, "enable_fp_fusion": True}

    def run(self) -> None:
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)


@dataclass(frozen=True)
class Call:
    """What all launches of a call have in common."""

    features: Tensor  # (N, C, P)
    given: Tensor | None  # (N, D, P); None where features are projected
    weight: Tensor  # (K, D)
    bias: Tensor | None
    scale: Tensor | None  # of E0
    shift: Tensor | None
    num_groups: int
    temperature: float
    eps: float
    arch: str

    @property
    def pixels(self) -> Tensor:
        """What is projected."""
        return self.features if self.given is None else self.given

    @property
    def dtype(self) -> torch.dtype:
        return self.features.dtype

    @property
    def acc(self) -> torch.dtype:
        return reference.accumulator(self.dtype)

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """N, C, D, K, L, P."""
        (n, c, p), (k, d) = self.features.shape, self.weight.shape
        return n, c, d, k, k // self.num_groups, p

    @property
    def e0(self) -> dict[str, bool]:
        """For the keys of kernels that read pixels: E0 takes registers."""
        return {"E0": True} if self.scale is not None else {}

    @property
    def numbers(self) -> dict[str, float]:
        return {"eps": self.eps, "factor": math.log2(math.e) / self.temperature}

    @property
    def precision(self) -> str:
        """TF32 only where PyTorch's own products may take it."""
        return "tf32" if allows_tf32(self.dtype) else "ieee"

    def config(self, name: str, **key: int | str) -> configs.Config:
        return configs.find(name, self.arch, self.dtype, **key)

    def launch(
        self, config: configs.Config, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], **constants: Any
    ) -> Launch:
        """A launch with the blocks of its configuration, those of ``constants``, and the types of this call."""
        common = {"ACC": tl.float64 if self.acc == torch.float64 else tl.float32, "PRECISION": self.precision}
        constants |= config.blocks | {name: x for name, x in common.items() if name in kernel.arg_names}
        return Launch(config, kernel, (*grid, 1, 1)[:3], arguments, constants)


def allows_tf32(dtype: torch.dtype) -> bool:
    """Whether products of a dtype may be rounded to TF32, as PyTorch's own."""
    if dtype != torch.float32:
        return False
    # Not allow_tf32, which raises where somebody has used this newer switch. "none" leaves it to the one for all.
    allowed = torch.backends.cuda.matmul.fp32_precision
    everywhere = torch.backends.fp32_precision  # type: ignore[attr-defined]
    return bool((everywhere if allowed == "none" else allowed) == "tf32")


def layout(x: Tensor) -> str:
    """Whether a row of channels (channels_last) or a plane of positions is what lies together in (N, C, P)."""
    return "rows" if x.stride(1) <= x.stride(2) or x.shape[2] == 1 else "planes"


def tiling(x: Tensor) -> str:
    return "rows" if layout(x) == "rows" else "images"


def strides(names: str, x: Tensor | None) -> dict[str, int]:
    """The strides of x under their names in a kernel: "xn xd xp" gives s_xn, s_xd and s_xp. Zeros without a tensor."""
    parts = names.split()
    return {f"s_{name}": 0 if x is None else x.stride(i) for i, name in enumerate(parts)}


def row_tiles(x: Tensor, block: int) -> int:
    """Tiles of rows of x (N, D, P), as `blocks.rows_of` counts them."""
    n, _, p = x.shape
    return cdiv(n * p, block) if tiling(x) == "rows" else n * cdiv(p, block)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def rows_like(x: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """(N, K, P), stored as rows of K maps."""
    n, _, p = x.shape
    return torch.empty_strided((n, k, p), (p * k, 1, k), dtype=dtype, device=x.device)


def as_rows(heat: Tensor) -> Tensor:
    """The heat maps (N, K, P) in the strides of `rows_like`, which they have unless vmap took them apart."""
    _, k, p = heat.shape
    return heat if heat.stride() == (p * k, 1, k) else rows_like(heat, k, heat.dtype).copy_(heat)
