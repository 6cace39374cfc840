"""Which kernels a call launches: designs, grids and arguments. The only place with a grid.

A plan is made from tensors that may have no contents (device "meta"), and does nothing; `run` launches it.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from lewel_kernels import reference
from lewel_kernels.dispatch import Gradients, Needs
from lewel_kernels.triton import backward_kernels, configs, forward_kernels
from lewel_kernels.triton.configs import power

# |U| <= 1, and exp((U - 1) / tau) >= exp(-2 / tau) must be a normal float32; see docs/math.md.
LEAST_BOUNDED_TEMPERATURE = 0.025
# Programs that sums over the batch are spread over: some for each multiprocessor of the largest GPU.
PROGRAMS = 264


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

    def run(self) -> None:
        self.kernel[self.grid](
            **self.arguments, **self.constants,
            num_warps=self.config.num_warps, num_stages=self.config.num_stages, enable_fp_fusion=True,
        )  # fmt: skip


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
        return "tf32" if self.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"

    def config(self, name: str, **key: int | str) -> configs.Config:
        return configs.find(name, self.arch, self.dtype, **key)

    def launch(
        self, config: configs.Config, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], **constants: Any
    ) -> Launch:
        """A launch with the blocks of its configuration, those of ``constants``, and the types of this call."""
        common = {"ACC": tl.float64 if self.acc == torch.float64 else tl.float32, "PRECISION": self.precision}
        constants |= config.blocks | {name: x for name, x in common.items() if name in kernel.arg_names}
        return Launch(config, kernel, (*grid, 1, 1)[:3], arguments, constants)


def run(launches: list[Launch], device: torch.device) -> None:
    """Launches them in order, on the current stream of their device."""
    # Triton launches on the current device, which need not be that of the tensors.
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else contextlib.nullcontext():
        for launch in launches:
            launch.run()


def describe(call: Call, out_dtype: torch.dtype) -> str:
    """The launches of a call and of its backward with all gradients, in lines for a person."""
    outputs, forward = plan_forward(call, out_dtype=out_dtype, return_maps=False)
    _, backward = plan_backward(call, outputs[0], None, *outputs[2:], needs=(True,) * 6)
    design = "projection kept on chip" if is_dense(call) else "projection, then pooling"
    lines = [f"forward ({design}):", *map(str, forward), "backward:", *map(str, backward)]
    return "\n".join(line if line.endswith(":") else f"  {line}" for line in lines)


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


def is_dense(call: Call) -> bool:
    """Whether the projection stays on chip: many positions, and all maps and channels at once in the registers."""
    _, c, d, _, l, p = call.sizes
    g = triton.next_power_of_2(call.num_groups)
    maps, channels = g * power(l), g * power(c // call.num_groups)
    return p > 256 and d <= 512 and maps <= 128 and channels <= 256 and maps * channels * call.dtype.itemsize <= 2**17


def plan_forward(
    call: Call, *, out_dtype: torch.dtype, return_maps: bool
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], list[Launch]]:
    """(pooled, maps, heat, norm) of `lewel_kernels.reference.forward`, and the launches that fill them."""
    n, c, _, k, l, p = call.sizes
    x, new = call.features, call.features.new_empty
    pooled = new(n, l, c, dtype=out_dtype)
    maps = new((n, k, p) if return_maps else (0,), dtype=out_dtype)
    heat, norm = rows_like(x, k, call.dtype), new(n, p, dtype=call.acc)
    if n == 0:
        return (pooled, maps, heat, norm), []
    if is_dense(call):
        launches = _dense(call, heat, norm, pooled)
        stats = None
    else:
        launches = [_project(call, heat, norm)]
        config = call.config("pool", layout=layout(x), P=min(power(p), 512), L=power(l))
        stats = None if p <= config.blocks["BLOCK_P"] else _softmax(call, heat, norm)
        launches += [stats.launch] if stats else []
        launches.append(_pool(call, config, heat, norm, stats, pooled))
    if return_maps:
        if stats is None:
            stats = _softmax(call, heat, norm)
            launches.append(stats.launch)
        launches.append(_maps(call, heat, norm, stats, maps))
    return (pooled, maps, heat, norm), launches


def _project(call: Call, heat: Tensor, norm: Tensor) -> Launch:
    n, _, d, k, _, p = call.sizes
    x = call.pixels
    config = call.config("project", layout=layout(x), K=min(power(k), 512), **call.e0)
    arguments = {
        "p_x": x, "p_w": call.weight, "p_b": call.bias, "p_scale": call.scale, "p_shift": call.shift,
        "p_heat": heat, "p_norm": norm, "R": n * p, "P": p, "D": d, "K": k,
        **strides("xn xd xp", x), **strides("wk wd", call.weight), **strides("b", call.bias),
    }  # fmt: skip
    grid = (row_tiles(x, config.blocks["BLOCK_R"]),)
    return call.launch(config, forward_kernels.project_kernel, grid, arguments, TILING=tiling(x))


@dataclass(frozen=True)
class _Stats:
    """What the softmax over positions needs to know of all of them, (N, K) each, and what computes it."""

    top: Tensor
    inverse: Tensor
    launch: Launch


def _softmax(call: Call, heat: Tensor, norm: Tensor) -> _Stats:
    n, _, _, k, _, p = call.sizes
    top, inverse = (norm.new_empty(n, k) for _ in range(2))
    config = call.config("softmax")
    arguments = {
        "p_heat": heat, "p_norm": norm, "p_top": top, "p_inverse": inverse, "P": p, "K": k, **call.numbers,
    }  # fmt: skip
    grid = (n, cdiv(k, config.blocks["BLOCK_K"]))
    return _Stats(top, inverse, call.launch(config, forward_kernels.softmax_kernel, grid, arguments))


def _pool(
    call: Call, config: configs.Config, heat: Tensor, norm: Tensor, stats: _Stats | None, pooled: Tensor
) -> Launch:
    n, c, _, _, l, p = call.sizes
    g, x, blocks = call.num_groups, call.features, config.blocks
    arguments = {
        "p_f": x, "p_heat": heat, "p_norm": norm,
        "p_top": stats and stats.top, "p_inverse": stats and stats.inverse, "p_r": pooled,
        "P": p, "C": c, "width": c // g, "G": g, "L": l, **strides("fn fc fp", x), **call.numbers,
    }  # fmt: skip
    grid = (n, g, cdiv(c // g, blocks["BLOCK_C"] * blocks["CHUNKS"]))
    return call.launch(config, forward_kernels.pool_kernel, grid, arguments, BLOCK_L=power(l))


def _dense(call: Call, heat: Tensor, norm: Tensor, pooled: Tensor) -> list[Launch]:
    n, c, d, k, l, p = call.sizes
    g, x, f = call.num_groups, call.pixels, call.features
    sizes = {"BLOCK_G": triton.next_power_of_2(g), "BLOCK_L": power(l), "BLOCK_C": power(c // g)}
    key = {"K": sizes["BLOCK_G"] * sizes["BLOCK_L"], "C": sizes["BLOCK_G"] * sizes["BLOCK_C"]}
    config = call.config("dense", layout=layout(x), **key, **call.e0)
    splits = cdiv(p, config.blocks["BLOCK_P"] * config.blocks["TILES"])
    part = norm.new_empty(n, splits, l, c)
    top, total = (norm.new_empty(n, splits, k) for _ in range(2))
    # In float16 exp((U - 1) / tau) would leave the range, in float32 its error would exceed eager's; see docs/math.md.
    bounded = call.dtype == torch.bfloat16 and call.temperature >= LEAST_BOUNDED_TEMPERATURE
    arguments = {
        "p_f": f, "p_x": x, "p_w": call.weight, "p_b": call.bias, "p_scale": call.scale, "p_shift": call.shift,
        "p_heat": heat, "p_norm": norm, "p_part": part, "p_top": top, "p_sum": total,
        "P": p, "C": c, "width": c // g, "D": d, "G": g, "L": l, "S": splits,
        **strides("fn fc fp", f), **strides("xn xd xp", x), **strides("wk wd", call.weight), **strides("b", call.bias),
        **call.numbers,
    }  # fmt: skip
    first = call.launch(config, forward_kernels.dense_kernel, (n, splits), arguments, BOUNDED=bounded, **sizes)
    config = call.config("dense_sum", L=power(l))
    arguments = {
        "p_part": part, "p_top": top, "p_sum": total, "p_r": pooled,
        "C": c, "width": c // g, "G": g, "L": l, "S": splits, "factor": call.numbers["factor"],
    }  # fmt: skip
    grid = (n, g, cdiv(c // g, config.blocks["BLOCK_C"]))
    return [first, call.launch(config, forward_kernels.dense_sum_kernel, grid, arguments, BLOCK_L=power(l))]


def _maps(call: Call, heat: Tensor, norm: Tensor, stats: _Stats, maps: Tensor) -> Launch:
    n, _, _, k, _, p = call.sizes
    config = call.config("maps")
    arguments = {
        "p_heat": heat, "p_norm": norm, "p_top": stats.top, "p_inverse": stats.inverse, "p_a": maps,
        "P": p, "K": k, **call.numbers,
    }  # fmt: skip
    grid = (n, cdiv(p, config.blocks["BLOCK_P"]), cdiv(k, config.blocks["BLOCK_K"]))
    return call.launch(config, forward_kernels.maps_kernel, grid, arguments)


def plan_backward(
    call: Call, grad_pooled: Tensor, grad_maps: Tensor | None, heat: Tensor, norm: Tensor, needs: Needs
) -> tuple[Gradients, list[Launch]]:
    """Gradients of (features, pixels, weight, bias, scale, shift), None where not needed, and what fills them.

    Where the features are projected, their gradient holds both of its terms, E6 and E10.
    """
    n, _, _, k, _, _ = call.sizes
    shared = call.given is None
    inputs = (call.features, call.given, call.weight, call.bias, call.scale, call.shift)
    given = zip(inputs, needs, strict=True)
    gradients = cast(Gradients, tuple(torch.empty_like(x) if need and x is not None else None for x, need in given))
    d_features, d_pixels, d_weight, d_bias, d_scale, d_shift = gradients
    if n == 0:
        for x in gradients[2:]:
            if x is not None:
                x.zero_()
        return gradients, []
    d_x = d_features if shared else d_pixels
    below = any(x is not None for x in (d_x, *gradients[2:]))
    da = rows_like(call.features, k, call.acc) if below else None
    launches, stats, delta = _pool_bwd(call, grad_pooled, grad_maps, heat, norm, d_features, da)
    if da is None:
        return gradients, launches
    dm = rows_like(call.features, k, call.dtype)
    launches.append(_maps_bwd(call, heat, norm, stats, delta, da, dm))
    if any(x is not None for x in (d_x, d_scale, d_shift)):
        launches += _pixels_bwd(call, dm, d_x, d_scale, d_shift, add=shared)
    if d_weight is not None or d_bias is not None:
        launches += _weight_bwd(call, dm, d_weight, d_bias)
    return gradients, launches


def _pool_bwd(
    call: Call, grad_pooled: Tensor, grad_maps: Tensor | None, heat: Tensor, norm: Tensor,
    d_features: Tensor | None, da: Tensor | None,
) -> tuple[list[Launch], tuple[Tensor, Tensor], Tensor]:  # fmt: skip
    n, c, _, k, l, p = call.sizes
    g, x = call.num_groups, call.features
    config = call.config("pool_bwd", layout=layout(x), P=min(power(p), 512), L=power(l))
    tiles = cdiv(p, config.blocks["BLOCK_P"])
    launches = []
    if tiles == 1:
        top, inverse = (norm.new_empty(n, k) for _ in range(2))
    else:
        stats = _softmax(call, heat, norm)
        top, inverse = stats.top, stats.inverse
        launches.append(stats.launch)
    delta = norm.new_empty(tiles, n, k)
    arguments = {
        "p_f": x, "p_heat": heat, "p_norm": norm, "p_dr": grad_pooled, "p_da_in": grad_maps,
        "p_top": top, "p_inverse": inverse, "p_df": d_features, "p_da": da, "p_delta": delta,
        "N": n, "P": p, "C": c, "width": c // g, "G": g, "L": l,
        **strides("fn fc fp", x), **strides("rn rl rc", grad_pooled), **strides("an ak ap", grad_maps),
        **strides("dn dc dp", d_features), **call.numbers,
    }  # fmt: skip
    launches.append(
        call.launch(
            config, backward_kernels.pool_bwd_kernel, (n, g, tiles), arguments, ONE_TILE=tiles == 1, BLOCK_L=power(l)
        )
    )
    if tiles > 1 and da is not None:
        total = delta.new_empty(n, k)
        launches.append(_sum(call, delta, total))
        delta = total
    return launches, (top, inverse), delta


def _maps_bwd(
    call: Call, heat: Tensor, norm: Tensor, stats: tuple[Tensor, Tensor], delta: Tensor, da: Tensor, dm: Tensor
) -> Launch:
    n, _, _, k, _, p = call.sizes
    config = call.config("maps_bwd", K=power(k))
    arguments = {
        "p_heat": heat, "p_norm": norm, "p_top": stats[0], "p_inverse": stats[1], "p_delta": delta, "p_da": da,
        "p_dm": dm, "R": n * p, "P": p, "K": k, **call.numbers, "inverse_tau": 1 / call.temperature,
    }  # fmt: skip
    grid = (cdiv(n * p, config.blocks["BLOCK_R"]),)
    return call.launch(config, backward_kernels.maps_bwd_kernel, grid, arguments, BLOCK_K=power(k))


def _pixels_bwd(
    call: Call, dm: Tensor, d_x: Tensor | None, d_scale: Tensor | None, d_shift: Tensor | None, *, add: bool
) -> list[Launch]:
    n, _, d, k, _, p = call.sizes
    x, e0 = call.pixels, call.scale is not None
    config = call.config("pixels_bwd", layout=layout(x), K=power(k), **call.e0)
    blocks = config.blocks
    tiles = row_tiles(x, blocks["BLOCK_R"])
    parts = None if d_scale is None and d_shift is None else x.new_empty(2, tiles, d, dtype=call.acc)
    arguments = {
        "p_dm": dm, "p_w": call.weight, "p_x": x if e0 else None, "p_scale": call.scale, "p_shift": call.shift,
        "p_dx": d_x,
        "p_dscale": None if parts is None else parts[0], "p_dshift": None if parts is None else parts[1],
        "R": n * p, "P": p, "K": k, "D": d,
        **strides("wk wd", call.weight), **strides("xn xd xp", x if e0 else None), **strides("dn dd dp", d_x),
    }  # fmt: skip
    grid = (tiles, cdiv(d, blocks["BLOCK_D"] * blocks["CHUNKS"]))
    kernel = backward_kernels.pixels_bwd_kernel
    launches = [call.launch(config, kernel, grid, arguments, BLOCK_K=power(k), ADD=add, TILING=tiling(x))]
    for i, total in enumerate((d_scale, d_shift)):
        if parts is not None and total is not None:
            launches.append(_sum(call, parts[i], total))
    return launches


def _weight_bwd(call: Call, dm: Tensor, d_weight: Tensor | None, d_bias: Tensor | None) -> list[Launch]:
    n, _, d, k, _, p = call.sizes
    x = call.pixels
    config = call.config("weight_bwd", layout=layout(x), K=min(power(k), 512), **call.e0)
    blocks = config.blocks
    tiles = row_tiles(x, blocks["BLOCK_R"])
    columns = (1 if d_weight is None else cdiv(d, blocks["BLOCK_D"]), cdiv(k, blocks["BLOCK_K"]))
    each = cdiv(tiles, max(1, PROGRAMS // (columns[0] * columns[1])))
    splits = cdiv(tiles, each)
    dw = None if d_weight is None else d_weight.new_empty(splits, k, d, dtype=call.acc)
    db = None if d_bias is None else d_bias.new_empty(splits, k, dtype=torch.float64)
    equal = tiling(x) == "rows" and (n == 1 or x.stride(0) == p * x.stride(2))
    arguments = {
        "p_dm": dm, "p_x": x, "p_scale": call.scale, "p_shift": call.shift, "p_dw": dw, "p_db": db,
        "R": n * p, "P": p, "K": k, "D": d, "tiles": tiles, "tiles_each": each,
        **strides("xn xd xp", x), **strides("vk vd", d_weight),
    }  # fmt: skip
    kernel = backward_kernels.weight_bwd_kernel
    launches = [call.launch(config, kernel, (*columns, splits), arguments, TILING="dense" if equal else tiling(x))]
    launches += [_sum(call, dw, d_weight)] if dw is not None and d_weight is not None else []
    launches += [_sum(call, db, d_bias)] if db is not None and d_bias is not None else []
    return launches


def _sum(call: Call, parts: Tensor, total: Tensor) -> Launch:
    """The sum of parts (S, ...) over S, in ``total`` (...), contiguous or in any dense order of its own."""
    config = call.config("sum")
    arguments = {"p_parts": parts, "p_sum": total, "S": parts.shape[0], "size": total.numel()}
    return call.launch(config, backward_kernels.sum_kernel, (cdiv(total.numel(), config.blocks["BLOCK"]),), arguments)
