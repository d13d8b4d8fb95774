"""The two attentions of a RIM layer: on the input (equations 1 and 2) and on the other RIMs (equations 4 and
5).

Shapes: B batch, K RIMs, D units of a RIM, I input size, S input slots, H heads, E key size of a head, V value
size of a head.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rims.nn.selection import select_active


class Read(NamedTuple):
    """What the RIMs took from the input."""

    values: Float[Tensor, "B K HV"]
    """Each RIM's input, heads side by side."""
    attention: Float[Tensor, "B H K S+1"]
    """Weights on the null slot (index 0) and on the input's slots."""
    penalty: Float[Tensor, "B K"]
    """What the RIMs are ranked by, least first: attention on null, or the negative of attention on the
    input."""


def dot_product(equation: str, query: Tensor, key: Tensor) -> Tensor:
    """Scaled dot products of ``[..., E]`` queries and keys, in float32 at least, under autocast too: RIMs are
    ranked by them."""
    dtype, device = torch.promote_types(query.dtype, torch.float32), query.device.type
    # The meta device has no autocast. Not by torch.amp.is_autocast_available: torch.compile of torch 2.8, the
    # oldest that this package admits, cannot trace it.
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        return torch.einsum(equation, query.to(dtype), key.to(dtype)) / math.sqrt(query.shape[-1])


class InputAttention(nn.Module):
    """Every RIM asks, from its state, what of the input concerns it (paper 2.2).

    Queries are made by a matrix of each RIM's own, keys and values by matrices that all RIMs and slots share,
    as in the released code (the text gives each RIM its own; the equations give W^e and W^v no index: spec
    1.2, discrepancy 2). No matrix has a bias, so the key and the value of the null slot are exactly zero, and
    so is its score.

    ``selection="null"``: softmax over {null, slots}; a RIM is ranked by how little it attends to null,
    averaged over heads after the softmax (v6, section 2.2). ``"competition"``: softmax over the RIMs at each
    slot, sharpened to ``num_active`` winners (ICLR text and released Atari code); a RIM is ranked by what it
    wins over all slots.
    """

    def __init__(
        self,
        input_size: int,
        rim_size: int,
        num_rims: int,
        num_active: int,
        *,
        heads: int,
        key_size: int,
        value_size: int,
        selection: str,
        private: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_active, self.heads, self.selection, self.private = num_active, heads, selection, private
        self.query = nn.Parameter(
            torch.empty(num_rims, rim_size, heads * key_size, device=device, dtype=dtype)
        )
        self.key = nn.Parameter(torch.empty(input_size, heads * key_size, device=device, dtype=dtype))
        self.value = nn.Parameter(torch.empty(input_size, heads * value_size, device=device, dtype=dtype))

    def forward(
        self,
        x: Float[Tensor, "B S I"],
        h: Float[Tensor, "B K D"],
        mask: Bool[Tensor, "B S"] | None = None,
        disabled: Bool[Tensor, " K"] | None = None,
    ) -> Read:
        """Read from the slots ``x`` (with private inputs S is K, and RIM k sees slot k alone) where ``mask``
        is true."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)  # an absent slot may hold anything, NaN too
        q = torch.einsum("bkd,kde->bke", h, self.query).unflatten(-1, (self.heads, -1))
        k = (x @ self.key).unflatten(-1, (self.heads, -1))
        v = (x @ self.value).unflatten(-1, (self.heads, -1))
        if self.private:
            scores = dot_product("bkhe,bkhe->bhk", q, k)[..., None]
        else:
            scores = dot_product("bkhe,bshe->bhks", q, k)
        present = None
        if mask is not None:
            present = mask[:, None, :, None] if self.private else mask[:, None, None, :]
        if self.selection == "null":
            attention, penalty = null_attention(scores, present)
        else:
            attention, penalty = competition_attention(scores, self.num_active, present, disabled)
        weights = attention[..., 1:].to(v.dtype)
        if self.private:
            values = weights[..., 0].transpose(1, 2)[..., None] * v
        else:
            values = torch.einsum("bhks,bshv->bkhv", weights, v)
        return Read(values.flatten(2), attention, penalty)

    def extra_repr(self) -> str:
        return f"{len(self.key)}, {sizes_of(self.query, self.value, self.heads)}"


def sizes_of(query: Tensor, value: Tensor, heads: int) -> str:
    """What a printed attention says of itself."""
    num_rims, rim_size, keys = query.shape
    sizes = {"num_rims": num_rims, "heads": heads}
    sizes |= {"key_size": keys // heads, "value_size": value.shape[-1] // heads}
    return f"{rim_size}, " + ", ".join(f"{name}={size}" for name, size in sizes.items())


def null_attention(
    scores: Float[Tensor, "B H K S"], present: Tensor | None = None
) -> tuple[Float[Tensor, "B H K S+1"], Float[Tensor, "B K"]]:
    """Softmax over {null, slots} of each RIM (equation 1), and the attention on null averaged over heads."""
    if present is not None:
        scores = scores.masked_fill(~present, -torch.inf)
    null = torch.zeros_like(scores[..., :1])
    attention = torch.cat([null, scores], dim=-1).softmax(dim=-1)
    return attention, attention[..., 0].mean(dim=1)


def competition_attention(
    scores: Float[Tensor, "B H K S"],
    num_active: int,
    present: Tensor | None = None,
    disabled: Bool[Tensor, " K"] | None = None,
) -> tuple[Float[Tensor, "B H K S+1"], Float[Tensor, "B K"]]:
    """Softmax over the RIMs at each slot, then only each slot's ``num_active`` winners, weighted by their
    margin over the first loser.

    The null column of the returned attention is zero. Differences from the released code: there
    ``num_active = K - 1`` skips the sharpening; and where all RIMs tie, as at zero state, every margin is
    zero and nobody reads anything, so that the first symbol of a sequence is lost. Here the winners of a tie
    share equally.
    """
    out_of_the_race = torch.finfo(scores.dtype).min  # not -inf: where nobody is left, softmax would give NaN
    if disabled is not None:
        scores = scores.masked_fill(disabled[:, None], out_of_the_race)
    if present is not None:
        scores = scores.masked_fill(~present, out_of_the_race)
    attention = scores.softmax(dim=2)
    if present is not None:
        attention = attention.masked_fill(~present, 0.0)
    penalty = -attention.sum(dim=-1).mean(dim=1)
    num_rims = scores.shape[2]
    if num_active < num_rims:
        by_slot = attention.transpose(2, 3)
        threshold = by_slot.topk(num_active + 1, dim=-1).values[..., -1:]
        winner = select_active(-by_slot.flatten(0, 2), num_active).view_as(by_slot)
        tie_share = 1e-7  # the released code's constant; it decides only where all margins vanish
        margin = torch.where(winner, by_slot - threshold + tie_share, 0.0)
        attention = (margin / margin.sum(dim=-1, keepdim=True)).transpose(2, 3)
        if present is not None:
            attention = attention.masked_fill(~present, 0.0)
    return torch.cat([torch.zeros_like(attention[..., :1]), attention], dim=-1), penalty


class Communication(nn.Module):
    """Every active RIM reads from all RIMs, itself included (paper 2.4, equations 4 and 5).

    Queries, keys and values are made by each RIM's own matrices, without bias; the heads' results, side by
    side, are projected to D by one matrix that all RIMs share, as in the released code (the equations show no
    projection). ``gated`` (variant "official") gives ``sigmoid(gate) * tanh(out)`` instead of the projection
    itself. ``topk`` keeps each RIM's largest weights only.
    """

    def __init__(
        self,
        rim_size: int,
        num_rims: int,
        *,
        heads: int,
        key_size: int,
        value_size: int,
        topk: int | None,
        gated: bool,
        dropout: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.topk = heads, topk
        self.query = nn.Parameter(
            torch.empty(num_rims, rim_size, heads * key_size, device=device, dtype=dtype)
        )
        self.key = nn.Parameter(torch.empty(num_rims, rim_size, heads * key_size, device=device, dtype=dtype))
        self.value = nn.Parameter(
            torch.empty(num_rims, rim_size, heads * value_size, device=device, dtype=dtype)
        )
        self.out = nn.Linear(heads * value_size, rim_size, device=device, dtype=dtype)
        self.gate = nn.Linear(heads * value_size, rim_size, device=device, dtype=dtype) if gated else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, h: Float[Tensor, "B K D"], disabled: Bool[Tensor, " K"] | None = None
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B H K K"]]:
        """What each RIM (first K) hears of the states ``h`` of all (second K); ``disabled`` RIMs are not
        heard."""
        q, k, v = (self._of_heads(h, weight) for weight in (self.query, self.key, self.value))
        scores = dot_product("bihe,bjhe->bhij", q, k)
        if disabled is not None:
            scores = scores.masked_fill(disabled, -torch.inf)
        if self.topk is not None:
            kept = select_active(-scores.flatten(0, 2), self.topk).view_as(scores)
            scores = scores.masked_fill(~kept, -torch.inf)
        attention = scores.softmax(dim=-1)
        heard = torch.einsum("bhij,bjhv->bihv", attention.to(v.dtype), v).flatten(2)
        out = self.dropout(self.out(heard))
        if self.gate is not None:
            out = torch.sigmoid(self.gate(heard)) * torch.tanh(out)
        return out, attention

    def _of_heads(
        self, h: Float[Tensor, "B K D"], weight: Float[Tensor, "K D E"]
    ) -> Float[Tensor, "B K H _"]:
        """Each RIM's state by its own matrix."""
        return torch.einsum("bkd,kde->bke", h, weight).unflatten(-1, (self.heads, -1))

    def extra_repr(self) -> str:
        topk = "" if self.topk is None else f", topk={self.topk}"
        return sizes_of(self.query, self.value, self.heads) + topk
