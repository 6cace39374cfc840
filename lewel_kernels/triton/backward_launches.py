"""The launches of a backward: grids and arguments of the kernels in backward_kernels.py."""

from __future__ import annotations

from lewel_kernels.plan import Array, Call, cdiv, parts
from lewel_kernels.triton.configs import power
from lewel_kernels.triton.forward_launches import softmax, statistics
from lewel_kernels.triton.launch import Launch, Plan, e0, find, launch, numbers, row_tiles, strides, tiling

# Of the sum over rows of dW: about the multiprocessors of a GPU, and tiles of rows that one takes at least.
PROGRAMS, LEAST_TILES = 132, 4


def plan(call: Call) -> Plan:
    """Gradients of (features, pixels, weight, bias, scale, shift), None where not needed, and what fills them.

    Where the features are projected, their gradient holds both of its terms, E6 and E10.
    """
    gradients = call.gradients()
    d_features, d_pixels, d_weight, d_bias, d_scale, d_shift = gradients
    if call.sizes.N == 0:
        return Plan(gradients, [])
    d_x = d_features if call.pixels is None else d_pixels
    assert call.heat is not None
    da = call.heat.like("d_maps", call.acc) if any((d_x, *gradients[2:])) else None
    launches, stats, delta = _pool_bwd(call, d_features, da)
    if da is None:
        return Plan(gradients, launches)
    dm = call.heat.like("d_heat", call.dtype) if any((d_x, d_weight, d_scale, d_shift)) else None
    launches += _maps_bwd(call, stats, delta, da, dm, d_bias)
    if dm is not None and any((d_x, d_scale, d_shift)):
        launches += _pixels_bwd(call, dm, d_x, d_scale, d_shift)
    if dm is not None and d_weight is not None:
        launches += _weight_bwd(call, dm, d_weight)
    return Plan(gradients, launches)


def _pool_bwd(
    call: Call, d_features: Array | None, da: Array | None
) -> tuple[list[Launch], tuple[Array, Array], Array]:
    n, c, _, k, l, p = call.sizes
    g, x, grad, grad_maps, heat, norm = call.options.num_groups, call.features, *call[-4:]
    config = find(call, "pool_bwd", layout=x.layout, P=min(power(p), 512), L=power(l))
    tiles = cdiv(p, config.blocks["BLOCK_P"])
    top, inverse = statistics(call)
    assert heat is not None
    assert norm is not None
    launches = [softmax(call, heat, norm).launch] if tiles > 1 else []
    delta = Array.new("delta in parts" if tiles > 1 else "delta", (tiles, n, k), call.acc)
    arguments = {
        "p_f": x, "p_heat": heat, "p_norm": norm, "p_dr": grad, "p_da_in": grad_maps,
        "p_top": top, "p_inverse": inverse, "p_df": d_features, "p_da": da, "p_delta": delta,
        "N": n, "P": p, "C": c, "width": c // g, "G": g, "L": l,
        **strides("fn fc fp", x), **strides("rn rl rc", grad), **strides("an ak ap", grad_maps),
        **strides("dn dc dp", d_features), **numbers(call),
    }  # fmt: skip
    flops = call.sizes.pooling * ((d_features is not None) + (da is not None))
    constants = {"ONE_TILE": tiles == 1, "BLOCK_L": power(l)}
    launches.append(launch(call, config, "E6-E7", "pool_bwd_kernel", (n * tiles, g), arguments, flops, **constants))
    if tiles > 1 and da is not None:
        total = Array.new("delta", (n, k), call.acc)
        launches.append(_sum(call, "E8, sum over tiles", delta, total))
        delta = total
    return launches, (top, inverse), delta


def _maps_bwd(
    call: Call, stats: tuple[Array, Array], delta: Array, da: Array, dm: Array | None, d_bias: Array | None
) -> list[Launch]:
    n, _, _, k, _, p = call.sizes
    config = find(call, "maps_bwd", K=power(k))
    tiles = cdiv(n * p, config.blocks["BLOCK_R"])
    db = None if d_bias is None else Array.new("parts of d_bias", (tiles, k), call.acc)
    arguments = {
        "p_heat": call.heat, "p_norm": call.norm, "p_top": stats[0], "p_inverse": stats[1], "p_delta": delta,
        "p_da": da, "p_dm": dm, "p_db": db, "R": n * p, "P": p, "K": k, **numbers(call),
        "inverse_tau": 1 / call.options.temperature,
    }  # fmt: skip
    launches = [launch(call, config, "E8-E9", "maps_bwd_kernel", (tiles,), arguments, BLOCK_K=power(k))]
    return launches + ([_sum(call, "E10, sum of db", db, d_bias, tall=True)] if db and d_bias else [])


def _pixels_bwd(call: Call, dm: Array, d_x: Array | None, d_scale: Array | None, d_shift: Array | None) -> list[Launch]:
    n, _, d, k, _, p = call.sizes
    x = call.projected
    read = None if call.scale is None else x  # by E11
    config = find(call, "pixels_bwd", layout=x.layout, K=power(k), **e0(call))
    blocks = config.blocks
    tiles = row_tiles(x, blocks["BLOCK_R"])
    names = ("d_scale", "d_shift") if d_scale or d_shift else ()
    in_parts = [Array.new(f"parts of {name}", (tiles, d), call.acc) for name in names] or (None, None)
    arguments = {
        "p_dm": dm, "p_w": call.weight, "p_x": read, "p_scale": call.scale, "p_shift": call.shift,
        "p_dx": d_x, "p_dscale": in_parts[0], "p_dshift": in_parts[1],
        "R": n * p, "P": p, "K": k, "D": d,
        **strides("wk wd", call.weight), **strides("xn xd xp", read), **strides("dn dd dp", d_x),
    }  # fmt: skip
    grid = (tiles, cdiv(d, blocks["BLOCK_D"] * blocks["CHUNKS"]))
    constants = {"BLOCK_K": power(k), "ADD": call.pixels is None, "TILING": tiling(x)}
    flops = call.sizes.projection
    launches = [launch(call, config, "E10, dX", "pixels_bwd_kernel", grid, arguments, flops, **constants)]
    for part, total in zip(in_parts, (d_scale, d_shift), strict=True):
        if part is not None and total is not None:
            launches.append(_sum(call, f"E11, sum of {total.name}", part, total, tall=True))
    return launches


def _weight_bwd(call: Call, dm: Array, d_weight: Array) -> list[Launch]:
    n, _, d, k, _, p = call.sizes
    x = call.projected
    config = find(call, "weight_bwd", layout=x.layout, K=min(power(k), 512), **e0(call))
    blocks = config.blocks
    tiles = row_tiles(x, blocks["BLOCK_R"])
    columns = (cdiv(d, blocks["BLOCK_D"]), cdiv(k, blocks["BLOCK_K"]))
    each, splits = parts(tiles, columns[0] * columns[1], programs=PROGRAMS, least=LEAST_TILES)
    dw = Array.new("parts of d_weight", (splits, k, d), call.acc)
    equal = tiling(x) == "rows" and (n == 1 or x.stride[0] == p * x.stride[2])
    arguments = {
        "p_dm": dm, "p_x": x, "p_scale": call.scale, "p_shift": call.shift, "p_dw": dw,
        "R": n * p, "P": p, "K": k, "D": d, "tiles": tiles, "tiles_each": each,
        **strides("xn xd xp", x), **strides("vk vd", d_weight),
    }  # fmt: skip
    constants = {"TILING": "dense" if equal else tiling(x)}
    grid, flops = (*columns, splits), call.sizes.projection
    first = launch(call, config, "E10, parts of dW", "weight_bwd_kernel", grid, arguments, flops, **constants)
    return [first, _sum(call, "E10, sum of dW", dw, d_weight)]


def _sum(call: Call, equations: str, parts: Array, total: Array, **tall: bool) -> Launch:
    """The sum of parts (S, ...) over S, in ``total`` (...), contiguous or in any dense order of its own.

    ``tall=True``: S may be large beside the rest, which is then too little to fill a GPU with a part at a time.
    """
    config = find(call, "sum", **tall)
    size = total.nbytes // total.dtype.itemsize
    arguments = {"p_parts": parts, "p_sum": total, "S": parts.shape[0], "size": size}
    return launch(call, config, equations, "sum_kernel", (cdiv(size, config.blocks["BLOCK"]),), arguments)
