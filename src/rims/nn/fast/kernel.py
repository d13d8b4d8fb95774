"""The loop over time as one Triton kernel each way.

All coupling between RIMs is inside a batch row, so a program takes a tile of rows, all RIMs of them, and
walks through time without ever waiting for another program. What one thread writes and another reads goes
through global memory (in practice the caches), with a barrier between the phases of a step. Per tile and step
the recurrent and communication weights are read once, from the L2 cache; that traffic, not arithmetic, is
what a step costs (docs/performance.md).

Forwards, a step is: scores and who is active; gates and new states; queries, keys and values; attention over
the RIMs; projection. Backwards the same from the end, with gates and attention weights kept from the forward
pass: reading them costs a fraction of the weights that computing them again would. Products take operands in
the product dtype and accumulate in float32; float32 operands are split in three tf32 products ("tf32x3"),
which keeps float32's precision on tensor cores, unless torch is told to allow tf32.

Sizes are padded to powers of two by masks. Shapes as in :mod:`rims.nn.fast.dense`.
"""

# A kernel's parameters are pointers and numbers that Triton types at each launch.
# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rims.nn.fast.dense import Inputs, Options, Pieces, Saved, states_before


def jit(function: Callable[..., Any]) -> Any:
    """``triton.jit`` of the function itself: run-time checks, which tests wrap it in, do not compile."""
    return triton.jit(inspect.unwrap(function))


@jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@jit
def _tanh(x):
    # Near zero 1 - exp(-2x) loses digits; there, the series.
    s = x * x
    series = x * (1.0 + s * (-0.33333333 + s * (0.13333333 - s * 0.05396825)))
    return tl.where(s < 0.0225, series, 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0)


@jit
def _forward(
    h,  # [T + 1, B, K, D], one end filled with h0
    c,  # the same, or [1, B, K, D] in place
    asks,
    reads,
    w_hh,  # [K, D, NG, DS]
    bias_ih,
    bias_hh,
    w_qkv,  # [K, D, QW]
    w_out,  # [H * VP, DS]
    out_bias,
    reset,
    valid,
    disabled,
    comm_keep,
    active,
    attention,
    gates,
    told,
    qkv,
    hearing,
    heard,
    squashed,
    T,
    B,
    key_scale,
    comm_scale,
    K: tl.constexpr,
    A: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    H: tl.constexpr,
    EP: tl.constexpr,
    VP: tl.constexpr,
    DS: tl.constexpr,
    DP: tl.constexpr,
    KP: tl.constexpr,
    QT: tl.constexpr,
    VT: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BW: tl.constexpr,
    STAGES: tl.constexpr,
    GRU: tl.constexpr,
    BIAS: tl.constexpr,
    RESET: tl.constexpr,
    VALID: tl.constexpr,
    DISABLED: tl.constexpr,
    DROPOUT: tl.constexpr,
    REVERSE: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    NG: tl.constexpr = 3 if GRU else 4
    QS: tl.constexpr = H * EP
    VS: tl.constexpr = H * VP
    QW: tl.constexpr = 2 * QS + VS
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    here = rows < B
    ks = tl.arange(0, KP)
    dn = tl.arange(0, DP)
    by_rim = rows[:, None] * K + ks[None, :]
    here_k = here[:, None] & (ks < K)[None, :]
    size = tl.full((), K * D, tl.int64) * B
    heard_by_all = ks < K
    if DISABLED:
        removed = tl.load(disabled + ks, mask=ks < K, other=0) != 0
        heard_by_all = heard_by_all & (removed == 0)

    for step in tl.range(0, T, num_stages=1):
        t = tl.full((), 0, tl.int64) + step
        if REVERSE:
            t = T - 1 - t
            old = h + (t + 1) * size
            new = h + t * size
            c_old_at = c + (t + 1) * size * KEEP
            c_new_at = c + t * size * KEEP
        else:
            old = h + t * size
            new = h + (t + 1) * size
            c_old_at = c + t * size * KEEP
            c_new_at = c + (t + 1) * size * KEEP
        first = t * B * K  # of the step's (row, RIM) pairs
        kept = first * KEEP  # of those in buffers that have one step only unless kept
        stays = here
        if RESET:
            stays = here & (tl.load(reset + t * B + rows, mask=here, other=0) == 0)

        # Who is active: the scores, and how many RIMs come before.
        penalty = tl.zeros((BM, KP), tl.float32)
        for r in tl.static_range(R):
            plane = r * size * T + t * size
            score = tl.zeros((BM, KP), tl.float32)
            for d0 in tl.range(0, D, 32, num_stages=1):
                d = d0 + tl.arange(0, 32)
                mask = here_k[:, :, None] & (d < D)[None, None, :]
                at = by_rim[:, :, None] * D + d[None, None, :]
                state = tl.load(old + at, mask=mask & stays[:, None, None], other=0.0)
                score += tl.sum(state * tl.load(asks + plane + at, mask=mask, other=0.0), 2)
            tl.store(attention + plane // D + by_rim, _sigmoid(score), mask=here_k)
            penalty += _sigmoid(-score)
        penalty = penalty / R
        penalty = tl.where(penalty != penalty, 2.0, penalty)  # NaN comes last, before the removed
        if DISABLED:
            penalty = tl.where(removed[None, :], 3.0, penalty)
        penalty = tl.where((ks < K)[None, :], penalty, 4.0)
        mine = penalty[:, :, None]
        other = penalty[:, None, :]
        earlier = ks[None, None, :] < ks[None, :, None]
        rank = tl.sum(((other < mine) | ((other == mine) & earlier)).to(tl.int32), 2)
        chosen = rank < A
        if DISABLED:
            chosen = chosen & (removed == 0)[None, :]
        if VALID:
            chosen = chosen & (tl.load(valid + t * B + rows, mask=here, other=0) != 0)[:, None]
        tl.store(active + first + by_rim, chosen.to(tl.uint8), mask=here_k)
        tl.debug_barrier()

        # The dynamics of those that are.
        for k in tl.range(0, K, num_stages=1):
            pair = rows * K + k
            on = here & (tl.load(active + first + pair, mask=here, other=0) != 0)
            s0 = tl.zeros((BM, DP), tl.float32)
            s1 = tl.zeros((BM, DP), tl.float32)
            s2 = tl.zeros((BM, DP), tl.float32)
            s3 = tl.zeros((BM, DP), tl.float32)
            for d0 in tl.range(0, D, BK, num_stages=STAGES):
                d = d0 + tl.arange(0, BK)
                state = tl.load(
                    old + pair[:, None] * D + d[None, :], mask=stays[:, None] & (d < D)[None, :], other=0.0
                ).to(w_hh.dtype.element_ty)
                w = w_hh + (k * D + d)[:, None] * (NG * DS) + dn[None, :]
                inside = (d < D)[:, None] & (dn < DS)[None, :]
                s0 = tl.dot(state, tl.load(w, mask=inside, other=0.0), s0, input_precision=PRECISION)
                s1 = tl.dot(state, tl.load(w + DS, mask=inside, other=0.0), s1, input_precision=PRECISION)
                s2 = tl.dot(state, tl.load(w + 2 * DS, mask=inside, other=0.0), s2, input_precision=PRECISION)
                if not GRU:
                    w3 = tl.load(w + 3 * DS, mask=inside, other=0.0)
                    s3 = tl.dot(state, w3, s3, input_precision=PRECISION)
            at = pair[:, None] * D + dn[None, :]
            mask = here[:, None] & (dn < D)[None, :]
            mask_on = on[:, None] & mask
            mask_stays = stays[:, None] & mask
            p0 = tl.zeros((BM, DP), tl.float32)
            p1 = tl.zeros((BM, DP), tl.float32)
            p2 = tl.zeros((BM, DP), tl.float32)
            p3 = tl.zeros((BM, DP), tl.float32)
            for r in tl.static_range(R):
                plane = r * size * T + t * size
                a = tl.load(attention + plane // D + pair, mask=here, other=0.0)[:, None]
                p = reads + plane * NG + pair[:, None] * (NG * D) + dn[None, :]
                p0 += a * tl.load(p, mask=mask_on, other=0.0)
                p1 += a * tl.load(p + D, mask=mask_on, other=0.0)
                p2 += a * tl.load(p + 2 * D, mask=mask_on, other=0.0)
                if not GRU:
                    p3 += a * tl.load(p + 3 * D, mask=mask_on, other=0.0)
            if BIAS:
                b = k * NG * D + dn
                p0 += tl.load(bias_ih + b, mask=dn < D, other=0.0)[None, :]
                p1 += tl.load(bias_ih + b + D, mask=dn < D, other=0.0)[None, :]
                p2 += tl.load(bias_ih + b + 2 * D, mask=dn < D, other=0.0)[None, :]
                s0 += tl.load(bias_hh + b, mask=dn < D, other=0.0)[None, :]
                s1 += tl.load(bias_hh + b + D, mask=dn < D, other=0.0)[None, :]
                s2 += tl.load(bias_hh + b + 2 * D, mask=dn < D, other=0.0)[None, :]
                if not GRU:
                    p3 += tl.load(bias_ih + b + 3 * D, mask=dn < D, other=0.0)[None, :]
                    s3 += tl.load(bias_hh + b + 3 * D, mask=dn < D, other=0.0)[None, :]
            h_old = tl.load(old + at, mask=mask_stays, other=0.0)
            if GRU:
                g0 = _sigmoid(p0 + s0)
                g1 = _sigmoid(p1 + s1)
                g2 = _tanh(p2 + g0 * s2)
                g3 = s2
                h_new = (1.0 - g1) * g2 + g1 * h_old
            else:
                g0 = _sigmoid(p0 + s0)
                g1 = _sigmoid(p1 + s1)
                g2 = _tanh(p2 + s2)
                g3 = _sigmoid(p3 + s3)
                c_old = tl.load(c_old_at + at, mask=mask_stays, other=0.0)
                c_new = g1 * c_old + g0 * g2
                h_new = g3 * _tanh(c_new)
                tl.store(c_new_at + at, tl.where(mask_on, c_new, c_old), mask=mask)
            if KEEP or GRU:
                g = gates + (kept + pair)[:, None] * (4 * D) + dn[None, :]
                tl.store(g, g0, mask=mask_on)
                tl.store(g + D, g1, mask=mask_on)
                tl.store(g + 2 * D, g2, mask=mask_on)
                tl.store(g + 3 * D, g3, mask=mask_on)
            h_new = tl.where(mask_on, h_new, h_old)
            tl.store(new + at, h_new, mask=mask)
            if KEEP and H > 0:
                tl.store(told + kept * D + at, h_new, mask=mask)
        tl.debug_barrier()

        if H > 0:
            # What each RIM asks and says.
            qn = tl.arange(0, QT)
            vn = tl.arange(0, VT)
            for k in tl.range(0, K, num_stages=1):
                pair = rows * K + k
                q = tl.zeros((BM, QT), tl.float32)
                key = tl.zeros((BM, QT), tl.float32)
                v = tl.zeros((BM, VT), tl.float32)
                for d0 in tl.range(0, D, BK, num_stages=STAGES):
                    d = d0 + tl.arange(0, BK)
                    state = tl.load(
                        new + pair[:, None] * D + d[None, :], mask=here[:, None] & (d < D)[None, :], other=0.0
                    ).to(w_qkv.dtype.element_ty)
                    w = w_qkv + (k * D + d)[:, None] * QW
                    inside = (d < D)[:, None] & (qn < QS)[None, :]
                    wq = tl.load(w + qn[None, :], mask=inside, other=0.0)
                    wk = tl.load(w + QS + qn[None, :], mask=inside, other=0.0)
                    wv = tl.load(
                        w + 2 * QS + vn[None, :], mask=(d < D)[:, None] & (vn < VS)[None, :], other=0.0
                    )
                    q = tl.dot(state, wq, q, input_precision=PRECISION)
                    key = tl.dot(state, wk, key, input_precision=PRECISION)
                    v = tl.dot(state, wv, v, input_precision=PRECISION)
                to = qkv + (kept + pair)[:, None] * QW
                inside = here[:, None] & (qn < QS)[None, :]
                tl.store(to + qn[None, :], q, mask=inside)
                tl.store(to + QS + qn[None, :], key, mask=inside)
                tl.store(to + 2 * QS + vn[None, :], v, mask=here[:, None] & (vn < VS)[None, :])
            tl.debug_barrier()

            # What each hears.
            e = tl.arange(0, EP)
            ve = tl.arange(0, VP)
            for head in tl.range(0, H, num_stages=1):
                source = qkv + (kept + by_rim)[:, :, None] * QW
                keys = tl.load(
                    source + QS + head * EP + e[None, None, :], mask=here_k[:, :, None], other=0.0
                ).to(tl.float32)
                values = tl.load(
                    source + 2 * QS + head * VP + ve[None, None, :], mask=here_k[:, :, None], other=0.0
                ).to(tl.float32)
                for asking in tl.static_range(K):
                    asker = rows * K + asking
                    q = tl.load(
                        qkv + (kept + asker)[:, None] * QW + head * EP + e[None, :],
                        mask=here[:, None],
                        other=0.0,
                    ).to(tl.float32)
                    score = tl.sum(q[:, None, :] * keys, 2) * key_scale
                    score = tl.where(heard_by_all[None, :], score, float("-inf"))
                    weight = tl.exp(score - tl.max(score, 1)[:, None])
                    weight = weight / tl.sum(weight, 1)[:, None]
                    to = heard + (kept + asker)[:, None] * VS + head * VP + ve[None, :]
                    tl.store(to, tl.sum(weight[:, :, None] * values, 1), mask=here[:, None])
                    on = here & (tl.load(active + first + asker, mask=here, other=0) != 0)
                    to = (
                        hearing
                        + (t * B + rows)[:, None] * (H * K * K)
                        + (head * K + asking) * K
                        + ks[None, :]
                    )
                    tl.store(to, tl.where(on[:, None], weight, 0.0), mask=here_k)
            tl.debug_barrier()

            # What that adds to the states of those that are active.
            for k in tl.range(0, K, num_stages=1):
                pair = rows * K + k
                on = here & (tl.load(active + first + pair, mask=here, other=0) != 0)
                out = tl.zeros((BM, DP), tl.float32)
                for v0 in tl.range(0, VS, BW, num_stages=STAGES):
                    v = v0 + tl.arange(0, BW)
                    x = tl.load(
                        heard + (kept + pair)[:, None] * VS + v[None, :],
                        mask=here[:, None] & (v < VS)[None, :],
                        other=0.0,
                    )
                    w = tl.load(
                        w_out + v[:, None] * DS + dn[None, :],
                        mask=(v < VS)[:, None] & (dn < DS)[None, :],
                        other=0.0,
                    )
                    out = tl.dot(x, w, out, input_precision=PRECISION)
                mask_on = on[:, None] & (dn < D)[None, :]
                at = pair[:, None] * D + dn[None, :]
                out += tl.load(out_bias + dn, mask=dn < D, other=0.0)[None, :]
                if DROPOUT:
                    keep = tl.load(comm_keep + first * D + at, mask=mask_on, other=0)
                    out = tl.where(keep != 0, out * comm_scale, 0.0)
                if GRU:
                    z = tl.load(
                        gates + (kept + pair)[:, None] * (4 * D) + D + dn[None, :], mask=mask_on, other=0.0
                    )
                    out = _tanh(out)
                    if KEEP:
                        tl.store(squashed + kept * D + at, out, mask=mask_on)
                    out = (1.0 - z.to(tl.float32)) * out
                tl.store(new + at, tl.load(new + at, mask=mask_on, other=0.0) + out, mask=mask_on)
            tl.debug_barrier()


@jit
def _backward(
    dh,  # [B, K, D], of the last state; in the end of the first
    dc,
    dy,
    h_before,  # with a GRU
    c_before,
    c_after,
    asks,
    reads,
    active,
    attention,
    gates,
    qkv,
    hearing,
    squashed,
    w_hh,  # [K, NG * D, DS]
    w_qkv,  # [K, QW, DS]
    w_out,  # [D, H * VP]
    reset,
    comm_keep,
    d_heard,  # [B, K, H * VP], scratch
    d_input,
    d_state,
    d_scores,
    d_qkv,
    d_out,
    T,
    B,
    key_scale,
    comm_scale,
    K: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    H: tl.constexpr,
    EP: tl.constexpr,
    VP: tl.constexpr,
    DS: tl.constexpr,
    DP: tl.constexpr,
    KP: tl.constexpr,
    VT: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BW: tl.constexpr,
    STAGES: tl.constexpr,
    GRU: tl.constexpr,
    RESET: tl.constexpr,
    DROPOUT: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    NG: tl.constexpr = 3 if GRU else 4
    QS: tl.constexpr = H * EP
    VS: tl.constexpr = H * VP
    QW: tl.constexpr = 2 * QS + VS
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    here = rows < B
    ks = tl.arange(0, KP)
    dn = tl.arange(0, DP)
    by_rim = rows[:, None] * K + ks[None, :]
    here_k = here[:, None] & (ks < K)[None, :]
    size = tl.full((), K * D, tl.int64) * B

    for step in tl.range(0, T, num_stages=1):
        t = tl.full((), 0, tl.int64) + step
        if not REVERSE:
            t = T - 1 - t
        first = t * B * K
        stays = here
        if RESET:
            stays = here & (tl.load(reset + t * B + rows, mask=here, other=0) == 0)

        # The gradient of the states after the step, and of the projection of what was heard.
        for k in tl.range(0, K, num_stages=1):
            pair = rows * K + k
            at = pair[:, None] * D + dn[None, :]
            mask = here[:, None] & (dn < D)[None, :]
            g = tl.load(dh + at, mask=mask, other=0.0) + tl.load(dy + first * D + at, mask=mask, other=0.0)
            tl.store(dh + at, g, mask=mask)
            if H > 0:
                on = here & (tl.load(active + first + pair, mask=here, other=0) != 0)
                mask_on = on[:, None] & mask
                if GRU:
                    z = tl.load(
                        gates + (first + pair)[:, None] * (4 * D) + D + dn[None, :], mask=mask_on, other=0.0
                    )
                    tanh = tl.load(squashed + first * D + at, mask=mask_on, other=0.0)
                    g = g * (1.0 - z.to(tl.float32)) * (1.0 - tanh * tanh)
                if DROPOUT:
                    keep = tl.load(comm_keep + first * D + at, mask=mask_on, other=0)
                    g = tl.where(keep != 0, g * comm_scale, 0.0)
                tl.store(d_out + first * D + at, tl.where(mask_on, g, 0.0), mask=mask)
        tl.debug_barrier()

        if H > 0:
            vn = tl.arange(0, VT)
            for k in tl.range(0, K, num_stages=1):
                pair = rows * K + k
                g = tl.zeros((BM, VT), tl.float32)
                for d0 in tl.range(0, D, BW, num_stages=STAGES):
                    d = d0 + tl.arange(0, BW)
                    x = tl.load(
                        d_out + (first + pair)[:, None] * D + d[None, :],
                        mask=here[:, None] & (d < D)[None, :],
                        other=0.0,
                    )
                    w = tl.load(
                        w_out + d[:, None] * VS + vn[None, :],
                        mask=(d < D)[:, None] & (vn < VS)[None, :],
                        other=0.0,
                    )
                    g = tl.dot(x, w, g, input_precision=PRECISION)
                to = d_heard + pair[:, None] * VS + vn[None, :]
                tl.store(to, g, mask=here[:, None] & (vn < VS)[None, :])
            tl.debug_barrier()

            e = tl.arange(0, EP)
            ve = tl.arange(0, VP)
            for head in tl.range(0, H, num_stages=1):
                here_e = here_k[:, :, None]
                spot = (first + by_rim)[:, :, None] * QW + QS + head * EP + e[None, None, :]
                spot_v = (first + by_rim)[:, :, None] * QW + 2 * QS + head * VP + ve[None, None, :]
                keys = tl.load(qkv + spot, mask=here_e, other=0.0).to(tl.float32)
                values = tl.load(qkv + spot_v, mask=here_e, other=0.0).to(tl.float32)
                d_keys = tl.zeros((BM, KP, EP), tl.float32)
                d_values = tl.zeros((BM, KP, VP), tl.float32)
                for asking in tl.static_range(K):
                    asker = rows * K + asking
                    spot_q = (first + asker)[:, None] * QW + head * EP + e[None, :]
                    q = tl.load(qkv + spot_q, mask=here[:, None], other=0.0).to(tl.float32)
                    g = tl.load(
                        d_heard + asker[:, None] * VS + head * VP + ve[None, :], mask=here[:, None], other=0.0
                    )
                    weight = tl.load(
                        hearing
                        + (t * B + rows)[:, None] * (H * K * K)
                        + (head * K + asking) * K
                        + ks[None, :],
                        mask=here_k,
                        other=0.0,
                    )
                    d_weight = tl.sum(g[:, None, :] * values, 2)
                    d_score = weight * (d_weight - tl.sum(weight * d_weight, 1)[:, None]) * key_scale
                    d_values += weight[:, :, None] * g[:, None, :]
                    d_keys += d_score[:, :, None] * q[:, None, :]
                    d_query = tl.sum(d_score[:, :, None] * keys, 1)
                    tl.store(d_qkv + spot_q, d_query, mask=here[:, None])
                tl.store(d_qkv + spot, d_keys, mask=here_e)
                tl.store(d_qkv + spot_v, d_values, mask=here_e)
            tl.debug_barrier()

        # Through the dynamics, down to the gates' sums and the input attention's scores.
        for k in tl.range(0, K, num_stages=1):
            pair = rows * K + k
            on = here & (tl.load(active + first + pair, mask=here, other=0) != 0)
            at = pair[:, None] * D + dn[None, :]
            mask = here[:, None] & (dn < D)[None, :]
            mask_on = on[:, None] & mask
            d_told = tl.zeros((BM, DP), tl.float32)
            if H > 0:
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
            after = tl.load(dh + at, mask=mask, other=0.0)
            g = after + d_told
            before = tl.where(mask_on, 0.0, g)
            gate = gates + (first + pair)[:, None] * (4 * D) + dn[None, :]
            g0 = tl.load(gate, mask=mask_on, other=0.0).to(tl.float32)
            g1 = tl.load(gate + D, mask=mask_on, other=0.0).to(tl.float32)
            g2 = tl.load(gate + 2 * D, mask=mask_on, other=0.0).to(tl.float32)
            g3 = tl.load(gate + 3 * D, mask=mask_on, other=0.0).to(tl.float32)
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
                to = d_state + (first + pair)[:, None] * (NG * D) + dn[None, :]
                tl.store(to, d0, mask=mask)
                tl.store(to + D, d1, mask=mask)
                tl.store(to + 2 * D, d2 * g0, mask=mask)
            else:
                c_old = tl.load(c_before + first * D + at, mask=mask_on, other=0.0)
                tanh = _tanh(tl.load(c_after + first * D + at, mask=mask_on, other=0.0))
                dc_after = tl.load(dc + at, mask=mask, other=0.0)
                dc_new = dc_after + g * g3 * (1.0 - tanh * tanh)
                d0 = tl.where(mask_on, dc_new * g2 * g0 * (1.0 - g0), 0.0)
                d1 = tl.where(mask_on, dc_new * c_old * g1 * (1.0 - g1), 0.0)
                d2 = tl.where(mask_on, dc_new * g0 * (1.0 - g2 * g2), 0.0)
                d3 = tl.where(mask_on, g * tanh * g3 * (1.0 - g3), 0.0)
                dc_before = tl.where(mask_on, dc_new * g1, dc_after)
                tl.store(dc + at, tl.where(stays[:, None], dc_before, 0.0), mask=mask)
            to = d_input + (first + pair)[:, None] * (NG * D) + dn[None, :]
            tl.store(to, d0, mask=mask)
            tl.store(to + D, d1, mask=mask)
            tl.store(to + 2 * D, d2, mask=mask)
            if not GRU:
                tl.store(to + 3 * D, d3, mask=mask)
            for r in tl.static_range(R):
                plane = r * size * T + t * size
                p = reads + plane * NG + pair[:, None] * (NG * D) + dn[None, :]
                da = d0 * tl.load(p, mask=mask_on, other=0.0)
                da += d1 * tl.load(p + D, mask=mask_on, other=0.0)
                da += d2 * tl.load(p + 2 * D, mask=mask_on, other=0.0)
                if not GRU:
                    da += d3 * tl.load(p + 3 * D, mask=mask_on, other=0.0)
                a = tl.load(attention + plane // D + pair, mask=here, other=0.0)
                ds = tl.where(on, tl.sum(da, 1) * a * (1.0 - a), 0.0)
                tl.store(d_scores + plane // D + pair, ds, mask=here)
                before += ds[:, None] * tl.load(asks + plane + at, mask=mask_on, other=0.0)
            tl.store(dh + at, before, mask=mask)
        tl.debug_barrier()

        # Through the recurrent weights.
        for k in tl.range(0, K, num_stages=1):
            pair = rows * K + k
            g = tl.zeros((BM, DP), tl.float32)
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
                g = tl.dot(x, w, g, input_precision=PRECISION)
            at = pair[:, None] * D + dn[None, :]
            mask = here[:, None] & (dn < D)[None, :]
            g += tl.load(dh + at, mask=mask, other=0.0)
            tl.store(dh + at, tl.where(stays[:, None], g, 0.0), mask=mask)
        tl.debug_barrier()


class Sizes:
    """How a call is cut into tiles and padded."""

    def __init__(self, o: Options, i: Inputs) -> None:
        self.rim = i.h0.shape[1] // o.num_rims
        self.key = self.value = 1
        if o.heads:
            assert i.query is not None
            assert i.value is not None
            self.key, self.value = i.query.shape[-1] // o.heads, i.value.shape[-1] // o.heads
        self.key_padded, self.value_padded = power_of_two(self.key), power_of_two(self.value)
        self.rim_stride = (self.rim + 15) // 16 * 16
        """Of a row of a weight matrix: rows start where 16-byte loads may."""
        half = o.product_dtype.itemsize == 2
        self.common: dict[str, Any] = {
            "K": o.num_rims,
            "D": self.rim,
            "R": o.input_heads,
            "H": o.heads,
            "EP": self.key_padded,
            "VP": self.value_padded,
            "DS": self.rim_stride,
            "DP": max(16, power_of_two(self.rim)),
            "KP": power_of_two(o.num_rims),
            "VT": max(16, power_of_two(o.heads * self.value_padded)),
            "BM": rows_of_a_tile(i.h0),
            "BK": 32 if half else 16,  # rows of a weight matrix at a time, where several are read together
            "BW": 64 if half else 32,  # and where it is one
            "GRU": o.gru,
            "RESET": i.reset is not None,
            "DROPOUT": i.comm_keep is not None,
            "REVERSE": o.reverse,
            "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3",
        }
        self.query_tile = max(16, power_of_two(o.heads * self.key_padded))
        widest = max(self.common["DP"], self.query_tile, self.common["VT"])
        self.common["STAGES"] = 3 if widest <= 128 else 2
        self.launch = {"num_warps": 4 if widest <= 64 else 8}


def power_of_two(size: int) -> int:
    """The least that is not below ``size``."""
    return 1 << (size - 1).bit_length()


def rows_of_a_tile(state: Tensor) -> int:
    """16, the least a tensor core takes, until that many rows keep every multiprocessor busy: a tile's step
    takes as long as the weights need to arrive, however few the rows, so more programs finish sooner."""
    if not state.is_cuda:
        return 16
    processors = torch.cuda.get_device_properties(state.device).multi_processor_count
    return 16 if len(state) <= 16 * processors else 32


def why_not(o: Options, i: Inputs) -> str | None:
    """What keeps a sequence from the kernel; None if nothing does."""
    sizes = Sizes(o, i)
    tile = sizes.common
    if i.h0.dtype != torch.float32:
        return f"states of {i.h0.dtype}"
    if (obstacle := unfit(i.h0.device, sizes, o.product_dtype)) is not None:
        return obstacle
    if max(tile["DP"], sizes.query_tile, tile["VT"]) > 256:
        return f"{sizes.rim} units a RIM, or {o.heads} heads of {sizes.key} and {sizes.value}: more than 256"
    if tile["KP"] * max(sizes.key_padded, sizes.value_padded) > 1024 or tile["KP"] > 32:
        return f"{o.num_rims} RIMs with heads of {sizes.key} and {sizes.value}: too many for a tile"
    return None


def unfit(device: torch.device, sizes: Sizes, dtype: torch.dtype) -> str | None:
    """What keeps the kernel from a device; None if nothing does."""
    if device.type != "cuda":  # the interpreter
        return None
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip or properties.major < 8:
        return f"the device {properties.name}"
    tile = sizes.common
    chunk = tile["BK"] * (4 * tile["DP"] + tile["BM"]) * dtype.itemsize
    needed = (tile["STAGES"] - 1) * chunk + 4096
    least_of_ampere = 99 * 1024
    if needed > getattr(properties, "shared_memory_per_block_optin", least_of_ampere):
        return f"{sizes.rim} units a RIM: {needed} bytes of the device's shared memory"
    return None


def pad(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Zeros at the end of ``dim``, up to ``size``."""
    missing = size - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def pad_heads(weight: Tensor, heads: int, size: int) -> Tensor:
    """``[..., H * E]`` to ``[..., H * size]``."""
    return pad(weight.unflatten(-1, (heads, -1)), -1, size).flatten(-2)


def queries_keys_values(o: Options, i: Inputs, sizes: Sizes) -> Tensor:
    """The three matrices of the communication side by side, heads padded: ``[K, D, Q]``."""
    assert i.query is not None
    assert i.key is not None
    assert i.value is not None
    parts = ((i.query, sizes.key_padded), (i.key, sizes.key_padded), (i.value, sizes.value_padded))
    return torch.cat([pad_heads(weight, o.heads, size) for weight, size in parts], -1).to(o.product_dtype)


def projection(o: Options, i: Inputs, sizes: Sizes) -> Tensor:
    """``[D, H * V]``, heads padded."""
    assert i.out is not None
    return pad_heads(i.out, o.heads, sizes.value_padded).to(o.product_dtype)


def as_bytes(mask: Tensor | None) -> Tensor | None:
    """A bool tensor as the kernel reads it."""
    return None if mask is None else mask.contiguous().view(torch.uint8)


class KernelLoop:
    """The loop of :mod:`rims.nn.fast.dense`, by the kernels above."""

    def forward(self, o: Options, i: Inputs, asks: Tensor, reads: Tensor, keep: bool) -> Saved:
        """See :class:`rims.nn.fast.dense.Loop`."""
        length, batch = i.x.shape[:2]
        sizes, dtype, like = Sizes(o, i), o.product_dtype, i.h0
        rim, num_rims, heads = sizes.rim, o.num_rims, o.heads
        kept = length if keep else 1
        ends = (length, slice(0, length)) if o.reverse else (0, slice(1, length + 1))

        def empty(steps: int, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
            return like.new_empty(steps, batch, *shape, dtype=dtype)

        h = empty(length + 1, num_rims, rim)
        h[ends[0]] = i.h0.reshape(batch, num_rims, rim)
        c = empty(length + 1 if keep and not o.gru else 1, num_rims, rim)
        if not o.gru:
            c[ends[0] if keep else 0] = i.c0.reshape(batch, num_rims, rim)
        gates = empty(kept, num_rims, 4 * rim, dtype=dtype)
        attention = like.new_empty(o.input_heads, length, batch, num_rims)
        active = empty(length, num_rims, dtype=torch.bool)
        width = heads * (2 * sizes.key_padded + sizes.value_padded)
        told = qkv = hearing = heard = squashed = w_qkv = w_out = None
        if heads:
            told = empty(kept, num_rims, rim) if keep else None
            qkv = empty(kept, num_rims, width, dtype=dtype)
            hearing = empty(length, heads, num_rims, num_rims)
            heard = empty(kept, num_rims, heads * sizes.value_padded, dtype=dtype)
            squashed = empty(kept, num_rims, rim) if keep and o.gru else None
            w_qkv = queries_keys_values(o, i, sizes)
            w_out = pad(projection(o, i, sizes).t(), 1, sizes.rim_stride).contiguous()
        w_hh = pad(i.hh.unflatten(-1, (-1, rim)), -1, sizes.rim_stride).to(dtype).contiguous()
        grid = (-(-batch // sizes.common["BM"]),)
        _forward[grid](
            h,
            c,
            asks,
            reads,
            w_hh,
            *given(like, i.bias_ih, i.bias_hh, w_qkv, w_out, i.out_bias),
            *given(active, *map(as_bytes, (i.reset, i.valid, i.disabled, i.comm_keep))),
            active.view(torch.uint8),
            attention,
            gates,
            *given(like, told, qkv, hearing, heard, squashed),
            length,
            batch,
            1 / math.sqrt(sizes.key),
            o.comm_scale,
            A=o.num_active,
            QT=sizes.query_tile,
            BIAS=i.bias_ih is not None,
            VALID=i.valid is not None,
            DISABLED=i.disabled is not None,
            KEEP=keep,
            **sizes.common,
            **sizes.launch,
        )
        memory = c[ends[1]] if len(c) > 1 else c
        return Saved(h[ends[1]], memory, active, attention, gates, told, qkv, hearing, heard, squashed)

    def backward(
        self, o: Options, i: Inputs, asks: Tensor, reads: Tensor, s: Saved, dy: Tensor, dh: Tensor, dc: Tensor
    ) -> Pieces:
        """See :class:`rims.nn.fast.dense.Loop`."""
        length, batch = i.x.shape[:2]
        sizes, dtype, like = Sizes(o, i), o.product_dtype, i.h0
        shape = (length, batch, o.num_rims)
        dh, dc = (part.clone(memory_format=torch.contiguous_format) for part in (dh, dc))
        d_input = reads.new_empty(reads.shape[1:])
        d_state = torch.empty_like(d_input) if o.gru else d_input
        d_scores = torch.empty_like(s.attention)
        d_qkv = d_out = d_heard = w_qkv = w_out = None
        if s.qkv is not None and s.heard is not None:
            d_qkv = torch.empty_like(s.qkv)
            d_out = like.new_empty(*shape, sizes.rim, dtype=dtype)
            d_heard = like.new_empty(batch, o.num_rims, s.heard.shape[-1])
            w_qkv = pad(queries_keys_values(o, i, sizes).transpose(1, 2), -1, sizes.rim_stride).contiguous()
            w_out = projection(o, i, sizes).contiguous()
        h_before = states_before(o, i, i.h0, s.states) if o.gru else None
        c_before = None if o.gru else states_before(o, i, i.c0, s.memory)
        w_hh = pad(i.hh.transpose(1, 2), -1, sizes.rim_stride).to(dtype).contiguous()
        grid = (-(-batch // sizes.common["BM"]),)
        _backward[grid](
            dh,
            dc,
            dy.contiguous(),
            *given(like, h_before, c_before),
            s.memory,
            asks,
            reads,
            s.active.view(torch.uint8),
            s.attention,
            s.gates,
            *given(like, s.qkv, s.hearing, s.squashed),
            w_hh,
            *given(like, w_qkv, w_out),
            *given(s.active, as_bytes(i.reset), as_bytes(i.comm_keep)),
            *given(like, d_heard),
            d_input,
            d_state,
            d_scores,
            *given(like, d_qkv, d_out),
            length,
            batch,
            1 / math.sqrt(sizes.key),
            o.comm_scale,
            **sizes.common,
            **sizes.launch,
        )
        return Pieces(d_input, d_state, d_scores, d_qkv, d_out, dh, dc)


def given(instead: Tensor, *tensors: Tensor | None) -> list[Any]:
    """The tensors; another one, never touched, where there is none, since a kernel takes only pointers."""
    if instead.dtype == torch.bool:
        instead = instead.view(torch.uint8)
    return [instead if tensor is None else tensor for tensor in tensors]
