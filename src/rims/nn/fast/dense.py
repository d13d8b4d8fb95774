"""The sequence as a dense computation, for devices where waiting for the host is dear.

All K RIMs are computed at every step and masks keep the inactive ones as they were: no shape depends on data,
nothing is read back by the host, so the whole can be captured in a graph. What does not depend on the state
is hoisted out of the loop over time. The null slot's score is zero, so a RIM's attention on the input is a
sigmoid ``a``, and

    score = h . u       with  u = W_query (W_key^T x) / sqrt(E)
    W_ih^T read = a * P with  P = W_ih^T (W_value^T x)

``u`` and ``P`` of all steps come from a few large products. The loop is replaceable (:class:`Loop`): here in
plain torch, in :mod:`rims.nn.fast.kernel` as one GPU kernel. The backward pass is written by hand; each
weight's gradient is one product over all T * B rows at its end.

Covered: the paper variant, null selection, one input vector a step; see :func:`rims.nn.fast.gpu.why_not`.

Shapes: T time, B batch, N = T * B, K RIMs, D units of a RIM, G gates * D, I input, R heads of the input
attention, E and V key and value size of a head, H heads of the communication, Q = H * (2 * E + V).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rims.nn.selection import select_active


@dataclass(frozen=True)
class Options:
    """What the sequence does, apart from its tensors. Hashable: with the tensors' shapes it is the key of a
    captured graph."""

    num_rims: int
    num_active: int
    gru: bool
    input_heads: int
    heads: int
    """Of the communication; 0 without it."""
    reverse: bool
    squash: bool
    """Whether the tanh of what is heard is added, rather than it."""
    product_dtype: torch.dtype
    """Of the operands of products; all else is in the dtype of the state."""
    input_scale: float = 1.0
    comm_scale: float = 1.0
    """What dropout multiplies by where it keeps."""

    def steps(self, length: int) -> range:
        """The steps in the order of computation."""
        return range(length)[::-1] if self.reverse else range(length)


class Inputs(NamedTuple):
    """All tensors of a call; gradients reach those up to ``out_bias``."""

    x: Tensor
    """``[T, B, I]``."""
    h0: Tensor
    c0: Tensor
    """``[B, K * D]``; with a GRU ``c0`` is not looked at."""
    input_query: Tensor
    input_key: Tensor
    input_value: Tensor
    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    out: Tensor | None
    out_bias: Tensor | None
    reset: Tensor | None = None
    """``[T, B]``: the state becomes zero before the computation of step t."""
    valid: Tensor | None = None
    """``[T, B]``: elsewhere rows stand still."""
    disabled: Tensor | None = None
    """``[K]``: removed RIMs."""
    input_keep: Tensor | None = None
    """``[T, B, K, R * V]``: what dropout keeps of what the RIMs read."""
    comm_keep: Tensor | None = None
    """``[T, B, K, D]``: what dropout keeps of what the RIMs hear."""


NUM_DIFFERENTIABLE = Inputs._fields.index("reset")


class Hoisted(NamedTuple):
    """What is known of all steps before the first."""

    keys: Tensor
    """``[R, N, E]``, divided by sqrt(E)."""
    values: Tensor
    """``[R, N, V]``."""
    asks: Tensor
    """u, ``[R, T, B, K, D]``."""
    reads: Tensor
    """P, ``[R, T, B, K, G]``."""


class Saved(NamedTuple):
    """What the loop leaves for the backward pass. A loop may pad E and V of a head."""

    states: Tensor
    """h after each step, ``[T, B, K, D]``."""
    memory: Tensor
    """c after each step, ``[T, B, K, D]``; with a GRU nothing is read from it."""
    active: Tensor
    """``[T, B, K]``."""
    attention: Tensor
    """a, ``[R, T, B, K]``."""
    gates: Tensor
    """``[T, B, K, 4 * D]``: input, forget, cell, output; with a GRU reset, update, new, and new's sum over
    the state. Of active RIMs alone."""
    told: Tensor | None
    """The states that are heard, ``[T, B, K, D]``."""
    qkv: Tensor | None
    """Queries, keys and values of the communication, ``[T, B, K, Q]``."""
    hearing: Tensor | None
    """Its attention, ``[T, B, H, K, K]``, zero for RIMs that are not active."""
    heard: Tensor | None
    """``[T, B, K, H * V]``. Of active RIMs alone."""
    squashed: Tensor | None
    """With ``squash``, tanh of what was heard, ``[T, B, K, D]``. Of active RIMs alone."""


class Pieces(NamedTuple):
    """What the backward loop leaves to form gradients from; zero for RIMs that are not active, except
    ``d_qkv``."""

    d_input: Tensor
    """Of the gates' sums over the input, ``[T, B, K, G]``."""
    d_state: Tensor
    """Of their sums over the state; with an LSTM the same tensor."""
    d_scores: Tensor
    """Of the input attention, ``[R, T, B, K]``."""
    d_qkv: Tensor | None
    """``[T, B, K, Q]``."""
    d_out: Tensor | None
    """Of the projection of what was heard, ``[T, B, K, D]``."""
    dh0: Tensor
    dc0: Tensor
    """``[B, K, D]``."""


@runtime_checkable
class Loop(Protocol):
    """The part that goes step by step."""

    def forward(self, o: Options, i: Inputs, asks: Tensor, reads: Tensor, keep: bool) -> Saved:
        """``keep``: whether a backward pass may follow. If not, what only it needs may have any content, and
        any length in time."""

    def backward(
        self, o: Options, i: Inputs, asks: Tensor, reads: Tensor, s: Saved, dy: Tensor, dh: Tensor, dc: Tensor
    ) -> Pieces:
        """From the gradients of all states ``[T, B, K, D]`` and of the last h and c ``[B, K, D]``."""


def hoist(o: Options, i: Inputs) -> Hoisted:
    """Everything that does not depend on the state."""
    length, batch, size = i.x.shape
    dtype, heads, num_rims = o.product_dtype, o.input_heads, o.num_rims
    flat = i.x.reshape(length * batch, size).to(dtype)

    def by_head(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (heads, -1)).transpose(0, 1)

    keys = by_head(flat @ i.input_key.to(dtype)).to(i.h0.dtype) / math.sqrt(i.input_key.shape[1] // heads)
    # RIMs are ranked by their scores, so u is never rounded to half precision.
    asks = torch.bmm(keys, query_by_head(o, i.input_query))
    values = by_head(flat @ i.input_value.to(dtype))
    ih = i.ih.to(dtype)
    if i.input_keep is None:
        reads = torch.bmm(values, ih_by_head(o, ih))
    else:
        kept = keep_values(o, i, values)
        per_rim = ih.unflatten(1, (heads, -1)).transpose(0, 1).flatten(0, 1)
        reads = torch.bmm(kept.flatten(0, 1), per_rim).unflatten(0, (heads, -1)).transpose(1, 2).contiguous()
    shape = (heads, length, batch, num_rims, -1)
    return Hoisted(keys, values, asks.view(shape), reads.view(shape))


def query_by_head(o: Options, query: Tensor) -> Tensor:
    """``[K, D, R * E]`` to ``[R, E, K * D]``."""
    return query.unflatten(-1, (o.input_heads, -1)).permute(2, 3, 0, 1).flatten(2)


def ih_by_head(o: Options, ih: Tensor) -> Tensor:
    """``[K, R * V, G]`` to ``[R, V, K * G]``."""
    return ih.unflatten(1, (o.input_heads, -1)).permute(1, 2, 0, 3).flatten(2)


def keep_values(o: Options, i: Inputs, values: Tensor) -> Tensor:
    """What dropout leaves each RIM of ``values [R, N, V]``: ``[R, K, N, V]``."""
    assert i.input_keep is not None
    keep = i.input_keep.flatten(0, 1).unflatten(-1, (o.input_heads, -1)).permute(2, 1, 0, 3)
    return values[:, None] * keep * o.input_scale


def choose(o: Options, penalty: Tensor, disabled: Tensor | None, valid: Tensor | None) -> Tensor:
    """The active RIMs ``[B, K]``; none where a row stands still."""
    active = select_active(penalty, o.num_active, disabled)
    return active if valid is None else active & valid[:, None]


class TorchLoop:
    """The loop in plain torch."""

    def forward(self, o: Options, i: Inputs, asks: Tensor, reads: Tensor, keep: bool) -> Saved:
        steps = [Saved(*[None] * len(Saved._fields))] * len(i.x)  # type: ignore[arg-type]
        h, c = (part.unflatten(-1, (o.num_rims, -1)) for part in (i.h0, i.c0))
        for t in o.steps(len(i.x)):
            h, c = before(i, t, h), before(i, t, c)
            steps[t] = step = self._step(o, i, t, h, c, asks[:, t], reads[:, t])
            h, c = step.states, step.memory
            if not keep:
                steps[t] = step._replace(gates=h[:0], told=None, qkv=None, heard=None, squashed=None)
        stacked = [None if parts[0] is None else torch.stack(parts) for parts in zip(*steps)]
        saved = Saved(*stacked)  # type: ignore[arg-type]
        return saved._replace(attention=saved.attention.transpose(0, 1).contiguous())

    def _step(
        self, o: Options, i: Inputs, t: int, h: Tensor, c: Tensor, asks: Tensor, reads: Tensor
    ) -> Saved:
        dtype = o.product_dtype
        scores = (asks * h).sum(-1)
        attention = scores.sigmoid()
        valid = None if i.valid is None else i.valid[t]
        active = choose(o, torch.sigmoid(-scores).mean(0), i.disabled, valid)
        on = active[..., None]

        from_input = (attention[..., None] * reads).sum(0)
        from_state = per_rim(h, i.hh, dtype).to(h.dtype)
        if i.bias_ih is not None and i.bias_hh is not None:
            from_input, from_state = from_input + i.bias_ih, from_state + i.bias_hh
        if o.gru:
            (r_in, z_in, n_in), (r_st, z_st, n_st) = from_input.chunk(3, -1), from_state.chunk(3, -1)
            r, z = torch.sigmoid(r_in + r_st), torch.sigmoid(z_in + z_st)
            n = torch.tanh(n_in + r * n_st)
            h_new, write, memory = (1 - z) * n + z * h, 1 - z, c
            gates = torch.cat([r, z, n, n_st], -1)
        else:
            i_, f, g, o_ = (from_input + from_state).chunk(4, -1)
            i_, f, g, o_ = i_.sigmoid(), f.sigmoid(), g.tanh(), o_.sigmoid()
            c_new = f * c + i_ * g
            h_new, write, memory = o_ * c_new.tanh(), None, torch.where(on, c_new, c)
            gates = torch.cat([i_, f, g, o_], -1)
        told = torch.where(on, h_new, h)
        gates = gates.to(dtype)
        if not o.heads:
            return Saved(told, memory, active, attention, gates, None, None, None, None, None)

        assert i.query is not None
        assert i.key is not None
        assert i.value is not None
        assert i.out is not None
        assert i.out_bias is not None
        qkv = torch.cat([per_rim(told, w, dtype) for w in (i.query, i.key, i.value)], -1)
        q, k, v = split_heads(o, qkv.to(h.dtype), i.value.shape[-1])
        scores = torch.einsum("bihe,bjhe->bhij", q, k) / math.sqrt(q.shape[-1])
        if i.disabled is not None:
            scores = scores.masked_fill(i.disabled, -torch.inf)
        hearing = torch.where(active[:, None, :, None], scores.softmax(-1), 0.0)
        heard = torch.einsum("bhij,bjhv->bihv", hearing, v).flatten(2).to(dtype)
        out = (heard @ i.out.to(dtype).t()).to(h.dtype) + i.out_bias
        if i.comm_keep is not None:
            out = out * (i.comm_keep[t] * o.comm_scale)
        squashed = None
        if o.squash:
            out = squashed = out.tanh()
        if write is not None:
            out = write * out
        states = told + torch.where(on, out, 0.0)
        return Saved(states, memory, active, attention, gates, told, qkv, hearing, heard, squashed)

    def backward(
        self, o: Options, i: Inputs, asks: Tensor, reads: Tensor, s: Saved, dy: Tensor, dh: Tensor, dc: Tensor
    ) -> Pieces:
        length, dtype = len(dy), o.product_dtype
        d_input = torch.empty_like(reads[0])
        d_state = torch.empty_like(d_input) if o.gru else d_input
        d_scores = torch.empty_like(s.attention)
        d_qkv = None if s.qkv is None else torch.empty_like(s.qkv)
        d_out = None if s.told is None else torch.empty_like(s.told, dtype=dtype)
        order = o.steps(length)
        for position in reversed(range(length)):
            t = order[position]
            on = s.active[t][..., None]
            h = i.h0.reshape(dh.shape) if position == 0 else s.states[order[position - 1]]
            h = before(i, t, h)
            dh = dh + dy[t]
            dh_new, d_write = dh, None
            if d_qkv is not None and d_out is not None:
                d_told, d_write = self._communicate(o, i, s, t, dh, d_qkv[t], d_out[t])
                dh_new = dh + d_told
            dh = torch.where(on, 0.0, dh_new)

            gates = s.gates[t].to(dh.dtype)
            if o.gru:
                r, z, n, n_st = gates.chunk(4, -1)
                dz = dh_new * (h - n)
                if d_write is not None:
                    dz = dz - d_write
                dn = dh_new * (1 - z) * (1 - n * n)
                dr = dn * n_st * r * (1 - r)
                dz = dz * z * (1 - z)
                d_in = torch.where(on, torch.cat([dr, dz, dn], -1), 0.0)
                d_st = torch.where(on, torch.cat([dr, dz, dn * r], -1), 0.0)
                dh = dh + torch.where(on, dh_new * z, 0.0)
                d_state[t] = d_st
            else:
                i_, f, g, o_ = gates.chunk(4, -1)
                c = i.c0.reshape(dc.shape) if position == 0 else s.memory[order[position - 1]]
                c, tanh_c = before(i, t, c), s.memory[t].tanh()
                dc_new = dc + dh_new * o_ * (1 - tanh_c * tanh_c)
                sums = [
                    dc_new * g * i_ * (1 - i_),
                    dc_new * c * f * (1 - f),
                    dc_new * i_ * (1 - g * g),
                    dh_new * tanh_c * o_ * (1 - o_),
                ]
                d_in = d_st = torch.where(on, torch.cat(sums, -1), 0.0)
                dc = torch.where(on, dc_new * f, dc)
            d_input[t] = d_in

            a = s.attention[:, t]
            d_scores[:, t] = torch.where(s.active[t], (d_in * reads[:, t]).sum(-1) * a * (1 - a), 0.0)
            dh = dh + (d_scores[:, t, ..., None] * asks[:, t]).sum(0)
            dh = dh + per_rim(d_st, i.hh.transpose(1, 2), dtype).to(dh.dtype)
            dh, dc = before(i, t, dh), before(i, t, dc)
        return Pieces(d_input, d_state, d_scores, d_qkv, d_out, dh, dc)

    def _communicate(
        self, o: Options, i: Inputs, s: Saved, t: int, dh: Tensor, d_qkv: Tensor, d_out: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """From the gradient of the states after the step, that of the states that were heard and, with a GRU,
        of how far the update gate was open. Fills in ``d_qkv`` and ``d_out`` of the step."""
        assert i.query is not None
        assert i.key is not None
        assert i.value is not None
        assert i.out is not None
        assert s.qkv is not None
        assert s.hearing is not None
        dtype = o.product_dtype
        d_heard = torch.where(s.active[t][..., None], dh, 0.0)
        d_write = None
        if s.squashed is not None:
            squashed = s.squashed[t]
            if o.gru:
                d_write = d_heard * squashed
                d_heard = d_heard * (1 - s.gates[t].to(dh.dtype).chunk(4, -1)[1])
            d_heard = d_heard * (1 - squashed * squashed)
        if i.comm_keep is not None:
            d_heard = d_heard * (i.comm_keep[t] * o.comm_scale)
        d_out.copy_(d_heard)
        d_heard = (d_out @ i.out.to(dtype)).to(dh.dtype).unflatten(-1, (o.heads, -1))
        q, k, v = split_heads(o, s.qkv[t].to(dh.dtype), i.value.shape[-1])
        hearing = s.hearing[t]
        dv = torch.einsum("bhij,bihv->bjhv", hearing, d_heard)
        d_hearing = torch.einsum("bihv,bjhv->bhij", d_heard, v)
        d_scores = hearing * (d_hearing - (hearing * d_hearing).sum(-1, keepdim=True))
        d_scores = d_scores / math.sqrt(q.shape[-1])
        dq = torch.einsum("bhij,bjhe->bihe", d_scores, k)
        dk = torch.einsum("bhij,bihe->bjhe", d_scores, q)
        d_qkv.copy_(torch.cat([part.flatten(2) for part in (dq, dk, dv)], -1))
        whole = torch.cat([i.query, i.key, i.value], -1)
        return per_rim(d_qkv, whole.transpose(1, 2), dtype).to(dh.dtype), d_write


def per_rim(rows: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Each RIM's rows by its own matrix: ``[B, K, i]``, ``[K, i, o]`` to ``[B, K, o]``."""
    return torch.bmm(rows.to(dtype).transpose(0, 1), weight.to(dtype)).transpose(0, 1)


def split_heads(o: Options, qkv: Tensor, value_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """``[..., Q]`` to queries, keys and values, ``[..., H, size]``; ``value_size`` is H * V."""
    key_size = (qkv.shape[-1] - value_size) // 2
    q, k, v = qkv.split([key_size, key_size, value_size], -1)
    return (
        q.unflatten(-1, (o.heads, -1)),
        k.unflatten(-1, (o.heads, -1)),
        v.unflatten(-1, (o.heads, -1)),
    )


def before(i: Inputs, t: int, state: Tensor) -> Tensor:
    """``[B, K, D]`` as step t begins with it: the last step's, but for resets."""
    return state if i.reset is None else state.masked_fill(i.reset[t, :, None, None], 0.0)


def states_before(o: Options, i: Inputs, first: Tensor, states: Tensor) -> Tensor:
    """The states that all steps begin with, ``[T, B, K, D]``, from the first and those they end with."""
    first = first.reshape(states[:1].shape)
    shifted = torch.cat([states[1:], first] if o.reverse else [first, states[:-1]])
    return shifted if i.reset is None else shifted.masked_fill(i.reset[..., None, None], 0.0)


def gradients(
    o: Options, i: Inputs, hoisted: Hoisted, s: Saved, p: Pieces, want_x: bool
) -> list[Tensor | None]:
    """Those of the first ``NUM_DIFFERENTIABLE`` inputs: each of a weight is one product over all rows."""
    dtype, heads, num_rims = o.product_dtype, o.input_heads, o.num_rims
    length, batch, size = i.x.shape
    rows = length * batch
    grads: dict[str, Tensor] = {"h0": p.dh0.flatten(1)}
    if not o.gru:
        grads["c0"] = p.dc0.flatten(1)

    # What moves the states by themselves.
    start = states_before(o, i, i.h0, s.states).flatten(0, 1)
    d_input, d_state = p.d_input.flatten(0, 1), p.d_state.flatten(0, 1)
    grads["hh"] = over_rows(start, d_state, dtype)
    if i.bias_ih is not None:
        grads["bias_ih"] = d_input.sum(0, dtype=i.h0.dtype)
        grads["bias_hh"] = d_state.sum(0, dtype=i.h0.dtype)

    # What was heard. A loop may have padded E and V of a head with zeros.
    if p.d_qkv is not None and p.d_out is not None:
        assert s.told is not None
        assert s.heard is not None
        assert s.qkv is not None
        assert i.query is not None
        assert i.value is not None
        whole = over_rows(s.told.flatten(0, 1), p.d_qkv.flatten(0, 1), dtype)
        parts = split_heads(o, whole, s.heard.shape[-1])
        for name, part, weight in zip(("query", "key", "value"), parts, (i.query, i.query, i.value)):
            grads[name] = part[..., : weight.shape[-1] // o.heads].flatten(-2)
        d_out = p.d_out.flatten(0, 2)
        d_weight = (d_out.t() @ s.heard.flatten(0, 2)).unflatten(-1, (o.heads, -1))
        grads["out"] = d_weight[..., : i.value.shape[-1] // o.heads].flatten(-2)
        grads["out_bias"] = d_out.sum(0, dtype=i.h0.dtype)

    # What was asked of the input: scores = h . u.
    d_scores = p.d_scores.view(heads, rows, num_rims)
    d_asks = (d_scores[..., None] * start).flatten(2)
    d_keys = torch.bmm(d_asks, query_by_head(o, i.input_query).transpose(1, 2))
    d_query = torch.bmm(hoisted.keys.transpose(1, 2), d_asks)
    grads["input_query"] = d_query.unflatten(2, (num_rims, -1)).permute(2, 3, 0, 1).flatten(2)
    d_keys = (d_keys / math.sqrt(d_keys.shape[-1])).to(dtype).transpose(0, 1).flatten(1)

    # What was read from it: a * P.
    ih = i.ih.to(dtype)
    d_reads = (s.attention.view(heads, rows, num_rims, 1) * d_input).to(dtype)
    if i.input_keep is None:
        flat = d_reads.flatten(2)
        d_ih = torch.bmm(hoisted.values.transpose(1, 2), flat)
        grads["ih"] = d_ih.unflatten(2, (num_rims, -1)).permute(2, 0, 1, 3).flatten(1, 2)
        d_values = torch.bmm(flat, ih_by_head(o, ih).transpose(1, 2))
    else:
        d_reads = d_reads.transpose(1, 2).flatten(0, 1)
        kept = keep_values(o, i, hoisted.values).flatten(0, 1)
        d_ih = torch.bmm(kept.transpose(1, 2), d_reads).unflatten(0, (heads, -1))
        grads["ih"] = d_ih.transpose(0, 1).flatten(1, 2)
        per_head = ih.unflatten(1, (heads, -1)).transpose(0, 1).flatten(0, 1)
        d_kept = torch.bmm(d_reads, per_head.transpose(1, 2)).unflatten(0, (heads, -1))
        keep = i.input_keep.flatten(0, 1).unflatten(-1, (heads, -1)).permute(2, 1, 0, 3)
        d_values = (d_kept * keep).sum(1) * o.input_scale
    d_values = d_values.transpose(0, 1).flatten(1)

    flat_x = i.x.reshape(rows, size).to(dtype)
    grads["input_key"] = flat_x.t() @ d_keys
    grads["input_value"] = flat_x.t() @ d_values
    if want_x:
        dx = d_keys @ i.input_key.to(dtype).t() + d_values @ i.input_value.to(dtype).t()
        grads["x"] = dx.view_as(i.x)

    result: list[Tensor | None] = []
    for name, tensor in zip(Inputs._fields[:NUM_DIFFERENTIABLE], i):
        grad = grads.get(name)
        result.append(None if grad is None or tensor is None else grad.to(tensor.dtype))
    return result


def over_rows(rows: Tensor, d_rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient ``[K, i, o]`` of each RIM's matrix from its rows ``[N, K, i]`` and ``[N, K, o]``."""
    return torch.bmm(rows.to(dtype).permute(1, 2, 0), d_rows.to(dtype).transpose(0, 1))


@runtime_checkable
class Engine(Protocol):
    """How the two passes are run: functions of tensors alone, so that they can be captured."""

    def forward(self, o: Options, i: Inputs, keep: bool) -> tuple[Hoisted, Saved]:
        """The forward pass; ``keep`` as in :class:`Loop`."""

    def backward(
        self,
        o: Options,
        i: Inputs,
        hoisted: Hoisted,
        s: Saved,
        want_x: bool,
        dy: Tensor,
        dh: Tensor,
        dc: Tensor,
    ) -> list[Tensor | None]:
        """Gradients of the first ``NUM_DIFFERENTIABLE`` inputs, from those of all states ``[T, B, K, D]`` and
        of the last h and c ``[B, K, D]``."""


class Eager:
    """Both passes, one operation after another, around a loop."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def forward(self, o: Options, i: Inputs, keep: bool) -> tuple[Hoisted, Saved]:
        hoisted = hoist(o, i)
        return hoisted, self.loop.forward(o, i, hoisted.asks, hoisted.reads, keep)

    def backward(
        self,
        o: Options,
        i: Inputs,
        hoisted: Hoisted,
        s: Saved,
        want_x: bool,
        dy: Tensor,
        dh: Tensor,
        dc: Tensor,
    ) -> list[Tensor | None]:
        pieces = self.loop.backward(o, i, hoisted.asks, hoisted.reads, s, dy, dh, dc)
        return gradients(o, i, hoisted, s, pieces, want_x)


class DenseFunction(torch.autograd.Function):
    """The two passes as one function of the inputs."""

    @staticmethod
    def forward(ctx: Any, o: Options, engine: Engine, *tensors: Tensor | None) -> Any:
        i = Inputs(*tensors)  # type: ignore[arg-type]
        hoisted, s = engine.forward(o, i, True)
        ctx.o, ctx.engine = o, engine
        ctx.save_for_backward(*tensors, *hoisted, *s)
        ctx.mark_non_differentiable(s.active)
        ctx.set_materialize_grads(False)
        return outputs(o, i, s)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dy: Tensor | None, dh: Tensor | None, dc: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        split = len(Inputs._fields)
        i = Inputs(*ctx.saved_tensors[:split])
        hoisted = Hoisted(*ctx.saved_tensors[split : split + len(Hoisted._fields)])
        s = Saved(*ctx.saved_tensors[split + len(Hoisted._fields) :])
        shape, last = s.states.shape, s.states[0]
        with torch.autocast(i.x.device.type, enabled=False):
            grads = ctx.engine.backward(
                ctx.o,
                i,
                hoisted,
                s,
                ctx.needs_input_grad[2],
                torch.zeros_like(s.states) if dy is None else dy.reshape(shape),
                torch.zeros_like(last) if dh is None else dh.reshape(shape[1:]),
                torch.zeros_like(last) if dc is None else dc.reshape(shape[1:]),
            )
        return None, None, *grads, *[None] * (split - NUM_DIFFERENTIABLE)


def outputs(o: Options, i: Inputs, s: Saved) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All states ``[T, B, K * D]``, the last h and c, and who was active."""
    last = o.steps(len(i.x))[-1]
    c_last = i.c0 if o.gru else s.memory[last if len(s.memory) > 1 else 0].flatten(1)
    return s.states.flatten(2), s.states[last].flatten(1).clone(), c_last.clone(), s.active


class Result(NamedTuple):
    """What a run gives."""

    states: Tensor
    """``[T, B, K * D]``."""
    h: Tensor
    c: Tensor
    """The last ones, ``[B, K * D]``."""
    active: Tensor
    """``[T, B, K]``."""
    attention: Tensor | None = None
    """On the input, ``[R, T, B, K]``; as the next, only where no gradients are recorded."""
    hearing: Tensor | None = None
    """``[T, B, H, K, K]``; None without communication."""


def run(o: Options, i: Inputs, engine: Engine) -> Result:
    """The sequence, differentiable."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in i):
        result = Result(*DenseFunction.apply(o, engine, *i))
    else:
        _, s = engine.forward(o, i, False)
        result = Result(*outputs(o, i, s), s.attention, s.hearing)
    if o.gru:  # passed through
        c = i.c0 if i.reset is None else i.c0.masked_fill(i.reset.any(0)[:, None], 0.0)
        result = result._replace(c=c)
    return result
