"""The launches of a forward: designs, grids and arguments of the kernels in forward_kernels.py."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lewel_kernels.plan import Array, Call, cdiv
from lewel_kernels.triton import configs
from lewel_kernels.triton.configs import next_power, power
from lewel_kernels.triton.launch import Launch, Plan, e0, find, launch, numbers, row_tiles, strides, tiling

# |U| <= 1, and exp((U - 1) / tau) >= exp(-2 / tau) must be a normal float32; see docs/math.md.
LEAST_BOUNDED_TEMPERATURE = 0.025


def plan(call: Call) -> Plan:
    """(pooled, maps, heat, norm) of `lewel_kernels.reference.forward`, and the launches that fill them."""
    n, _, _, _, l, p = call.sizes
    pooled, maps, heat, norm = outputs = call.outputs()
    if n == 0:
        return Plan(outputs, [])
    if is_dense(call):
        launches = _dense(call, heat, norm, pooled)
        stats = None
    else:
        launches = [_project(call, heat, norm)]
        config = find(call, "pool", layout=call.features.layout, P=min(power(p), 512), L=power(l))
        stats = None if p <= config.blocks["BLOCK_P"] else softmax(call, heat, norm)
        launches += [stats.launch] if stats else []
        launches.append(_pool(call, config, heat, norm, stats, pooled))
    if call.options.return_maps:
        if stats is None:
            stats = softmax(call, heat, norm)
            launches.append(stats.launch)
        launches.append(_maps(call, heat, norm, stats, maps))
    return Plan(outputs, launches)


def is_dense(call: Call) -> bool:
    """Whether the projection stays on chip: many positions, and what is summed for all maps at once in the registers.

    Its products are one for each group; with fewer than four the operands of one take too many registers.
    """
    _, c, d, _, l, p = call.sizes
    g, maps, channels = next_power(call.options.num_groups), power(l), power(c // call.options.num_groups)
    fits = g * maps <= 128 and g * channels <= 256 and g * maps * channels * call.acc.itemsize <= 2**15
    return p > 256 and d <= 512 and g >= 4 and fits


def _project(call: Call, heat: Array, norm: Array) -> Launch:
    n, _, d, k, _, p = call.sizes
    x = call.projected
    config = find(call, "project", layout=x.layout, K=min(power(k), 512), **e0(call))
    arguments = {
        "p_x": x, "p_w": call.weight, "p_b": call.bias, "p_scale": call.scale, "p_shift": call.shift,
        "p_heat": heat, "p_norm": norm, "R": n * p, "P": p, "D": d, "K": k,
        **strides("xn xd xp", x), **strides("wk wd", call.weight), **strides("b", call.bias),
    }  # fmt: skip
    grid = (row_tiles(x, config.blocks["BLOCK_R"]),)
    flops = call.sizes.projection
    return launch(call, config, "E1, norms", "project_kernel", grid, arguments, flops, TILING=tiling(x))


class Stats(NamedTuple):
    """What the softmax over positions needs to know of all of them, (N, K) each, and what computes it."""

    top: Array
    inverse: Array
    launch: Launch


def statistics(call: Call) -> tuple[Array, Array]:
    n, _, _, k, _, _ = call.sizes
    return Array.new("top", (n, k), call.acc), Array.new("inverse", (n, k), call.acc)


def softmax(call: Call, heat: Array, norm: Array) -> Stats:
    n, _, _, k, _, p = call.sizes
    top, inverse = statistics(call)
    config = find(call, "softmax")
    arguments = {
        "p_heat": heat, "p_norm": norm, "p_top": top, "p_inverse": inverse, "P": p, "K": k, **numbers(call),
    }  # fmt: skip
    grid = (n, cdiv(k, config.blocks["BLOCK_K"]))
    return Stats(top, inverse, launch(call, config, "E3, statistics", "softmax_kernel", grid, arguments))


def _pool(call: Call, config: configs.Config, heat: Array, norm: Array, stats: Stats | None, pooled: Array) -> Launch:
    n, c, _, _, l, p = call.sizes
    g, x, blocks = call.options.num_groups, call.features, config.blocks
    arguments = {
        "p_f": x, "p_heat": heat, "p_norm": norm,
        "p_top": stats and stats.top, "p_inverse": stats and stats.inverse, "p_r": pooled,
        "P": p, "C": c, "width": c // g, "G": g, "L": l, **strides("fn fc fp", x), **numbers(call),
    }  # fmt: skip
    grid = (n, g, cdiv(c // g, blocks["BLOCK_C"] * blocks["CHUNKS"]))
    return launch(call, config, "E2-E5", "pool_kernel", grid, arguments, call.sizes.pooling, BLOCK_L=power(l))


def _dense(call: Call, heat: Array, norm: Array, pooled: Array) -> list[Launch]:
    n, c, d, k, l, p = call.sizes
    g, x, f = call.options.num_groups, call.projected, call.features
    sizes = {"BLOCK_G": next_power(g), "BLOCK_L": power(l), "BLOCK_C": power(c // g)}
    key = {"K": sizes["BLOCK_G"] * sizes["BLOCK_L"], "C": sizes["BLOCK_G"] * sizes["BLOCK_C"]}
    config = find(call, "dense", layout=x.layout, **key, **e0(call))
    splits = cdiv(p, config.blocks["BLOCK_P"] * config.blocks["TILES"])
    part = Array.new("parts of pooled", (n, splits, l, c), call.acc)
    top, total = (Array.new(f"{name} of parts", (n, splits, k), call.acc) for name in ("top", "sum"))
    # In float16 exp((U - 1) / tau) would leave the range, in float32 its error would exceed eager's; see docs/math.md.
    bounded = call.dtype == torch.bfloat16 and call.options.temperature >= LEAST_BOUNDED_TEMPERATURE
    arguments = {
        "p_f": f, "p_x": x, "p_w": call.weight, "p_b": call.bias, "p_scale": call.scale, "p_shift": call.shift,
        "p_heat": heat, "p_norm": norm, "p_part": part, "p_top": top, "p_sum": total,
        "P": p, "C": c, "width": c // g, "D": d, "G": g, "L": l, "S": splits,
        **strides("fn fc fp", f), **strides("xn xd xp", x), **strides("wk wd", call.weight), **strides("b", call.bias),
        **numbers(call),
    }  # fmt: skip
    flops = call.sizes.projection + call.sizes.pooling
    first = launch(call, config, "E1-E5", "dense_kernel", (n, splits), arguments, flops, BOUNDED=bounded, **sizes)
    config = find(call, "dense_sum", L=power(l))
    arguments = {
        "p_part": part, "p_top": top, "p_sum": total, "p_r": pooled,
        "C": c, "width": c // g, "G": g, "L": l, "S": splits, "factor": numbers(call)["factor"],
    }  # fmt: skip
    grid = (n, g, cdiv(c // g, config.blocks["BLOCK_C"]))
    return [first, launch(call, config, "E5, sum of parts", "dense_sum_kernel", grid, arguments, BLOCK_L=power(l))]


def _maps(call: Call, heat: Array, norm: Array, stats: Stats, maps: Array) -> Launch:
    n, _, _, k, _, p = call.sizes
    config = find(call, "maps")
    arguments = {
        "p_heat": heat, "p_norm": norm, "p_top": stats.top, "p_inverse": stats.inverse, "p_a": maps,
        "P": p, "K": k, **numbers(call),
    }  # fmt: skip
    grid = (n * cdiv(p, config.blocks["BLOCK_P"]), cdiv(k, config.blocks["BLOCK_K"]))
    return launch(call, config, "E2-E4, maps", "maps_kernel", grid, arguments)
