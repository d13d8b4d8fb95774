"""A step backwards: two kernels, each with a program for a tile of rows of one RIM.

``unhear`` goes from the gradient of a RIM's state to that of what it heard, and of its attention. ``unmove``
gathers what all RIMs say of its key and value, and goes through its dynamics to the state before the step.
"""

# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

import triton.language as tl

from rims.nn.fast.kernel.numbers import jit, tanh


@jit
def unhear(
    dh,  # [B, K, D], of the state after the step; dy is added to it
    dy,  # [T, B, K, D]
    active,  # [T, B, K]
    gates,  # [T, B, K, 4 * D]
    qkv,  # [T, B, K, QW]
    hearing,  # [T, B, H, K, K]
    squashed,  # [T, B, K, D]
    w_out,  # [D, H * VP]
    comm_keep,  # [T, B, K, D]
    d_heard,  # [B, K, H * VP]
    d_hearing,  # [B, H, K, K]: of the scores
    d_qkv,  # [T, B, K, QW]: the queries' part
    d_out,  # [T, B, K, D]
    t,
    B,
    key_scale,
    comm_scale,
    K: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    EP: tl.constexpr,
    VP: tl.constexpr,
    DP: tl.constexpr,
    KP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    GRU: tl.constexpr,
    SQUASH: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    QS: tl.constexpr = H * EP
    VS: tl.constexpr = H * VP
    QW: tl.constexpr = 2 * QS + VS
    k = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    here = rows < B
    ks = tl.arange(0, KP)
    dn = tl.arange(0, DP)
    wide = tl.full((), 1, tl.int64)
    first = wide * t * B * K
    pair = rows * K + k
    by_rim = rows[:, None] * K + ks[None, :]
    here_k = here[:, None] & (ks < K)[None, :]
    at = pair[:, None] * D + dn[None, :]
    mask = here[:, None] & (dn < D)[None, :]

    # The gradient of the state after the step, and of the projection of what was heard.
    g = tl.load(dh + at, mask=mask, other=0.0) + tl.load(dy + first * D + at, mask=mask, other=0.0)
    tl.store(dh + at, g, mask=mask)
    on = here & (tl.load(active + first + pair, mask=here, other=0) != 0)
    mask_on = on[:, None] & mask
    if GRU:
        z = tl.load(gates + (first + pair)[:, None] * (4 * D) + D + dn[None, :], mask=mask_on, other=0.0)
        g = g * (1.0 - z.to(tl.float32))
    if SQUASH:
        out = tl.load(squashed + first * D + at, mask=mask_on, other=0.0)
        g = g * (1.0 - out * out)
    if DROPOUT:
        keep = tl.load(comm_keep + first * D + at, mask=mask_on, other=0)
        g = tl.where(keep != 0, g * comm_scale, 0.0)
    g = tl.where(mask_on, g, 0.0).to(w_out.dtype.element_ty)
    tl.store(d_out + first * D + at, g, mask=mask)

    for n0 in tl.range(0, VS, BN, num_stages=STAGES):
        n = n0 + tl.arange(0, BN)
        w = tl.load(
            w_out + dn[:, None] * VS + n[None, :], mask=(dn < D)[:, None] & (n < VS)[None, :], other=0.0
        )
        to = d_heard + pair[:, None] * VS + n[None, :]
        tl.store(to, tl.dot(g, w, input_precision=PRECISION), mask=here[:, None] & (n < VS)[None, :])
    tl.debug_barrier()  # one thread's d_heard is read by others

    # Of what the RIM asked.
    e = tl.arange(0, EP)
    ve = tl.arange(0, VP)
    for head in tl.static_range(H):
        source = qkv + (first + by_rim)[:, :, None] * QW
        keys = tl.load(source + QS + head * EP + e[None, None, :], mask=here_k[:, :, None], other=0.0)
        values = tl.load(source + 2 * QS + head * VP + ve[None, None, :], mask=here_k[:, :, None], other=0.0)
        d = tl.load(d_heard + pair[:, None] * VS + head * VP + ve[None, :], mask=here[:, None], other=0.0)
        spot = (head * K + k) * K + ks[None, :]
        weight = tl.load(
            hearing + (wide * t * B + rows)[:, None] * (H * K * K) + spot, mask=here_k, other=0.0
        )
        d_weight = tl.sum(d[:, None, :] * values.to(tl.float32), 2)
        d_score = weight * (d_weight - tl.sum(weight * d_weight, 1)[:, None]) * key_scale
        tl.store(d_hearing + rows[:, None] * (H * K * K) + spot, d_score, mask=here_k)
        to = d_qkv + (first + pair)[:, None] * QW + head * EP + e[None, :]
        tl.store(to, tl.sum(d_score[:, :, None] * keys.to(tl.float32), 1), mask=here[:, None])


@jit
def unmove(
    dh,  # [B, K, D], of the state after the step; in the end of that before it
    dc,
    dy,  # added here only without communication
    h_before,  # [T, B, K, D], with a GRU
    c_before,
    c_after,
    asks,  # [R, T, B, K, D]
    reads,  # [R, T, B, K, NG * D]
    active,
    attention,  # [R, T, B, K]
    gates,
    qkv,
    hearing,
    squashed,
    w_hh,  # [K, NG * D, DS]
    w_qkv,  # [K, QW, DS]
    reset,
    d_heard,
    d_hearing,
    d_input,  # [T, B, K, NG * D]
    d_state,
    d_scores,  # [R, T, B, K]
    d_qkv,  # the parts of keys and values
    t,
    T,
    B,
    K: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    H: tl.constexpr,
    EP: tl.constexpr,
    VP: tl.constexpr,
    DS: tl.constexpr,
    DP: tl.constexpr,
    KP: tl.constexpr,
    BM: tl.constexpr,
    BW: tl.constexpr,
    STAGES: tl.constexpr,
    GRU: tl.constexpr,
    RESET: tl.constexpr,
    PRECISION: tl.constexpr,
):
    NG: tl.constexpr = 3 if GRU else 4
    QS: tl.constexpr = H * EP
    VS: tl.constexpr = H * VP
    QW: tl.constexpr = 2 * QS + VS
    k = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    here = rows < B
    ks = tl.arange(0, KP)
    dn = tl.arange(0, DP)
    wide = tl.full((), 1, tl.int64)
    first = wide * t * B * K
    pair = rows * K + k
    by_rim = rows[:, None] * K + ks[None, :]
    here_k = here[:, None] & (ks < K)[None, :]
    at = pair[:, None] * D + dn[None, :]
    mask = here[:, None] & (dn < D)[None, :]
    on = here & (tl.load(active + first + pair, mask=here, other=0) != 0)
    mask_on = on[:, None] & mask
    stays = here
    if RESET:
        stays = here & (tl.load(reset + wide * t * B + rows, mask=here, other=0) == 0)

    # Of the RIM's key and value, from all that heard them, and so of the state that it told.
    d_told = tl.zeros((BM, DP), tl.float32)
    if H > 0:
        e = tl.arange(0, EP)
        ve = tl.arange(0, VP)
        for head in tl.static_range(H):
            spot = rows[:, None] * (H * K * K) + (head * K + ks[None, :]) * K + k
            d_score = tl.load(d_hearing + spot, mask=here_k, other=0.0)
            weight = tl.load(hearing + wide * t * B * (H * K * K) + spot, mask=here_k, other=0.0)
            queries = tl.load(
                qkv + (first + by_rim)[:, :, None] * QW + head * EP + e[None, None, :],
                mask=here_k[:, :, None],
                other=0.0,
            )
            d = tl.load(
                d_heard + by_rim[:, :, None] * VS + head * VP + ve[None, None, :],
                mask=here_k[:, :, None],
                other=0.0,
            )
            to = d_qkv + (first + pair)[:, None] * QW + QS + head * EP + e[None, :]
            tl.store(to, tl.sum(d_score[:, :, None] * queries.to(tl.float32), 1), mask=here[:, None])
            to = d_qkv + (first + pair)[:, None] * QW + 2 * QS + head * VP + ve[None, :]
            tl.store(to, tl.sum(weight[:, :, None] * d, 1), mask=here[:, None])
        tl.debug_barrier()  # one thread's d_qkv is read by others
        for n0 in tl.range(0, QW, BW, num_stages=STAGES):
            n = n0 + tl.arange(0, BW)
            x = tl.load(
                d_qkv + (first + pair)[:, None] * QW + n[None, :],
                mask=here[:, None] & (n < QW)[None, :],
                other=0.0,
            )
            w = tl.load(
                w_qkv + (k * QW + n)[:, None] * DS + dn[None, :],
                mask=(n < QW)[:, None] & (dn < DS)[None, :],
                other=0.0,
            )
            d_told = tl.dot(x, w, d_told, input_precision=PRECISION)

    # Through the dynamics, down to the gates' sums.
    after = tl.load(dh + at, mask=mask, other=0.0)
    if H == 0:
        after += tl.load(dy + first * D + at, mask=mask, other=0.0)
    g = after + d_told
    before = tl.where(mask_on, 0.0, g)
    gate = gates + (first + pair)[:, None] * (4 * D) + dn[None, :]
    g0 = tl.load(gate, mask=mask_on, other=0.0).to(tl.float32)
    g1 = tl.load(gate + D, mask=mask_on, other=0.0).to(tl.float32)
    g2 = tl.load(gate + 2 * D, mask=mask_on, other=0.0).to(tl.float32)
    g3 = tl.load(gate + 3 * D, mask=mask_on, other=0.0).to(tl.float32)
    to_state = d_state + (first + pair)[:, None] * (NG * D) + dn[None, :]
    if GRU:
        h_old = tl.load(h_before + first * D + at, mask=mask_on, other=0.0)
        dz = g * (h_old - g2)
        if H > 0:
            dz -= after * tl.load(squashed + first * D + at, mask=mask_on, other=0.0)
        d2 = g * (1.0 - g1) * (1.0 - g2 * g2)
        d0 = tl.where(mask_on, d2 * g3 * g0 * (1.0 - g0), 0.0)
        d1 = tl.where(mask_on, dz * g1 * (1.0 - g1), 0.0)
        d2 = tl.where(mask_on, d2, 0.0)
        d3 = d2
        before += tl.where(mask_on, g * g1, 0.0)
        tl.store(to_state, d0, mask=mask)
        tl.store(to_state + D, d1, mask=mask)
        tl.store(to_state + 2 * D, d2 * g0, mask=mask)
    else:
        c_old = tl.load(c_before + first * D + at, mask=mask_on, other=0.0)
        squashed_c = tanh(tl.load(c_after + first * D + at, mask=mask_on, other=0.0))
        dc_after = tl.load(dc + at, mask=mask, other=0.0)
        dc_new = dc_after + g * g3 * (1.0 - squashed_c * squashed_c)
        d0 = tl.where(mask_on, dc_new * g2 * g0 * (1.0 - g0), 0.0)
        d1 = tl.where(mask_on, dc_new * c_old * g1 * (1.0 - g1), 0.0)
        d2 = tl.where(mask_on, dc_new * g0 * (1.0 - g2 * g2), 0.0)
        d3 = tl.where(mask_on, g * squashed_c * g3 * (1.0 - g3), 0.0)
        dc_before = tl.where(mask_on, dc_new * g1, dc_after)
        tl.store(dc + at, tl.where(stays[:, None], dc_before, 0.0), mask=mask)
    to = d_input + (first + pair)[:, None] * (NG * D) + dn[None, :]
    tl.store(to, d0, mask=mask)
    tl.store(to + D, d1, mask=mask)
    tl.store(to + 2 * D, d2, mask=mask)
    if not GRU:
        tl.store(to + 3 * D, d3, mask=mask)

    # And to what the input was asked.
    for r in tl.static_range(R):
        plane = (wide * r * T + t) * B * K
        p = reads + plane * (NG * D) + pair[:, None] * (NG * D) + dn[None, :]
        da = d0 * tl.load(p, mask=mask_on, other=0.0)
        da += d1 * tl.load(p + D, mask=mask_on, other=0.0)
        da += d2 * tl.load(p + 2 * D, mask=mask_on, other=0.0)
        if not GRU:
            da += d3 * tl.load(p + 3 * D, mask=mask_on, other=0.0)
        a = tl.load(attention + plane + pair, mask=here, other=0.0)
        ds = tl.where(on, tl.sum(da, 1) * a * (1.0 - a), 0.0)
        tl.store(d_scores + plane + pair, ds, mask=here)
        ask = tl.load(asks + plane * D + at, mask=mask_on, other=0.0)
        before += ds[:, None] * ask

    # Through the recurrent weights.
    tl.debug_barrier()  # one thread's d_state is read by others
    for n0 in tl.range(0, NG * D, BW, num_stages=STAGES):
        n = n0 + tl.arange(0, BW)
        x = tl.load(
            d_state + (first + pair)[:, None] * (NG * D) + n[None, :],
            mask=here[:, None] & (n < NG * D)[None, :],
            other=0.0,
        )
        w = tl.load(
            w_hh + (k * NG * D + n)[:, None] * DS + dn[None, :],
            mask=(n < NG * D)[:, None] & (dn < DS)[None, :],
            other=0.0,
        )
        before = tl.dot(x, w, before, input_precision=PRECISION)
    tl.store(dh + at, tl.where(stays[:, None], before, 0.0), mask=mask)
