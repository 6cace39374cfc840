"""What several kernels share. E1-E11 are the equations of docs/math.md.

In all kernels i_ is the index of a program or tile, o_ offsets, m_ a mask, p_ a pointer, s_ a stride in elements and
b_ a block in registers, tagged with its shape where it is made. Offsets into tensors are 64-bit before they are
multiplied. Rows are the R = N P positions of the batch; `heat` and everything like it is stored as rows of K maps.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(b_a, b_b, b_sum, PRECISION: tl.constexpr):
    """b_sum + b_a @ b_b, summed in the type of b_sum."""
    if INTERPRETED:  # whose own product is a BLAS's, which may round a row by its place in the block
        b_products = tl.expand_dims(b_a.to(tl.float64), -1) * tl.expand_dims(b_b.to(tl.float64), -3)
        b_sum += tl.sum(b_products, -2).to(b_sum.dtype)
    else:
        b_sum = tl.dot(b_a, b_b, b_sum, input_precision=PRECISION, out_dtype=b_sum.dtype)
    return b_sum


@triton.jit
def total(b_x, AXIS: tl.constexpr):
    """The sum of a block over an axis."""
    if INTERPRETED:  # which adds one after the other, where a GPU adds in pairs
        b_sum = tl.sum(b_x.to(tl.float64), AXIS).to(b_x.dtype)
    else:
        b_sum = tl.sum(b_x, AXIS)
    return b_sum


@triton.jit
def settled(b_sum):
    """b_sum unchanged, once the products summed in it are done; called by loops that multiply a block they computed.

    On sm_90 such a block stays in registers, and Triton lets the next step overwrite them while the products of this
    one are pending, which ptxas before 13.3 does not mend (docs/backends.md). Triton waits where the sum is used, here
    by an empty piece of assembly.
    """
    if not INTERPRETED and b_sum.dtype == tl.float32:
        b_sum = tl.inline_asm_elementwise("", "=r,0", [b_sum], b_sum.dtype, is_pure=True, pack=1)
    return b_sum


@triton.jit
def rows_of(i_t, R, P, BLOCK: tl.constexpr, TILING: tl.constexpr):
    """The images and the positions of the rows of tile i_t, both int64, and a mask of the rows that exist.

    TILING "rows" cuts all R rows into tiles; "images" starts a tile anew with each image, so that neighbours in a tile
    are neighbours in memory where positions are contiguous (NCHW); "dense" is "rows" for rows at equal distances, all
    seen as positions of image 0.
    """
    o_t = tl.arange(0, BLOCK)
    if TILING == "images":
        tiles = tl.cdiv(P, BLOCK)
        o_n = i_t // tiles
        o_p = (i_t % tiles) * BLOCK + o_t
        m_r = o_p < P
    elif TILING == "rows":
        o_r = i_t * BLOCK + o_t
        o_n = o_r // P
        o_p = o_r - o_n * P
        m_r = o_r < R
    else:
        o_n = tl.full((), 0, tl.int64)
        o_p = i_t * BLOCK + o_t
        m_r = o_p < R
    return o_n.to(tl.int64), o_p.to(tl.int64), m_r


@triton.jit
def activate(b_x, p_scale, p_shift, o_d, m_d, ACC: tl.constexpr):
    """E0: relu(scale x + shift) of pixels [rows, BD], rounded to their dtype."""
    b_scale = tl.load(p_scale + o_d, mask=m_d, other=0.0)  # [BD]
    b_shift = tl.load(p_shift + o_d, mask=m_d, other=0.0)  # [BD]
    b_y = b_x.to(ACC) * b_scale[None, :] + b_shift[None, :]
    return tl.maximum(b_y, 0.0, propagate_nan=tl.PropagateNan.ALL).to(b_x.dtype)


@triton.jit
def project(
    p_rows,  # [rows], to the first of the pixels' channels
    m_r,
    p_w,  # (K, D)
    p_b,  # (K,) or None
    p_scale,  # (D,) or None, of E0
    p_shift,  # (D,) or None
    o_k, m_k, D,
    s_xd, s_wk, s_wd, s_b,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """E0 and E1 of some rows and maps: M before it is rounded, [rows, maps]."""
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    b_m = tl.zeros([BLOCK_R, BLOCK_K], ACC)
    for i_d in range(0, D, BLOCK_D):
        m_d = i_d + o_d < D
        b_x = tl.load(p_rows[:, None] + ((i_d + o_d) * s_xd)[None, :], mask=m_r[:, None] & m_d[None, :], other=0.0)
        b_w = tl.load(
            p_w + (o_k * s_wk)[:, None] + ((i_d + o_d) * s_wd)[None, :], mask=m_k[:, None] & m_d[None, :], other=0.0
        )  # [BK, BD]
        if p_scale is not None:
            b_x = activate(b_x, p_scale, p_shift, i_d + o_d, m_d, ACC)
        b_m = dot(b_x, tl.trans(b_w), b_m, PRECISION)
        if p_scale is not None:
            b_m = settled(b_m)
    if p_b is not None:
        b_m += tl.load(p_b + o_k * s_b, mask=m_k, other=0.0).to(ACC)[None, :]
    return b_m


@triton.jit
def clamped(b_norm, eps):
    """max(norm, eps) of E2; NaN stays NaN."""
    return tl.maximum(b_norm, tl.full((), eps, b_norm.dtype), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def weights(b_unit, b_top, factor):
    """exp((U - top) / tau) of E4, with factor = log2(e) / tau.

    U - top is taken first: where the result is large, it is small and so is its rounding error.
    """
    return tl.exp2((b_unit - b_top) * tl.full((), factor, b_unit.dtype))


@triton.jit
def unit_maps(p_heat, p_norm, o_r, m_r, o_k, m_k, K, eps, ACC: tl.constexpr):
    """E2: U of some rows and maps, [rows, maps]."""
    m_rk = m_r[:, None] & m_k[None, :]
    b_heat = tl.load(p_heat + o_r[:, None] * K + o_k[None, :], mask=m_rk, other=0.0).to(ACC)
    b_norm = tl.load(p_norm + o_r, mask=m_r, other=1.0)
    return b_heat / clamped(b_norm, eps)[:, None]
