"""One step of a few rows without gradients: an agent that acts.

Here the time goes into starting operations, not into arithmetic: all RIMs are computed in a handful of
batched products, and those that are not active are dropped afterwards.

Shapes: B batch, K RIMs, D units of a RIM, I input, H heads, E and V key and value size of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rims.nn.cell import RIMCell
from rims.nn.dynamics import Dynamics, LSTMDynamics
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
    batch, rims, heads = len(x), cell.num_rims, read.heads
    h = h_flat.view(batch, rims, -1).transpose(0, 1)  # [K, B, D], as the batched products want it
    c = c_flat.view(batch, rims, -1).transpose(0, 1)

    asks = torch.bmm(h, read.query).view(rims, batch, heads, -1)
    keys = (x @ read.key).view(batch, heads, -1)
    scores = torch.linalg.vecdot(asks, keys).mul_(1 / math.sqrt(keys.shape[-1]))  # [K, B, H]
    active = choose(torch.sigmoid(-scores).mean(-1), cell.num_active, disabled)[..., None]
    values = (x @ read.value).view(batch, heads, -1)
    u = (scores.sigmoid_()[..., None] * values).flatten(2)

    if isinstance(dynamics, LSTMDynamics):
        h_new, c_new = lstm_step(dynamics, u, h, c)
        c = torch.where(active, c_new, c)
        write = None
    else:
        h_new, write = gru_step(dynamics, u, h)

    told = torch.where(active, h_new, h)
    q, k, v = (
        torch.bmm(told, weight).view(rims, batch, hear.heads, -1).permute(1, 2, 0, 3)
        for weight in (hear.query, hear.key, hear.value)
    )  # [B, H, K, E]
    mask = None
    if hear.topk is not None:
        mask = (q @ k.transpose(2, 3)).div_(math.sqrt(k.shape[-1]))
        if disabled is not None:
            mask.masked_fill_(disabled, -torch.inf)
        mask = select_active(-mask.flatten(0, 2), hear.topk).view_as(mask)
    if disabled is not None:
        mask = ~disabled[None] if mask is None else mask & ~disabled
    heard = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    out = torch.nn.functional.linear(heard.permute(2, 0, 1, 3).flatten(2), hear.out.weight, hear.out.bias)
    if write is not None:
        out = write * torch.tanh(out)
    h = torch.where(active, out.add_(h_new), h)
    return h.transpose(0, 1).reshape_as(h_flat), c.transpose(0, 1).reshape_as(c_flat)


def choose(penalty: Tensor, num_active: int, disabled: Tensor | None) -> Tensor:
    """:func:`select_active` of ``penalty [K, B]``, by which it is called where RIMs are disabled."""
    if disabled is not None:
        return select_active(penalty.t(), num_active, disabled).t()
    first = penalty.argsort(dim=0, stable=True)[:num_active]  # NaN last, ties as they come
    return torch.zeros_like(penalty, dtype=torch.bool).scatter_(0, first, True)


def lstm_step(dynamics: LSTMDynamics, u: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The next h and c of all RIMs."""
    if dynamics.bias_ih is None or dynamics.bias_hh is None:
        sums = torch.bmm(h, dynamics.weight_hh)
    else:
        sums = torch.baddbmm((dynamics.bias_ih + dynamics.bias_hh)[:, None], h, dynamics.weight_hh)
    i, f, g, o = sums.baddbmm_(u, dynamics.weight_ih).chunk(4, dim=-1)
    g = torch.tanh(g)
    sums.sigmoid_()
    c = (f * c).addcmul_(i, g)
    return o * torch.tanh(c), c


def gru_step(dynamics: Dynamics, u: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The next h of all RIMs, and how far the update gate lets anything new be written."""
    from_input, from_state = torch.bmm(u, dynamics.weight_ih), torch.bmm(h, dynamics.weight_hh)
    if dynamics.bias_ih is not None and dynamics.bias_hh is not None:
        from_input += dynamics.bias_ih[:, None]
        from_state += dynamics.bias_hh[:, None]
    size = h.shape[-1]
    n_input, n_state = from_input[..., 2 * size :], from_state[..., 2 * size :]
    r, z = (from_input[..., : 2 * size] + from_state[..., : 2 * size]).sigmoid_().chunk(2, dim=-1)
    n = torch.addcmul(n_input, r, n_state).tanh_()
    write = 1 - z
    return (write * n).addcmul_(z, h), write
