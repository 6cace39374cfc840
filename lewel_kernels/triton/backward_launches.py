"""The launches of a backward: grids and arguments of the kernels in backward_kernels.py."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from lewel_kernels.dispatch import Gradients, Needs
from lewel_kernels.triton import backward_kernels
from lewel_kernels.triton.configs import power
from lewel_kernels.triton.forward_launches import softmax
from lewel_kernels.triton.launch import Call, Launch, cdiv, layout, row_tiles, rows_like, strides, tiling

# The sum over rows of dW is spread over about as many programs as a GPU has multiprocessors, each with some tiles of
# rows at least: every further one writes, and the second stage reads, another (K, D) in the accumulator type.
PROGRAMS = 132
LEAST_TILES = 4


def plan(
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
    multiplied = any(x is not None for x in (d_x, d_weight, d_scale, d_shift))
    dm = rows_like(call.features, k, call.dtype) if multiplied else None
    launches += _maps_bwd(call, heat, norm, stats, delta, da, dm, d_bias)
    if dm is not None and any(x is not None for x in (d_x, d_scale, d_shift)):
        launches += _pixels_bwd(call, dm, d_x, d_scale, d_shift, add=shared)
    if dm is not None and d_weight is not None:
        launches += _weight_bwd(call, dm, d_weight)
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
        stats = softmax(call, heat, norm)
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
            config, backward_kernels.pool_bwd_kernel, (n * tiles, g), arguments, ONE_TILE=tiles == 1, BLOCK_L=power(l)
        )
    )
    if tiles > 1 and da is not None:
        total = delta.new_empty(n, k)
        launches.append(_sum(call, delta, total))
        delta = total
    return launches, (top, inverse), delta


def _maps_bwd(
    call: Call, heat: Tensor, norm: Tensor, stats: tuple[Tensor, Tensor], delta: Tensor, da: Tensor,
    dm: Tensor | None, d_bias: Tensor | None,
) -> list[Launch]:  # fmt: skip
    n, _, _, k, _, p = call.sizes
    config = call.config("maps_bwd", K=power(k))
    tiles = cdiv(n * p, config.blocks["BLOCK_R"])
    db = None if d_bias is None else d_bias.new_empty(tiles, k, dtype=call.acc)
    arguments = {
        "p_heat": heat, "p_norm": norm, "p_top": stats[0], "p_inverse": stats[1], "p_delta": delta, "p_da": da,
        "p_dm": dm, "p_db": db, "R": n * p, "P": p, "K": k, **call.numbers, "inverse_tau": 1 / call.temperature,
    }  # fmt: skip
    launches = [call.launch(config, backward_kernels.maps_bwd_kernel, (tiles,), arguments, BLOCK_K=power(k))]
    return launches + ([_sum(call, db, d_bias, tall=True)] if db is not None and d_bias is not None else [])


def _pixels_bwd(
    call: Call, dm: Tensor, d_x: Tensor | None, d_scale: Tensor | None, d_shift: Tensor | None, *, add: bool
) -> list[Launch]:
    n, _, d, k, _, p = call.sizes
    x, e0 = call.pixels, call.scale is not None
    config = call.config("pixels_bwd", layout=layout(x), K=power(k), **call.e0)
    blocks = config.blocks
    tiles = row_tiles(x, blocks["BLOCK_R"])
    affine = d_scale is not None or d_shift is not None
    parts = [x.new_empty(tiles, d, dtype=call.acc) if affine else None for _ in range(2)]
    arguments = {
        "p_dm": dm, "p_w": call.weight, "p_x": x if e0 else None, "p_scale": call.scale, "p_shift": call.shift,
        "p_dx": d_x, "p_dscale": parts[0], "p_dshift": parts[1],
        "R": n * p, "P": p, "K": k, "D": d,
        **strides("wk wd", call.weight), **strides("xn xd xp", x if e0 else None), **strides("dn dd dp", d_x),
    }  # fmt: skip
    grid = (tiles, cdiv(d, blocks["BLOCK_D"] * blocks["CHUNKS"]))
    kernel = backward_kernels.pixels_bwd_kernel
    launches = [call.launch(config, kernel, grid, arguments, BLOCK_K=power(k), ADD=add, TILING=tiling(x))]
    for part, total in zip(parts, (d_scale, d_shift), strict=True):
        if part is not None and total is not None:
            launches.append(_sum(call, part, total, tall=True))
    return launches


def _weight_bwd(call: Call, dm: Tensor, d_weight: Tensor) -> list[Launch]:
    n, _, d, k, _, p = call.sizes
    x = call.pixels
    config = call.config("weight_bwd", layout=layout(x), K=min(power(k), 512), **call.e0)
    blocks = config.blocks
    tiles = row_tiles(x, blocks["BLOCK_R"])
    columns = (cdiv(d, blocks["BLOCK_D"]), cdiv(k, blocks["BLOCK_K"]))
    each = max(LEAST_TILES, cdiv(tiles, max(1, PROGRAMS // (columns[0] * columns[1]))))
    splits = cdiv(tiles, each)
    dw = d_weight.new_empty(splits, k, d, dtype=call.acc)
    equal = tiling(x) == "rows" and (n == 1 or x.stride(0) == p * x.stride(2))
    arguments = {
        "p_dm": dm, "p_x": x, "p_scale": call.scale, "p_shift": call.shift, "p_dw": dw,
        "R": n * p, "P": p, "K": k, "D": d, "tiles": tiles, "tiles_each": each,
        **strides("xn xd xp", x), **strides("vk vd", d_weight),
    }  # fmt: skip
    kernel = backward_kernels.weight_bwd_kernel
    launch = call.launch(config, kernel, (*columns, splits), arguments, TILING="dense" if equal else tiling(x))
    return [launch, _sum(call, dw, d_weight)]


def _sum(call: Call, parts: Tensor, total: Tensor, **tall: bool) -> Launch:
    """The sum of parts (S, ...) over S, in ``total`` (...), contiguous or in any dense order of its own.

    ``tall=True``: S may be large beside the rest, which is then too little to fill a GPU with a part at a time.
    """
    config = call.config("sum", **tall)
    arguments = {"p_parts": parts, "p_sum": total, "S": parts.shape[0], "size": total.numel()}
    return call.launch(config, backward_kernels.sum_kernel, (cdiv(total.numel(), config.blocks["BLOCK"]),), arguments)
