"""The loop over time as Triton kernels, two for a step each way.

All coupling between RIMs is inside a batch row, and at two places of a step: they are ranked, and they hear
each other. What lies between is a RIM's own. So a program has a tile of rows of one RIM and reads that RIM's
weights alone, from the L2 cache, and the end of a kernel is where programs wait for each other. To be
captured in a graph (:mod:`rims.nn.fast.graphs`): launched one by one the kernels would wait for the host.

Gates and attention weights are kept from the forward pass: reading them costs a fraction of the weights that
computing them again would. Products take operands in the product dtype and accumulate in float32; float32
operands are split in three tf32 products ("tf32x3"), which keeps float32's precision on tensor cores, unless
torch is told to allow tf32. Sizes are padded to powers of two by masks. Shapes as in
:mod:`rims.nn.fast.dense`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rims.nn.fast.dense import Inputs, Options, Pieces, Saved, before, states_before
from rims.nn.fast.kernel.backward import unhear, unmove
from rims.nn.fast.kernel.forward import hear, move
from rims.nn.fast.kernel.sizes import Sizes, pad, projection, queries_keys_values


class KernelLoop:
    """The loop of :mod:`rims.nn.fast.dense`, by these kernels."""

    def forward(self, o: Options, i: Inputs, asks: Tensor, reads: Tensor, keep: bool) -> Saved:
        """See :class:`rims.nn.fast.dense.Loop`."""
        length, batch = i.x.shape[:2]
        sizes, dtype, like = Sizes(o, i), o.product_dtype, i.h0
        rim, num_rims, heads = sizes.rim, o.num_rims, o.heads
        kept = length if keep else 1
        start, ends = (length, slice(0, length)) if o.reverse else (0, slice(1, length + 1))

        def empty(steps: int, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
            return like.new_empty(steps, batch, *shape, dtype=dtype)

        h = empty(length + 1, num_rims, rim)
        h[start] = i.h0.reshape(batch, num_rims, rim)
        c = empty(length + 1 if keep and not o.gru else 1, num_rims, rim)
        if not o.gru:
            c[start if keep else 0] = i.c0.reshape(batch, num_rims, rim)
        scores = like.new_empty(o.input_heads, length, batch, num_rims)
        order = [*o.steps(length)]
        scores[:, order[0]] = (asks[:, order[0]] * before(i, order[0], h[start])).sum(-1)
        gates = empty(kept, num_rims, 4 * rim, dtype=dtype)
        active = empty(length, num_rims, dtype=torch.bool)
        width = heads * (2 * sizes.key_padded + sizes.value_padded)
        told = qkv = hearing = heard = squashed = w_qkv = w_out = None
        if heads:
            told = empty(kept, num_rims, rim) if keep else None
            qkv = empty(kept, num_rims, width, dtype=dtype)
            hearing = empty(length, heads, num_rims, num_rims)
            heard = empty(kept, num_rims, heads * sizes.value_padded, dtype=dtype)
            squashed = empty(kept, num_rims, rim) if keep and o.squash else None
            w_qkv = queries_keys_values(o, i, sizes)
            w_out = pad(projection(o, i, sizes).t(), 1, sizes.rim_stride).contiguous()
        w_hh = pad(i.hh.unflatten(-1, (-1, rim)), -1, sizes.rim_stride).to(dtype).contiguous()
        biases = given(like, i.bias_ih, i.bias_hh)
        reset, valid, disabled, comm_keep = given(
            active, *map(as_bytes, (i.reset, i.valid, i.disabled, i.comm_keep))
        )
        chosen = active.view(torch.uint8)
        grid = (-(-batch // sizes.tile), num_rims)
        for t, following in zip(order, [*order[1:], -1]):
            old, new = (t + 1, t) if o.reverse else (t, t + 1)
            move[grid](
                *(h, c, scores, asks, reads, w_hh, *biases, *given(like, w_qkv), reset, valid, disabled),
                *(chosen, gates, *given(like, told, qkv), t, old, new, following, length, batch),
                KEEP=keep,
                **sizes.of(move),
            )
            if heads:
                hear[grid](
                    *(h, scores, asks, w_out, i.out_bias, reset, disabled, comm_keep, chosen, gates),
                    *(qkv, hearing, heard, *given(like, squashed), t, new, following, length, batch),
                    *(1 / math.sqrt(sizes.key), o.comm_scale),
                    KEEP=keep,
                    **sizes.of(hear),
                )
        memory = c[ends] if len(c) > 1 else c
        attention = scores.sigmoid()
        return Saved(h[ends], memory, active, attention, gates, told, qkv, hearing, heard, squashed)

    def backward(
        self, o: Options, i: Inputs, asks: Tensor, reads: Tensor, s: Saved, dy: Tensor, dh: Tensor, dc: Tensor
    ) -> Pieces:
        """See :class:`rims.nn.fast.dense.Loop`."""
        length, batch = i.x.shape[:2]
        sizes, dtype, like = Sizes(o, i), o.product_dtype, i.h0
        num_rims, heads = o.num_rims, o.heads
        dh, dc = (part.clone(memory_format=torch.contiguous_format) for part in (dh, dc))
        dy = dy.contiguous()
        d_input = reads.new_empty(reads.shape[1:])
        d_state = torch.empty_like(d_input) if o.gru else d_input
        d_scores = torch.empty_like(s.attention)
        d_qkv = d_out = d_heard = d_hearing = w_qkv = w_out = None
        if s.qkv is not None and s.heard is not None:
            d_qkv = torch.empty_like(s.qkv)
            d_out = like.new_empty(length, batch, num_rims, sizes.rim, dtype=dtype)
            d_heard = like.new_empty(batch, num_rims, s.heard.shape[-1])
            d_hearing = like.new_empty(batch, heads, num_rims, num_rims)
            w_qkv = pad(queries_keys_values(o, i, sizes).transpose(1, 2), -1, sizes.rim_stride).contiguous()
            w_out = projection(o, i, sizes).contiguous()
        h_before = states_before(o, i, i.h0, s.states) if o.gru else None
        c_before = None if o.gru else states_before(o, i, i.c0, s.memory)
        w_hh = pad(i.hh.transpose(1, 2), -1, sizes.rim_stride).to(dtype).contiguous()
        chosen = s.active.view(torch.uint8)
        reset, comm_keep = given(s.active, as_bytes(i.reset), as_bytes(i.comm_keep))
        heard = given(like, s.qkv, s.hearing, s.squashed)
        grid = (-(-batch // sizes.tile), num_rims)
        for t in reversed(o.steps(length)):
            if heads:
                unhear[grid](
                    *(dh, dy, chosen, s.gates, *heard, w_out, comm_keep, d_heard, d_hearing, d_qkv, d_out),
                    *(t, batch, 1 / math.sqrt(sizes.key), o.comm_scale),
                    **sizes.of(unhear),
                )
            unmove[grid](
                *(dh, dc, dy, *given(like, h_before, c_before), s.memory, asks, reads, chosen, s.attention),
                *(s.gates, *heard, w_hh, *given(like, w_qkv), reset, *given(like, d_heard, d_hearing)),
                *(d_input, d_state, d_scores, *given(like, d_qkv), t, length, batch),
                **sizes.of(unmove),
            )
        return Pieces(d_input, d_state, d_scores, d_qkv, d_out, dh, dc)


def as_bytes(mask: Tensor | None) -> Tensor | None:
    """A bool tensor as the kernels read it."""
    return None if mask is None else mask.contiguous().view(torch.uint8)


def given(instead: Tensor, *tensors: Tensor | None) -> list[Any]:
    """The tensors; another one, never touched, where there is none, since a kernel takes only pointers."""
    if instead.dtype == torch.bool:
        instead = instead.view(torch.uint8)
    return [instead if tensor is None else tensor for tensor in tensors]
