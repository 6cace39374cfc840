"""The kernels of the forward, E1-E5. Grids are in forward_launches.py, the conventions of names in blocks.py."""

import triton
import triton.language as tl

from lewel_kernels.triton.blocks import clamped, dot, project, rows_of, settled, total, unit_maps, weights


@triton.jit(do_not_specialize=["R"])
def project_kernel(
    p_x,  # (N, D, P)
    p_w,  # (K, D)
    p_b,  # (K,) or None
    p_scale,  # (D,) or None, of E0
    p_shift,  # (D,) or None
    p_heat,  # (R, K)
    p_norm,  # (R,)
    R, P, D, K,
    s_xn, s_xd, s_xp,
    s_wk, s_wd,
    s_b,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    TILING: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """E1 and the norms of E2: one program per tile of rows and all K maps, so that the norm is at hand at its end."""
    o_n, o_p, m_r = rows_of(tl.program_id(0), R, P, BLOCK_R, TILING)
    o_r = o_n * P + o_p
    p_rows = p_x + (o_n * s_xn + o_p * s_xp)  # [BR]
    dtype = p_heat.dtype.element_ty
    b_square = tl.zeros([BLOCK_R], ACC)
    for i_k in range(0, K, BLOCK_K):  # once, unless K is large
        o_k = i_k + tl.arange(0, BLOCK_K).to(tl.int64)
        m_k = o_k < K
        b_m = project(
            p_rows, m_r, p_w, p_b, p_scale, p_shift, o_k, m_k, D, s_xd, s_wk, s_wd, s_b,
            BLOCK_R, BLOCK_K, BLOCK_D, PRECISION, ACC,
        )  # [BR, BK]  # fmt: skip
        b_heat = b_m.to(dtype)
        tl.store(p_heat + o_r[:, None] * K + o_k[None, :], b_heat, mask=m_r[:, None] & m_k[None, :])
        b_m = b_heat.to(ACC)
        b_square += total(b_m * b_m, 1)
    tl.store(p_norm + o_r, tl.sqrt(b_square), mask=m_r)


@triton.jit
def softmax_kernel(
    p_heat,  # (N P, K)
    p_norm,  # (N P,)
    p_top,  # (N, K)
    p_inverse,  # (N, K)
    P, K,
    eps: tl.float64,
    factor: tl.float64,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What E4 needs to know of all positions: the largest U of each map, and 1 / sum_p exp((U - top) / tau)."""
    i_n = tl.program_id(0).to(tl.int64)
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K).to(tl.int64)
    m_k = o_k < K
    b_top = tl.full([BLOCK_K], float("-inf"), ACC)
    b_sum = tl.zeros([BLOCK_K], ACC)
    for i_p in range(0, P, BLOCK_P):
        o_p = i_p + tl.arange(0, BLOCK_P)
        m_p = o_p < P
        b_u = unit_maps(p_heat, p_norm, i_n * P + o_p, m_p, o_k, m_k, K, eps, ACC)  # [BP, BK]
        b_u = tl.where(m_p[:, None], b_u, float("-inf"))
        b_above = tl.maximum(b_top, tl.max(b_u, 0))
        b_sum = b_sum * weights(b_top, b_above, factor) + total(weights(b_u, b_above[None, :], factor), 0)
        b_top = b_above
    tl.store(p_top + i_n * K + o_k, b_top, mask=m_k)
    tl.store(p_inverse + i_n * K + o_k, 1 / b_sum, mask=m_k)


@triton.jit
def pool_kernel(
    p_f,  # (N, C, P)
    p_heat,  # (N P, K)
    p_norm,  # (N P,)
    p_top,  # (N, K), None where one tile holds all positions
    p_inverse,  # (N, K) likewise
    p_r,  # (N, L, C)
    P, C, width, G, L,
    s_fn, s_fc, s_fp,
    eps: tl.float64,
    factor: tl.float64,
    BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """E2-E5: one program per image, group, and CHUNKS blocks of the group's channels."""
    i_n = tl.program_id(0).to(tl.int64)
    i_g = tl.program_id(1)
    o_p = tl.arange(0, BLOCK_P).to(tl.int64)
    o_l = tl.arange(0, BLOCK_L).to(tl.int64)
    m_l = o_l < L
    o_k = i_g * L + o_l
    dtype = p_f.dtype.element_ty
    p_f += i_n * s_fn
    if p_top is None:
        m_p = o_p < P
        b_u = unit_maps(p_heat, p_norm, i_n * P + o_p, m_p, o_k, m_l, G * L, eps, ACC)  # [BP, BL]
        b_u = tl.where(m_p[:, None], b_u, float("-inf"))
        b_a = weights(b_u, tl.max(b_u, 0)[None, :], factor)
        b_a = tl.trans((b_a / total(b_a, 0)[None, :]).to(dtype))  # [BL, BP]
    else:
        b_top = tl.load(p_top + i_n * (G * L) + o_k, mask=m_l, other=0.0)
        b_inverse = tl.load(p_inverse + i_n * (G * L) + o_k, mask=m_l, other=0.0)
    for i_c in range(CHUNKS):
        o_c = (tl.program_id(2) * CHUNKS + i_c) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
        m_c = o_c < width
        o_c += i_g * width
        b_r = tl.zeros([BLOCK_L, BLOCK_C], ACC)
        if p_top is None:
            b_f = tl.load(
                p_f + (o_p * s_fp)[:, None] + (o_c * s_fc)[None, :], mask=m_p[:, None] & m_c[None, :], other=0.0
            )  # [BP, BC]
            b_r = dot(b_a, b_f, b_r, PRECISION)
        else:
            for i_p in range(0, P, BLOCK_P):
                m_p = i_p + o_p < P
                b_f = tl.load(
                    p_f + ((i_p + o_p) * s_fp)[:, None] + (o_c * s_fc)[None, :],
                    mask=m_p[:, None] & m_c[None, :], other=0.0,
                )  # [BP, BC]  # fmt: skip
                b_u = unit_maps(p_heat, p_norm, i_n * P + i_p + o_p, m_p, o_k, m_l, G * L, eps, ACC)  # [BP, BL]
                b_a = weights(b_u, b_top[None, :], factor) * b_inverse[None, :]
                b_a = tl.where(m_p[:, None], b_a, 0.0)
                b_r = settled(dot(tl.trans(b_a.to(dtype)), b_f, b_r, PRECISION))
        tl.store(p_r + i_n * L * C + (o_l * C)[:, None] + o_c[None, :], b_r, mask=m_l[:, None] & m_c[None, :])


@triton.jit
def dense_kernel(
    p_f,  # (N, C, P)
    p_x,  # (N, D, P)
    p_w,  # (K, D)
    p_b,  # (K,) or None
    p_scale,  # (D,) or None, of E0
    p_shift,  # (D,) or None
    p_heat,  # (N P, K)
    p_norm,  # (N P,)
    p_part,  # (N, S, L, C)
    p_top,  # (N, S, K)
    p_sum,  # (N, S, K)
    P, C, width, D, G, L, S,
    s_fn, s_fc, s_fp,
    s_xn, s_xd, s_xp,
    s_wk, s_wd,
    s_b,
    eps: tl.float64,
    factor: tl.float64,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, TILES: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
    BOUNDED: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """E1-E5 of one image and TILES tiles of its positions, the projection kept on chip; `dense_sum_kernel` adds up.

    BOUNDED: |U| <= 1, so exp((U - 1) / tau) needs no running maximum, and parts of the sums simply add.
    """
    i_n = tl.program_id(0).to(tl.int64)
    i_s = tl.program_id(1)
    K = G * L
    # Maps and channels by group, each padded to a power of two: a block of them is a [G, ...] block reshaped.
    o_k = tl.arange(0, BLOCK_G * BLOCK_L).to(tl.int64)
    m_k = (o_k // BLOCK_L < G) & (o_k % BLOCK_L < L)
    o_k = o_k // BLOCK_L * L + o_k % BLOCK_L
    o_c = tl.arange(0, BLOCK_G * BLOCK_C).to(tl.int64)
    m_c = (o_c // BLOCK_C < G) & (o_c % BLOCK_C < width)
    o_c = o_c // BLOCK_C * width + o_c % BLOCK_C
    dtype = p_heat.dtype.element_ty

    b_part = tl.zeros([BLOCK_G, BLOCK_L, BLOCK_C], ACC)
    b_sum = tl.zeros([BLOCK_G * BLOCK_L], ACC)
    b_top = tl.full([BLOCK_G * BLOCK_L], 1.0 if BOUNDED else float("-inf"), ACC)
    for i_t in range(i_s * TILES, tl.minimum((i_s + 1) * TILES, tl.cdiv(P, BLOCK_P))):
        o_p = i_t * BLOCK_P + tl.arange(0, BLOCK_P).to(tl.int64)
        m_p = o_p < P
        p_rows = p_x + i_n * s_xn + o_p * s_xp
        b_m = project(
            p_rows, m_p, p_w, p_b, p_scale, p_shift, o_k, m_k, D, s_xd, s_wk, s_wd, s_b,
            BLOCK_P, BLOCK_G * BLOCK_L, BLOCK_D, PRECISION, ACC,
        )  # [BP, BK]  # fmt: skip
        b_heat = b_m.to(dtype)
        o_r = i_n * P + o_p
        tl.store(p_heat + o_r[:, None] * K + o_k[None, :], b_heat, mask=m_p[:, None] & m_k[None, :])
        b_m = b_heat.to(ACC)
        b_norm = tl.sqrt(total(b_m * b_m, 1))  # [BP]
        tl.store(p_norm + o_r, b_norm, mask=m_p)

        b_u = b_m / clamped(b_norm, eps)[:, None]
        if not BOUNDED:
            b_above = tl.maximum(b_top, tl.max(tl.where(m_p[:, None], b_u, float("-inf")), 0))
            b_old = weights(b_top, b_above, factor)
            b_top = b_above
            b_sum *= b_old
            b_part *= tl.reshape(b_old, [BLOCK_G, BLOCK_L])[:, :, None]
        b_e = tl.where(m_p[:, None], weights(b_u, b_top[None, :], factor), 0.0)  # [BP, BK]
        b_sum += total(b_e, 0)
        b_f = tl.load(
            p_f + i_n * s_fn + (o_p * s_fp)[:, None] + (o_c * s_fc)[None, :],
            mask=m_p[:, None] & m_c[None, :], other=0.0,
        )  # [BP, C]  # fmt: skip
        b_e = tl.permute(tl.reshape(b_e.to(dtype), [BLOCK_P, BLOCK_G, BLOCK_L]), (1, 2, 0))
        b_f = tl.permute(tl.reshape(b_f, [BLOCK_P, BLOCK_G, BLOCK_C]), (1, 0, 2))
        b_part = dot(b_e, b_f, b_part, PRECISION)  # [G, BL, BC]

    i_ns = i_n * S + i_s
    tl.store(p_top + i_ns * K + o_k, b_top, mask=m_k)
    tl.store(p_sum + i_ns * K + o_k, b_sum, mask=m_k)
    o_g = tl.arange(0, BLOCK_G).to(tl.int64)[:, None, None]
    o_l = tl.arange(0, BLOCK_L).to(tl.int64)[None, :, None]
    o_c = tl.arange(0, BLOCK_C).to(tl.int64)[None, None, :]
    m_glc = (o_g < G) & (o_l < L) & (o_c < width)
    tl.store(p_part + i_ns * L * C + o_l * C + o_g * width + o_c, b_part, mask=m_glc)


@triton.jit
def dense_sum_kernel(
    p_part,  # (N, S, L, C)
    p_top,  # (N, S, K)
    p_sum,  # (N, S, K)
    p_r,  # (N, L, C)
    C, width, G, L, S,
    factor: tl.float64,
    BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """E4 and E5 from the parts of `dense_kernel`: one program per image, group, and block of the group's channels."""
    i_n = tl.program_id(0).to(tl.int64)
    i_g = tl.program_id(1)
    o_l = tl.arange(0, BLOCK_L).to(tl.int64)
    m_l = o_l < L
    o_k = i_g * L + o_l
    o_c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    m_lc = m_l[:, None] & (o_c < width)[None, :]
    o_lc = (o_l * C)[:, None] + (i_g * width + o_c)[None, :]
    b_top = tl.full([BLOCK_L], float("-inf"), ACC)
    for i_s in range(S):
        b_top = tl.maximum(b_top, tl.load(p_top + (i_n * S + i_s) * (G * L) + o_k, mask=m_l, other=0.0))
    b_sum = tl.zeros([BLOCK_L], ACC)
    b_r = tl.zeros([BLOCK_L, BLOCK_C], ACC)
    for i_s in range(S):
        i_ns = i_n * S + i_s
        b_scale = weights(tl.load(p_top + i_ns * (G * L) + o_k, mask=m_l, other=0.0), b_top, factor)
        b_sum += b_scale * tl.load(p_sum + i_ns * (G * L) + o_k, mask=m_l, other=1.0)
        b_r += b_scale[:, None] * tl.load(p_part + i_ns * L * C + o_lc, mask=m_lc, other=0.0)
    tl.store(p_r + i_n * L * C + o_lc, b_r / b_sum[:, None], mask=m_lc)


@triton.jit
def maps_kernel(
    p_heat,  # (N P, K)
    p_norm,  # (N P,)
    p_top,  # (N, K)
    p_inverse,  # (N, K)
    p_a,  # (N, K, P)
    P, K,
    eps: tl.float64,
    factor: tl.float64,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """E4 written out: the maps (N, K, P), for calls that return them."""
    tiles = tl.cdiv(P, BLOCK_P)
    i_n = (tl.program_id(0) // tiles).to(tl.int64)
    o_p = (tl.program_id(0) % tiles) * BLOCK_P + tl.arange(0, BLOCK_P).to(tl.int64)
    m_p = o_p < P
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K).to(tl.int64)
    m_k = o_k < K
    b_u = unit_maps(p_heat, p_norm, i_n * P + o_p, m_p, o_k, m_k, K, eps, ACC)  # [BP, BK]
    b_top = tl.load(p_top + i_n * K + o_k, mask=m_k, other=0.0)
    b_inverse = tl.load(p_inverse + i_n * K + o_k, mask=m_k, other=0.0)
    b_a = weights(b_u, b_top[None, :], factor) * b_inverse[None, :]
    tl.store(p_a + (i_n * K + o_k[None, :]) * P + o_p[:, None], b_a, mask=m_p[:, None] & m_k[None, :])
