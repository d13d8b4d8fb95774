"""A RIM step written once more from the equations: loops over rows, RIMs, heads and slots in NumPy float64.

Nothing here is shared with the package: vectors, not tensors; one RIM after another.
"""

from __future__ import annotations

import numpy as np


def softmax(v):
    v = np.asarray(v, dtype=np.float64)
    e = np.exp(v - v.max())
    return e / e.sum()


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def least(values, count):
    """Indices of the ``count`` least values, the lower index first among equals."""
    return set(sorted(range(len(values)), key=lambda k: (values[k], k))[:count])


def weights(cell):
    return {name: p.detach().numpy() for name, p in cell.named_parameters()}


def step(cell, x, h, c, mask=None, disabled=()):
    """One step of the RIMCell ``cell`` on ``x [B, S, I]``: h, c, active."""
    w = weights(cell)
    K, D = cell.num_rims, cell.rim_size
    h_next, c_next, active_all = h.copy(), c.copy(), []
    for b in range(len(x)):
        hs, cs = h[b].reshape(K, D), c[b].reshape(K, D)
        present = [s for s in range(x.shape[1]) if mask is None or mask[b, s]]
        reads, penalties = read(cell, w, x[b], hs, present, disabled)
        for k in disabled:
            penalties[k] = np.inf
        active = least(penalties, cell.num_active) - set(disabled)
        candidates = [move(cell, w, k, reads[k], hs[k], cs[k]) for k in range(K)]
        if cell.variant == "paper":
            heard_states = [candidates[k][0] if k in active else hs[k] for k in range(K)]
        else:
            heard_states = [candidates[k][0] for k in range(K)]
        for k in active:
            new_h, new_c, write = candidates[k]
            if cell.communication is not None:
                out = listen(cell, w, k, heard_states, disabled)
                if cell.variant == "paper" and (write is not None or cell.squash):
                    out = np.tanh(out) * (1 if write is None else write)
                new_h = new_h + out
            h_next[b, k * D : (k + 1) * D] = new_h
            c_next[b, k * D : (k + 1) * D] = new_c
        active_all.append([k in active for k in range(K)])
    return h_next, c_next, np.array(active_all)


def read(cell, w, x, hs, present, disabled):
    """What each RIM reads from the slots ``x [S, I]``, and by what it is ranked."""
    K = cell.num_rims
    if cell.input_attention is None:
        own = [k if cell.inputs == "private" else 0 for k in range(K)]
        return [x[s] if s in present else np.zeros_like(x[s]) for s in own], np.zeros(K)
    heads = cell.input_attention.heads
    Wq, Wk, Wv = (w[f"input_attention.{n}"] for n in ("query", "key", "value"))
    E, V = Wk.shape[1] // heads, Wv.shape[1] // heads
    own = {k: [k] if cell.inputs == "private" else list(range(len(x))) for k in range(K)}
    score = {}
    for a in range(heads):
        for k in range(K):
            q = hs[k] @ Wq[k][:, a * E : (a + 1) * E]
            for s in own[k]:
                if s in present:
                    score[a, k, s] = q @ (x[s] @ Wk[:, a * E : (a + 1) * E]) / np.sqrt(E)
    reads, penalties = [], np.zeros(K)
    weight = {}
    if cell.selection == "null":
        for k in range(K):
            for a in range(heads):
                slots = [s for s in own[k] if s in present]
                p = softmax([0.0] + [score[a, k, s] for s in slots])
                penalties[k] += p[0] / heads
                weight.update({(a, k, s): p[1 + i] for i, s in enumerate(slots)})
    else:
        for a in range(heads):
            for s in present if cell.inputs != "private" else [None]:
                rivals = [k for k in range(K) if k not in disabled]
                if s is None:  # private inputs: every RIM competes with its own
                    slot = {k: k for k in rivals}
                    rivals = [k for k in rivals if k in present]
                else:
                    slot = dict.fromkeys(rivals, s)
                if not rivals:
                    continue
                p = np.zeros(K)
                p[rivals] = softmax([score[a, k, slot[k]] for k in rivals])
                for k in rivals:
                    penalties[k] -= p[k] / heads
                if cell.num_active < K:
                    winners = least(-p, cell.num_active)
                    threshold = sorted(p)[::-1][cell.num_active]
                    margin = {k: p[k] - threshold + 1e-7 for k in winners}
                    total = sum(margin.values())
                    weight.update({(a, k, slot[k]): margin[k] / total for k in winners if k in slot})
                else:
                    weight.update({(a, k, slot[k]): p[k] for k in rivals})
    for k in range(K):
        parts = []
        for a in range(heads):
            part = np.zeros(V)
            for s in own[k]:
                part += (
                    weight.get((a, k, s), 0.0) * (x[s] @ Wv[:, a * V : (a + 1) * V]) if s in present else 0.0
                )
            parts.append(part)
        reads.append(np.concatenate(parts))
    return reads, penalties


def move(cell, w, k, u, h, c):
    """RIM k's own LSTM or GRU: hidden state, cell state, and 1 - z of a GRU."""
    from_input = u @ w["dynamics.weight_ih"][k]
    from_state = h @ w["dynamics.weight_hh"][k]
    if "dynamics.bias_ih" in w:
        from_input = from_input + w["dynamics.bias_ih"][k]
        from_state = from_state + w["dynamics.bias_hh"][k]
    D = len(h)
    gate = lambda v, i: v[i * D : (i + 1) * D]  # noqa: E731
    if cell.cell == "lstm":
        i, f, g, o = (gate(from_input + from_state, n) for n in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c, None
    r = sigmoid(gate(from_input, 0) + gate(from_state, 0))
    z = sigmoid(gate(from_input, 1) + gate(from_state, 1))
    n = np.tanh(gate(from_input, 2) + r * gate(from_state, 2))
    return (1 - z) * n + z * h, c, 1 - z


def listen(cell, w, k, states, disabled):
    """What RIM k hears of all RIMs' ``states``."""
    heads = cell.communication.heads
    Wq, Wk, Wv = (w[f"communication.{n}"] for n in ("query", "key", "value"))
    E, V = Wq.shape[2] // heads, Wv.shape[2] // heads
    parts = []
    for a in range(heads):
        others = [j for j in range(cell.num_rims) if j not in disabled]
        q = states[k] @ Wq[k][:, a * E : (a + 1) * E]
        scores = {j: q @ (states[j] @ Wk[j][:, a * E : (a + 1) * E]) / np.sqrt(E) for j in others}
        if cell.communication.topk is not None:
            others = sorted(others, key=lambda j: (-scores[j], j))[: cell.communication.topk]
        p = softmax([scores[j] for j in others])
        parts.append(sum(p[i] * (states[j] @ Wv[j][:, a * V : (a + 1) * V]) for i, j in enumerate(others)))
    heard = np.concatenate(parts)
    out = w["communication.out.weight"] @ heard + w["communication.out.bias"]
    if cell.communication.gate is not None:
        gate = w["communication.gate.weight"] @ heard + w["communication.gate.bias"]
        out = sigmoid(gate) * np.tanh(out)
    return out
