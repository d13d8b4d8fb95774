"""One step of a few rows without gradients: an agent that acts.

Here the time goes into starting operations and into reading the weights, not into arithmetic. Of a single row
the active RIMs are known as soon as they are ranked, and only their input weights are read. Of a few rows all
RIMs are computed in a handful of batched products, and those that are not active are dropped afterwards.

The weights are read as they are at each step. Fused copies would save a tenth of the time, but nothing tells
when they are out of date: a write through ``weight.data`` or from another process leaves no mark on a tensor.

Shapes: B batch, K RIMs, A active RIMs, D units of a RIM, I input, H heads, E and V key and value size of a
head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from rims.nn.attention import Communication
from rims.nn.cell import RIMCell
from rims.nn.dynamics import LSTMDynamics
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
    cell: RIMCell, x: Tensor, h: Tensor, c: Tensor, disabled: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The next h and c ``[B, K * D]`` from x ``[B, I]``; as :meth:`RIMCell.step`."""
    return (one_row if len(x) == 1 else few_rows)(cell, x, h, c, disabled)


def one_row(
    cell: RIMCell, x: Tensor, h_flat: Tensor, c_flat: Tensor, disabled: Tensor | None
) -> tuple[Tensor, Tensor]:
    """:func:`single_step` where B is 1.

    Of the input weights, the largest, only those of the active RIMs are read. All else is computed for all
    RIMs: picking rows out of so little costs more than working on them.
    """
    read, dynamics, hear = cell.input_attention, cell.dynamics, cell.communication
    assert read is not None
    assert hear is not None
    rims, heads = cell.num_rims, read.heads
    h, c = h_flat.view(rims, 1, -1), c_flat.view(rims, 1, -1)

    asks = torch.bmm(h, read.query).view(rims, heads, -1)
    keys = torch.mm(x, read.key).view(heads, -1)
    scores = torch.linalg.vecdot(asks, keys).mul_(-1 / math.sqrt(keys.shape[1]))  # [K, H], negative
    penalty = scores.sigmoid_()  # attention on null
    chosen = first(penalty.view(-1) if heads == 1 else penalty.mean(1), cell.num_active, disabled)
    active = torch.tensor([[[k in chosen]] for k in range(rims)], device=h.device)
    u = ((1 - penalty).unsqueeze(2) * torch.mm(x, read.value).view(heads, -1)).view(rims, 1, -1)

    write = None
    if isinstance(dynamics, LSTMDynamics):
        sums = product(h, dynamics.weight_hh, total_bias(dynamics))
        add_products(sums, u, dynamics.weight_ih, chosen)
        h_new, c_new = lstm(sums, c)
        c = torch.where(active, c_new, c)
    else:
        from_state = product(h, dynamics.weight_hh, dynamics.bias_hh)
        bias = dynamics.bias_ih
        from_input = torch.zeros_like(from_state) if bias is None else bias.unsqueeze(1).clone()
        add_products(from_input, u, dynamics.weight_ih, chosen)
        h_new, write = gru(from_input, from_state, h)

    heard = listen(hear, torch.where(active, h_new, h), disabled)
    out = torch.nn.functional.linear(heard, hear.out.weight, hear.out.bias)
    if cell.squash:
        out = out.tanh_()
    if write is not None:
        out = out.mul_(write)
    return torch.where(active, out.add_(h_new), h).view_as(h_flat), c.view_as(c_flat)


def few_rows(
    cell: RIMCell, x: Tensor, h_flat: Tensor, c_flat: Tensor, disabled: Tensor | None
) -> tuple[Tensor, Tensor]:
    """:func:`single_step` for any B."""
    read, dynamics, hear = cell.input_attention, cell.dynamics, cell.communication
    assert read is not None
    assert hear is not None
    batch, rims, heads = len(x), cell.num_rims, read.heads
    h = h_flat.view(batch, rims, -1).transpose(0, 1)  # [K, B, D], as the batched products want it
    c = c_flat.view(batch, rims, -1).transpose(0, 1)

    asks = torch.bmm(h, read.query).view(rims, batch, heads, -1)
    keys = torch.mm(x, read.key).view(batch, heads, -1)
    scores = torch.linalg.vecdot(asks, keys).mul_(1 / math.sqrt(keys.shape[-1]))  # [K, B, H]
    penalty = torch.sigmoid(-scores).mean(-1)  # attention on null
    active = select_active(penalty.t(), cell.num_active, disabled).t()[..., None]
    values = torch.mm(x, read.value).view(batch, heads, -1)
    u = (scores.sigmoid_()[..., None] * values).flatten(2)

    write = None
    if isinstance(dynamics, LSTMDynamics):
        sums = product(h, dynamics.weight_hh, total_bias(dynamics))
        h_new, c_new = lstm(sums.baddbmm_(u, dynamics.weight_ih), c)
        c = torch.where(active, c_new, c)
    else:
        from_input = product(u, dynamics.weight_ih, dynamics.bias_ih)
        from_state = product(h, dynamics.weight_hh, dynamics.bias_hh)
        h_new, write = gru(from_input, from_state, h)

    heard = listen(hear, torch.where(active, h_new, h), disabled)
    out = torch.nn.functional.linear(heard, hear.out.weight, hear.out.bias)
    if cell.squash:
        out = out.tanh_()
    if write is not None:
        out = out.mul_(write)
    h = torch.where(active, out.add_(h_new), h)
    return h.transpose(0, 1).reshape_as(h_flat), c.transpose(0, 1).reshape_as(c_flat)


def first(penalty: Tensor, num_active: int, disabled: Tensor | None) -> list[int]:
    """The RIMs that :func:`select_active` chooses by ``penalty [K]``."""
    known = [math.inf if p != p else p for p in penalty.tolist()]  # NaN comes last
    rims: Iterable[int] = range(len(known))
    if disabled is not None:
        rims = [k for k, removed in enumerate(disabled.tolist()) if not removed]
    return sorted(rims, key=known.__getitem__)[:num_active]  # stable: ties go to the lower index


def total_bias(dynamics: LSTMDynamics) -> Tensor | None:
    """Both biases of an LSTM, which it adds."""
    if dynamics.bias_ih is None or dynamics.bias_hh is None:
        return None
    return dynamics.bias_ih + dynamics.bias_hh


def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``rows [K, B, N]`` times ``weight [K, N, M]`` plus ``bias [K, M]``."""
    if bias is None:
        return torch.bmm(rows, weight)
    return torch.baddbmm(bias.unsqueeze(1), rows, weight)


def lstm(sums: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The next h and c from ``sums [..., 4D]``, which are spent, and ``c [..., D]``."""
    i, f, g, o = sums.chunk(4, dim=-1)
    g = torch.tanh(g)
    sums.sigmoid_()
    c = (f * c).addcmul_(i, g)
    return torch.tanh(c).mul_(o), c


def gru(from_input: Tensor, from_state: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The next h from both sums ``[..., 3D]``, and how far the update gate lets anything new be written."""
    size = h.shape[-1]
    n_input, n_state = from_input[..., 2 * size :], from_state[..., 2 * size :]
    r, z = (from_input[..., : 2 * size] + from_state[..., : 2 * size]).sigmoid_().chunk(2, dim=-1)
    n = torch.addcmul(n_input, r, n_state).tanh_()
    write = 1 - z
    return n.mul_(write).addcmul_(z, h), write


def add_products(sums: Tensor, rows: Tensor, weights: Tensor, chosen: list[int]) -> None:
    """``sums[k] += rows[k] @ weights[k]`` for each k in ``chosen``."""
    into, left, right = sums.unbind(), rows.unbind(), weights.unbind()
    for k in chosen:
        into[k].addmm_(left[k], right[k])


def listen(hear: Communication, told: Tensor, disabled: Tensor | None) -> Tensor:
    """What each RIM hears of ``told [K, B, D]``, before the projection: ``[K, B, H * V]``."""
    rims, batch, _ = told.shape
    shape = (rims, batch * hear.heads, -1)
    q = torch.bmm(told, hear.query).view(shape).transpose(0, 1)  # [B * H, K, E]
    k = torch.bmm(told, hear.key).view(shape).permute(1, 2, 0)
    v = torch.bmm(told, hear.value).view(shape).transpose(0, 1)
    scores = torch.bmm(q, k).mul_(1 / math.sqrt(k.shape[1]))
    if disabled is not None:
        scores.masked_fill_(disabled, -torch.inf)
    if hear.topk is not None:
        scores.masked_fill_(~select_active(-scores.flatten(0, 1), hear.topk).view_as(scores), -torch.inf)
    return torch.bmm(scores.softmax(-1), v).transpose(0, 1).reshape(rims, batch, -1)
