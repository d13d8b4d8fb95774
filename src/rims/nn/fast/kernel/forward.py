"""A step forwards: two kernels, since RIMs depend on each other at two places, when they are ranked and when
they hear each other. A program has a tile of rows of one RIM.

``move`` ranks the RIMs by scores that are there already, moves its own, and makes its query, key and value.
``hear`` attends over the keys and values of all, adds what it hears to the state, and scores the result
against the next step's input.
"""

# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

import triton.language as tl

from rims.nn.fast.kernel.numbers import jit, sigmoid, tanh


@jit
def move(
    h,  # [T + 1, B, K, D]: state number `old` before the step, `new` after it
    c,  # the same, or in place where nothing is kept
    scores,  # [R, T, B, K]
    asks,  # [R, T, B, K, D]
    reads,  # [R, T, B, K, NG * D]
    w_hh,  # [K, D, NG, DS]
    bias_ih,  # [K, NG * D]
    bias_hh,
    w_qkv,  # [K, D, QW]
    reset,  # [T, B]
    valid,
    disabled,  # [K]
    active,  # [T, B, K]
    gates,  # [T, B, K, 4 * D]
    told,  # [T, B, K, D]
    qkv,  # [T, B, K, QW]
    t,
    old,
    new,
    following,  # the step after this one; negative after the last
    T,
    B,
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
    BM: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    GRU: tl.constexpr,
    BIAS: tl.constexpr,
    RESET: tl.constexpr,
    VALID: tl.constexpr,
    DISABLED: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    NG: tl.constexpr = 3 if GRU else 4
    QW: tl.constexpr = H * (2 * EP + VP)
    k = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    here = rows < B
    ks = tl.arange(0, KP)
    dn = tl.arange(0, DP)
    wide = tl.full((), 1, tl.int64)  # offsets may pass 2^31
    size = wide * B * (K * D)
    first = wide * t * B * K  # of the step's (row, RIM) pairs
    kept = first * KEEP  # of those in buffers that have one step only unless kept
    pair = rows * K + k
    at = pair[:, None] * D + dn[None, :]
    mask = here[:, None] & (dn < D)[None, :]
    stays = here
    if RESET:
        stays = here & (tl.load(reset + wide * t * B + rows, mask=here, other=0) == 0)

    # Who is active: how many RIMs come before, in the order of what each leaves to null.
    here_k = here[:, None] & (ks < K)[None, :]
    penalty = tl.zeros((BM, KP), tl.float32)
    for r in tl.static_range(R):
        from_here = scores + (wide * r * T + t) * B * K
        penalty += sigmoid(-tl.load(from_here + rows[:, None] * K + ks[None, :], mask=here_k, other=0.0))
    penalty = penalty / R
    penalty = tl.where(penalty != penalty, 2.0, penalty)  # NaN comes last, before the removed
    if DISABLED:
        removed = tl.load(disabled + ks, mask=ks < K, other=0) != 0
        penalty = tl.where(removed[None, :], 3.0, penalty)
    penalty = tl.where((ks < K)[None, :], penalty, 4.0)
    mine = tl.sum(tl.where((ks == k)[None, :], penalty, 0.0), 1)
    before = (penalty < mine[:, None]) | ((penalty == mine[:, None]) & (ks < k)[None, :])
    on = here & (tl.sum(before.to(tl.int32), 1) < A)
    if DISABLED:
        on = on & (tl.load(disabled + k) == 0)
    if VALID:
        on = on & (tl.load(valid + wide * t * B + rows, mask=here, other=0) != 0)
    tl.store(active + first + pair, on.to(tl.uint8), mask=here)
    mask_on = on[:, None] & mask

    # The gates' sums over the state.
    s0 = tl.zeros((BM, DP), tl.float32)
    s1 = tl.zeros((BM, DP), tl.float32)
    s2 = tl.zeros((BM, DP), tl.float32)
    s3 = tl.zeros((BM, DP), tl.float32)
    for d0 in tl.range(0, D, BK, num_stages=STAGES):
        d = d0 + tl.arange(0, BK)
        state = tl.load(
            h + old * size + pair[:, None] * D + d[None, :], mask=stays[:, None] & (d < D)[None, :], other=0.0
        ).to(w_hh.dtype.element_ty)
        w = w_hh + (k * D + d)[:, None] * (NG * DS) + dn[None, :]
        inside = (d < D)[:, None] & (dn < DS)[None, :]
        s0 = tl.dot(state, tl.load(w, mask=inside, other=0.0), s0, input_precision=PRECISION)
        s1 = tl.dot(state, tl.load(w + DS, mask=inside, other=0.0), s1, input_precision=PRECISION)
        s2 = tl.dot(state, tl.load(w + 2 * DS, mask=inside, other=0.0), s2, input_precision=PRECISION)
        if not GRU:
            w3 = tl.load(w + 3 * DS, mask=inside, other=0.0)
            s3 = tl.dot(state, w3, s3, input_precision=PRECISION)

    # And over the input.
    p0 = tl.zeros((BM, DP), tl.float32)
    p1 = tl.zeros((BM, DP), tl.float32)
    p2 = tl.zeros((BM, DP), tl.float32)
    p3 = tl.zeros((BM, DP), tl.float32)
    for r in tl.static_range(R):
        plane = (wide * r * T + t) * B * K
        a = sigmoid(tl.load(scores + plane + pair, mask=here, other=0.0))[:, None]
        p = reads + plane * (NG * D) + pair[:, None] * (NG * D) + dn[None, :]
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

    # The dynamics.
    mask_stays = stays[:, None] & mask
    h_old = tl.load(h + old * size + at, mask=mask_stays, other=0.0)
    g0 = sigmoid(p0 + s0)
    g1 = sigmoid(p1 + s1)
    if GRU:
        g2 = tanh(p2 + g0 * s2)
        g3 = s2
        h_new = (1.0 - g1) * g2 + g1 * h_old
    else:
        g2 = tanh(p2 + s2)
        g3 = sigmoid(p3 + s3)
        c_old = tl.load(c + old * size * KEEP + at, mask=mask_stays, other=0.0)
        c_new = g1 * c_old + g0 * g2
        h_new = g3 * tanh(c_new)
        tl.store(c + new * size * KEEP + at, tl.where(mask_on, c_new, c_old), mask=mask)
    if KEEP or GRU:
        g = gates + (kept + pair)[:, None] * (4 * D) + dn[None, :]
        tl.store(g, g0, mask=mask_on)
        tl.store(g + D, g1, mask=mask_on)
        tl.store(g + 2 * D, g2, mask=mask_on)
        tl.store(g + 3 * D, g3, mask=mask_on)
    h_new = tl.where(mask_on, h_new, h_old)
    tl.store(h + new * size + at, h_new, mask=mask)
    if H == 0:
        score_next(h_new, asks, scores, reset, following, rows, pair, here, T, B, K, D, R, DP, RESET)
    else:
        if KEEP:
            tl.store(told + first * D + at, h_new, mask=mask)
        # What the RIM asks and says.
        state = h_new.to(w_qkv.dtype.element_ty)
        for n0 in tl.range(0, QW, BN, num_stages=STAGES):
            n = n0 + tl.arange(0, BN)
            w = tl.load(
                w_qkv + (k * D + dn)[:, None] * QW + n[None, :],
                mask=(dn < D)[:, None] & (n < QW)[None, :],
                other=0.0,
            )
            to = qkv + (kept + pair)[:, None] * QW + n[None, :]
            said = tl.dot(state, w, input_precision=PRECISION)
            tl.store(to, said, mask=here[:, None] & (n < QW)[None, :])


@jit
def hear(
    h,
    scores,
    asks,
    w_out,  # [H * VP, DS]
    out_bias,  # [D]
    reset,
    disabled,
    comm_keep,  # [T, B, K, D]
    active,
    gates,
    qkv,
    hearing,  # [T, B, H, K, K]
    heard,  # [T, B, K, H * VP]
    squashed,  # [T, B, K, D]
    t,
    new,
    following,
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
    BM: tl.constexpr,
    BW: tl.constexpr,
    STAGES: tl.constexpr,
    GRU: tl.constexpr,
    SQUASH: tl.constexpr,
    RESET: tl.constexpr,
    DISABLED: tl.constexpr,
    DROPOUT: tl.constexpr,
    KEEP: tl.constexpr,
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
    size = wide * B * (K * D)
    first = wide * t * B * K
    kept = first * KEEP
    pair = rows * K + k
    by_rim = rows[:, None] * K + ks[None, :]
    here_k = here[:, None] & (ks < K)[None, :]
    on = here & (tl.load(active + first + pair, mask=here, other=0) != 0)
    heard_by_all = ks < K
    if DISABLED:
        heard_by_all = heard_by_all & (tl.load(disabled + ks, mask=ks < K, other=0) == 0)

    # What the RIM hears.
    e = tl.arange(0, EP)
    ve = tl.arange(0, VP)
    for head in tl.static_range(H):
        source = qkv + (kept + by_rim)[:, :, None] * QW
        keys = tl.load(source + QS + head * EP + e[None, None, :], mask=here_k[:, :, None], other=0.0)
        values = tl.load(source + 2 * QS + head * VP + ve[None, None, :], mask=here_k[:, :, None], other=0.0)
        q = tl.load(
            qkv + (kept + pair)[:, None] * QW + head * EP + e[None, :], mask=here[:, None], other=0.0
        ).to(tl.float32)
        score = tl.sum(q[:, None, :] * keys.to(tl.float32), 2) * key_scale
        score = tl.where(heard_by_all[None, :], score, float("-inf"))
        weight = tl.exp(score - tl.max(score, 1)[:, None])
        weight = weight / tl.sum(weight, 1)[:, None]
        to = heard + (kept + pair)[:, None] * VS + head * VP + ve[None, :]
        tl.store(to, tl.sum(weight[:, :, None] * values.to(tl.float32), 1), mask=here[:, None])
        to = hearing + (wide * t * B + rows)[:, None] * (H * K * K) + (head * K + k) * K + ks[None, :]
        tl.store(to, tl.where(on[:, None], weight, 0.0), mask=here_k)
    tl.debug_barrier()  # one thread's heard is read by others

    # What that adds to the state of one that is active.
    out = tl.zeros((BM, DP), tl.float32)
    for v0 in tl.range(0, VS, BW, num_stages=STAGES):
        v = v0 + tl.arange(0, BW)
        x = tl.load(
            heard + (kept + pair)[:, None] * VS + v[None, :],
            mask=here[:, None] & (v < VS)[None, :],
            other=0.0,
        )
        w = tl.load(
            w_out + v[:, None] * DS + dn[None, :], mask=(v < VS)[:, None] & (dn < DS)[None, :], other=0.0
        )
        out = tl.dot(x, w, out, input_precision=PRECISION)
    mask = here[:, None] & (dn < D)[None, :]
    mask_on = on[:, None] & mask
    at = pair[:, None] * D + dn[None, :]
    out += tl.load(out_bias + dn, mask=dn < D, other=0.0)[None, :]
    if DROPOUT:
        keep = tl.load(comm_keep + first * D + at, mask=mask_on, other=0)
        out = tl.where(keep != 0, out * comm_scale, 0.0)
    if SQUASH:
        out = tanh(out)
        if KEEP:
            tl.store(squashed + first * D + at, out, mask=mask_on)
    if GRU:
        z = tl.load(gates + (kept + pair)[:, None] * (4 * D) + D + dn[None, :], mask=mask_on, other=0.0)
        out = (1.0 - z.to(tl.float32)) * out
    h_new = tl.load(h + new * size + at, mask=mask, other=0.0) + tl.where(mask_on, out, 0.0)
    tl.store(h + new * size + at, h_new, mask=mask_on)
    score_next(h_new, asks, scores, reset, following, rows, pair, here, T, B, K, D, R, DP, RESET)


@jit
def score_next(
    h_new,  # [BM, DP]
    asks,
    scores,
    reset,
    following,
    rows,
    pair,
    here,
    T,
    B,
    K: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    DP: tl.constexpr,
    RESET: tl.constexpr,
):
    """How much the next input concerns the RIM in its new state."""
    if following >= 0:
        dn = tl.arange(0, DP)
        wide = tl.full((), 1, tl.int64)
        stays = here
        if RESET:
            stays = here & (tl.load(reset + wide * following * B + rows, mask=here, other=0) == 0)
        mask = stays[:, None] & (dn < D)[None, :]
        for r in tl.static_range(R):
            plane = (wide * r * T + following) * B * K
            ask = tl.load(asks + plane * D + pair[:, None] * D + dn[None, :], mask=mask, other=0.0)
            score = tl.sum(tl.where(mask, h_new * ask, 0.0), 1)
            tl.store(scores + plane + pair, score, mask=here)
