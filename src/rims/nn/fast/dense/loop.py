"""The loop over time in plain torch.

Shapes: see :mod:`rims.nn.fast.dense`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rims.nn.fast.dense.tensors import Inputs, Options, Pieces, Saved
from rims.nn.selection import select_active


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


def choose(o: Options, penalty: Tensor, disabled: Tensor | None, valid: Tensor | None) -> Tensor:
    """The active RIMs ``[B, K]``; none where a row stands still."""
    active = select_active(penalty, o.num_active, disabled)
    return active if valid is None else active & valid[:, None]


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
