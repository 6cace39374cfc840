"""The kernels of the backward, E6-E11. Grids are in backward_launches.py, the conventions of names in blocks.py."""

import triton
import triton.language as tl

from lewel_kernels.triton.blocks import activate, clamped, dot, rows_of, total, unit_maps, weights


@triton.jit(do_not_specialize=["N"])
def pool_bwd_kernel(
    p_f,  # (N, C, P)
    p_heat,  # (N P, K)
    p_norm,  # (N P,)
    p_dr,  # (N, L, C)
    p_da_in,  # (N, K, P) or None: the gradient of the maps that were returned
    p_top,  # (N, K): written where one tile holds all positions, else read
    p_inverse,  # (N, K) likewise
    p_df,  # (N, C, P) or None where it is not wanted
    p_da,  # (N P, K) or None where nothing of the projection is wanted
    p_delta,  # (tiles, N, K)
    N, P, C, width, G, L,
    s_fn, s_fc, s_fp,
    s_rn, s_rl, s_rc,
    s_an, s_ak, s_ap,
    s_dn, s_dc, s_dp,
    eps: tl.float64,
    factor: tl.float64,
    ONE_TILE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """E6, E7 and the delta of E8 in one pass over features and dR: one program per image, group, tile of positions."""
    tiles = tl.cdiv(P, BLOCK_P)
    i_n = (tl.program_id(0) // tiles).to(tl.int64)
    i_p = tl.program_id(0) % tiles
    i_g = tl.program_id(1)
    K = G * L
    o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P).to(tl.int64)
    m_p = o_p < P
    o_l = tl.arange(0, BLOCK_L).to(tl.int64)
    m_l = o_l < L
    o_k = i_g * L + o_l
    o_nk = i_n * K + o_k
    dtype = p_f.dtype.element_ty
    b_u = unit_maps(p_heat, p_norm, i_n * P + o_p, m_p, o_k, m_l, K, eps, ACC)  # [BP, BL]
    if ONE_TILE:
        b_u = tl.where(m_p[:, None], b_u, float("-inf"))
        b_top = tl.max(b_u, 0)
        b_a = weights(b_u, b_top[None, :], factor)
        b_inverse = 1 / total(b_a, 0)
        if p_da is not None:
            tl.store(p_top + o_nk, b_top, mask=m_l)
            tl.store(p_inverse + o_nk, b_inverse, mask=m_l)
    else:
        b_top = tl.load(p_top + o_nk, mask=m_l, other=0.0)
        b_inverse = tl.load(p_inverse + o_nk, mask=m_l, other=0.0)
        b_a = tl.where(m_p[:, None], weights(b_u, b_top[None, :], factor), 0.0)
    b_a *= b_inverse[None, :]
    b_weight = b_a.to(dtype)

    b_da = tl.zeros([BLOCK_P, BLOCK_L], ACC)
    for i_c in range(0, width, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C).to(tl.int64)
        m_c = o_c < width
        o_c += i_g * width
        b_dr = tl.load(
            p_dr + i_n * s_rn + (o_l * s_rl)[:, None] + (o_c * s_rc)[None, :],
            mask=m_l[:, None] & m_c[None, :], other=0.0,
        ).to(dtype)  # [BL, BC]  # fmt: skip
        m_pc = m_p[:, None] & m_c[None, :]
        if p_da is not None:
            o_f = i_n * s_fn + (o_p * s_fp)[:, None] + (o_c * s_fc)[None, :]
            b_f = tl.load(p_f + o_f, mask=m_pc, other=0.0)  # [BP, BC]
            b_da = dot(b_f, tl.trans(b_dr), b_da, PRECISION)  # E7
        if p_df is not None:
            b_df = dot(b_weight, b_dr, tl.zeros([BLOCK_P, BLOCK_C], ACC), PRECISION)  # E6
            o_df = i_n * s_dn + (o_p * s_dp)[:, None] + (o_c * s_dc)[None, :]
            tl.store(p_df + o_df, b_df, mask=m_pc)
    if p_da is not None:
        m_pl = m_p[:, None] & m_l[None, :]
        if p_da_in is not None:
            o_a = i_n * s_an + (o_k * s_ak)[None, :] + (o_p * s_ap)[:, None]
            b_da += tl.load(p_da_in + o_a, mask=m_pl, other=0.0).to(ACC)
        tl.store(p_da + (i_n * P + o_p)[:, None] * K + o_k[None, :], b_da, mask=m_pl)
        tl.store(p_delta + i_p.to(tl.int64) * N * K + o_nk, total(b_a * b_da, 0), mask=m_l)


@triton.jit(do_not_specialize=["R"])
def maps_bwd_kernel(
    p_heat,  # (R, K)
    p_norm,  # (R,)
    p_top,  # (N, K)
    p_inverse,  # (N, K)
    p_delta,  # (N, K)
    p_da,  # (R, K)
    p_dm,  # (R, K) or None where it is not wanted
    p_db,  # (tiles, K) or None
    R, P, K,
    eps: tl.float64,
    factor: tl.float64,
    inverse_tau: tl.float64,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """E8, E9 and db of E10: one program per tile of rows; it has all K maps of a row at hand.

    dM is rounded once, here, and db sums it before that. weight_bwd_kernel must not sum it: what feeds a product and a
    sum gets too little shared memory from Triton (docs/backends.md).
    """
    i_t = tl.program_id(0)
    o_n, o_p, m_r = rows_of(i_t, R, P, BLOCK_R, "rows")
    o_r = o_n * P + o_p
    o_k = tl.arange(0, BLOCK_K).to(tl.int64)
    m_k = o_k < K
    m_rk = m_r[:, None] & m_k[None, :]
    o_rk = o_r[:, None] * K + o_k[None, :]
    o_nk = o_n[:, None] * K + o_k[None, :]
    b_norm = tl.load(p_norm + o_r, mask=m_r, other=1.0)
    b_u = unit_maps(p_heat, p_norm, o_r, m_r, o_k, m_k, K, eps, ACC)  # [BR, BK]
    b_top = tl.load(p_top + o_nk, mask=m_rk, other=0.0)
    b_a = weights(b_u, b_top, factor) * tl.load(p_inverse + o_nk, mask=m_rk, other=0.0)
    b_du = tl.load(p_da + o_rk, mask=m_rk, other=0.0) - tl.load(p_delta + o_nk, mask=m_rk, other=0.0)
    b_du *= b_a * tl.full((), inverse_tau, ACC)
    b_radial = tl.where(b_norm > tl.full((), eps, ACC), total(b_u * b_du, 1), 0.0)
    b_dm = (b_du - b_u * b_radial[:, None]) / clamped(b_norm, eps)[:, None]
    if p_dm is not None:
        tl.store(p_dm + o_rk, b_dm, mask=m_rk)
    if p_db is not None:  # rows that are not there add nothing: their dM is 0
        tl.store(p_db + i_t.to(tl.int64) * K + o_k, total(b_dm, 0), mask=m_k)


@triton.jit(do_not_specialize=["R"])
def pixels_bwd_kernel(
    p_dm,  # (R, K)
    p_w,  # (K, D)
    p_x,  # (N, D, P) or None without E0
    p_scale,  # (D,) or None
    p_shift,  # (D,) or None
    p_dx,  # (N, D, P) or None where it is not wanted
    p_dscale,  # (tiles, D) or None
    p_dshift,  # (tiles, D) or None
    R, P, K, D,
    s_wk, s_wd,
    s_xn, s_xd, s_xp,
    s_dn, s_dd, s_dp,
    ADD: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, CHUNKS: tl.constexpr,
    TILING: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dX of E10, and E11: one program per tile of rows and CHUNKS blocks of D, with all K maps of dM at hand.

    ADD: dX is added to what p_dx holds, the E6 of features that were projected too.
    """
    i_t = tl.program_id(0)
    o_n, o_p, m_r = rows_of(i_t, R, P, BLOCK_R, TILING)
    o_k = tl.arange(0, BLOCK_K).to(tl.int64)
    m_k = o_k < K
    o_rk = (o_n * P + o_p)[:, None] * K + o_k[None, :]
    b_dm = tl.load(p_dm + o_rk, mask=m_r[:, None] & m_k[None, :], other=0.0)  # [BR, BK]
    for i_c in range(CHUNKS):
        o_d = (tl.program_id(1) * CHUNKS + i_c) * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
        m_d = o_d < D
        b_w = tl.load(
            p_w + (o_k * s_wk)[:, None] + (o_d * s_wd)[None, :], mask=m_k[:, None] & m_d[None, :], other=0.0
        )  # [BK, BD]
        b_dx = dot(b_dm, b_w, tl.zeros([BLOCK_R, BLOCK_D], ACC), PRECISION)
        m_rd = m_r[:, None] & m_d[None, :]
        if p_scale is not None:  # E11
            o_x = (o_n * s_xn + o_p * s_xp)[:, None] + (o_d * s_xd)[None, :]
            b_x = tl.load(p_x + o_x, mask=m_rd, other=0.0).to(ACC)
            b_scale = tl.load(p_scale + o_d, mask=m_d, other=0.0)
            b_shift = tl.load(p_shift + o_d, mask=m_d, other=0.0)
            # Not "where above zero": what is NaN, in pixels or scale, passes the gate as it does in torch.relu.
            b_dx = tl.where(b_x * b_scale[None, :] + b_shift[None, :] <= 0, 0.0, b_dx)
            if p_dscale is not None:  # rows that are not there add nothing: their dM is 0
                o_td = i_t.to(tl.int64) * D + o_d
                tl.store(p_dscale + o_td, total(b_dx * b_x, 0), mask=m_d)
                tl.store(p_dshift + o_td, total(b_dx, 0), mask=m_d)
            b_dx *= b_scale[None, :]
        if p_dx is not None:
            o_dx = (o_n * s_dn + o_p * s_dp)[:, None] + (o_d * s_dd)[None, :]
            if ADD:
                b_dx += tl.load(p_dx + o_dx, mask=m_rd, other=0.0).to(ACC)
            tl.store(p_dx + o_dx, b_dx, mask=m_rd)


@triton.jit(do_not_specialize=["R", "tiles", "tiles_each"])
def weight_bwd_kernel(
    p_dm,  # (R, K)
    p_x,  # (N, D, P)
    p_scale,  # (D,) or None, of E0
    p_shift,  # (D,) or None
    p_dw,  # (S, K, D), each part laid out as dW
    R, P, K, D, tiles, tiles_each,
    s_xn, s_xd, s_xp,
    s_vk, s_vd,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    TILING: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dW of E10, the first of two stages: one program per block of D, block of K, and part of the rows."""
    i_s = tl.program_id(2).to(tl.int64)
    o_d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    m_d = o_d < D
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K).to(tl.int64)
    m_k = o_k < K
    b_dw = tl.zeros([BLOCK_K, BLOCK_D], ACC)
    first = tl.program_id(2) * tiles_each
    last = tl.minimum(first + tiles_each, tiles)
    if p_scale is None:  # or it spills on sm_80
        tl.assume(first < last)  # for the sake of a loop that may not run, ptxas waits for each product on sm_90
    for i_t in range(first, last):
        o_n, o_p, m_r = rows_of(i_t, R, P, BLOCK_R, TILING)
        o_r = o_n * P + o_p
        b_dm = tl.load(p_dm + o_r[:, None] * K + o_k[None, :], mask=m_r[:, None] & m_k[None, :], other=0.0)  # [BR, BK]
        o_x = (o_n * s_xn + o_p * s_xp)[:, None] + (o_d * s_xd)[None, :]
        b_x = tl.load(p_x + o_x, mask=m_r[:, None] & m_d[None, :], other=0.0)  # [BR, BD]
        if p_scale is not None:
            b_x = activate(b_x, p_scale, p_shift, o_d, m_d, ACC)
        b_dw = dot(tl.trans(b_dm), b_x, b_dw, PRECISION)  # [BK, BD]
    o_dw = i_s * K * D + (o_k * s_vk)[:, None] + (o_d * s_vd)[None, :]
    tl.store(p_dw + o_dw, b_dw, mask=m_k[:, None] & m_d[None, :])


@triton.jit(do_not_specialize=["S"])
def sum_kernel(p_parts, p_sum, S, size, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """The second stage: parts (S, size) summed over S, BLOCK_S at a time, in float64."""
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < size
    o_s = tl.arange(0, BLOCK_S).to(tl.int64)
    b_sum = tl.zeros([BLOCK_S, BLOCK], tl.float64)
    for i_s in range(0, S, BLOCK_S):
        m_sx = (i_s + o_s < S)[:, None] & m_x[None, :]
        b_sum += tl.load(p_parts + ((i_s + o_s) * size)[:, None] + o_x[None, :], mask=m_sx, other=0.0).to(tl.float64)
    tl.store(p_sum + o_x, total(b_sum, 0).to(ACC), mask=m_x)
