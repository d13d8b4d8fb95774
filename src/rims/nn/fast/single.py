"""One step of a few rows without gradients: an agent that acts.

Here the time goes into starting operations, not into arithmetic: all RIMs are computed in a handful of
batched products, and those that are not active are dropped afterwards.

Shapes: B batch, K RIMs, D units of a RIM, I input, H heads, E and V key and value size of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rims.nn.attention import null_attention
from rims.nn.cell import RIMCell
from rims.nn.dynamics import LSTMDynamics
from rims.nn.fast.stages import softmax_
from rims.nn.selection import select_active

MOST_ROWS = 16
"""Above it the arithmetic of inactive RIMs costs more than it saves."""


def applies(cell: RIMCell, x: Tensor) -> bool:
    """Whether ``x [T, B, ...]`` is one step that :func:`single_step` covers, gradients and masks aside."""
    return (
        len(x) == 1
        and x.shape[1] <= MOST_ROWS
        and cell.inputs == "vector"
        and cell.variant == "paper"
        and cell.selection == "null"
        and cell.input_attention is not None
        and cell.communication is not None
        and not (cell.training and (cell.input_dropout.p or cell.communication.dropout.p))
    )


def single_step(
    cell: RIMCell, x: Tensor, h_flat: Tensor, c_flat: Tensor, disabled: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The next h and c ``[B, K * D]`` from x ``[B, I]``; as :meth:`RIMCell.step`."""
    read, dynamics, hear = cell.input_attention, cell.dynamics, cell.communication
    assert read is not None
    assert hear is not None
    batch, rims = len(x), cell.num_rims
    h = h_flat.view(batch, rims, -1).transpose(0, 1)  # [K, B, D], as the batched products want it
    c = c_flat.view(batch, rims, -1).transpose(0, 1)

    asks = torch.bmm(h, read.query).view(rims, batch, read.heads, -1)
    keys = (x @ read.key).view(batch, read.heads, -1)
    scores = (asks * keys).sum(-1).div_(math.sqrt(keys.shape[-1])).permute(1, 2, 0)[..., None]
    attention, penalty = null_attention(scores, None)
    active = select_active(penalty, cell.num_active, disabled).t()[..., None]
    values = (x @ read.value).view(batch, read.heads, -1)
    u = (attention[..., 1].permute(2, 0, 1)[..., None] * values).flatten(2)

    from_input, from_state = torch.bmm(u, dynamics.weight_ih), torch.bmm(h, dynamics.weight_hh)
    if dynamics.bias_ih is not None and dynamics.bias_hh is not None:
        from_input += dynamics.bias_ih[:, None]
        from_state += dynamics.bias_hh[:, None]
    write = None
    if isinstance(dynamics, LSTMDynamics):
        i, f, g, o = from_input.add_(from_state).chunk(4, dim=-1)
        c_new = (torch.sigmoid(f) * c).addcmul_(torch.sigmoid(i), torch.tanh(g))
        h_new = torch.sigmoid(o) * torch.tanh(c_new)
        c = torch.where(active, c_new, c)
    else:
        r_input, z_input, n_input = from_input.chunk(3, dim=-1)
        r_state, z_state, n_state = from_state.chunk(3, dim=-1)
        z = torch.sigmoid(z_input + z_state)
        n = torch.tanh(torch.addcmul(n_input, torch.sigmoid(r_input + r_state), n_state))
        write = 1 - z
        h_new = (write * n).addcmul_(z, h)

    told = torch.where(active, h_new, h)
    q, k, v = (
        torch.bmm(told, weight).view(rims, batch, hear.heads, -1).permute(1, 2, 0, 3)
        for weight in (hear.query, hear.key, hear.value)
    )  # [B, H, K, E]
    scores = (q @ k.transpose(2, 3)).div_(math.sqrt(k.shape[-1]))
    if disabled is not None:
        scores.masked_fill_(disabled, -torch.inf)
    if hear.topk is not None:
        kept = select_active(-scores.flatten(0, 2), hear.topk).view_as(scores)
        scores.masked_fill_(~kept, -torch.inf)
    heard = (softmax_(scores) @ v).permute(2, 0, 1, 3).flatten(2)
    out = torch.nn.functional.linear(heard, hear.out.weight, hear.out.bias)
    if write is not None:
        out = write * torch.tanh(out)
    h = torch.where(active, h_new + out, h)
    return h.transpose(0, 1).reshape_as(h_flat), c.transpose(0, 1).reshape_as(c_flat)
