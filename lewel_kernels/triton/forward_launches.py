"""The launches of a forward: designs, grids and arguments of the kernels in forward_kernels.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lewel_kernels.triton import configs, forward_kernels
from lewel_kernels.triton.configs import next_power, power
from lewel_kernels.triton.launch import Call, Launch, cdiv, layout, row_tiles, rows_like, strides, tiling

# |U| <= 1, and exp((U - 1) / tau) >= exp(-2 / tau) must be a normal float32; see docs/math.md.
LEAST_BOUNDED_TEMPERATURE = 0.025


def plan(
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
        stats = None if p <= config.blocks["BLOCK_P"] else softmax(call, heat, norm)
        launches += [stats.launch] if stats else []
        launches.append(_pool(call, config, heat, norm, stats, pooled))
    if return_maps:
        if stats is None:
            stats = softmax(call, heat, norm)
            launches.append(stats.launch)
        launches.append(_maps(call, heat, norm, stats, maps))
    return (pooled, maps, heat, norm), launches


def is_dense(call: Call) -> bool:
    """Whether the projection stays on chip: many positions, and what is summed for all maps at once in the registers.

    Its products are one for each group; with fewer than four the operands of one take too many registers.
    """
    _, c, d, _, l, p = call.sizes
    g, maps, channels = next_power(call.num_groups), power(l), power(c // call.num_groups)
    fits = g * maps <= 128 and g * channels <= 256 and g * maps * channels * call.acc.itemsize <= 2**15
    return p > 256 and d <= 512 and g >= 4 and fits


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
class Stats:
    """What the softmax over positions needs to know of all of them, (N, K) each, and what computes it."""

    top: Tensor
    inverse: Tensor
    launch: Launch


def softmax(call: Call, heat: Tensor, norm: Tensor) -> Stats:
    n, _, _, k, _, p = call.sizes
    top, inverse = (norm.new_empty(n, k) for _ in range(2))
    config = call.config("softmax")
    arguments = {
        "p_heat": heat, "p_norm": norm, "p_top": top, "p_inverse": inverse, "P": p, "K": k, **call.numbers,
    }  # fmt: skip
    grid = (n, cdiv(k, config.blocks["BLOCK_K"]))
    return Stats(top, inverse, call.launch(config, forward_kernels.softmax_kernel, grid, arguments))


def _pool(
    call: Call, config: configs.Config, heat: Tensor, norm: Tensor, stats: Stats | None, pooled: Tensor
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
    sizes = {"BLOCK_G": next_power(g), "BLOCK_L": power(l), "BLOCK_C": power(c // g)}
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


def _maps(call: Call, heat: Tensor, norm: Tensor, stats: Stats, maps: Tensor) -> Launch:
    n, _, _, k, _, p = call.sizes
    config = call.config("maps")
    arguments = {
        "p_heat": heat, "p_norm": norm, "p_top": stats.top, "p_inverse": stats.inverse, "p_a": maps,
        "P": p, "K": k, **call.numbers,
    }  # fmt: skip
    grid = (n * cdiv(p, config.blocks["BLOCK_P"]), cdiv(k, config.blocks["BLOCK_K"]))
    return call.launch(config, forward_kernels.maps_kernel, grid, arguments)
