"""What both directions over a sequence share: weights, plan, shapes, and the stages that the backward pass
computes again.

Shapes as in :mod:`rims.nn.fast.sequence`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rims.nn.cell import RIMCell
from rims.nn.fast import stages
from rims.nn.fast.matmul import grouped, product
from rims.nn.fast.rows import Rows, heads_first, heads_last, pick

if TYPE_CHECKING:
    from rims.nn.fast.again import Again


@dataclass
class Weights:
    """The weights of a cell (or their gradients); None where it has none."""

    input_query: Tensor | None
    input_key: Tensor | None
    input_value: Tensor | None
    ih: Tensor | None
    hh: Tensor | None
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    out: Tensor | None
    out_bias: Tensor | None
    gate: Tensor | None
    gate_bias: Tensor | None

    @classmethod
    def of(cls, cell: RIMCell) -> Weights:
        """The cell's, by their names here."""
        attention, communication, dynamics = cell.input_attention, cell.communication, cell.dynamics
        out = None if communication is None else communication.out
        gate = None if communication is None else communication.gate
        return cls(
            input_query=None if attention is None else attention.query,
            input_key=None if attention is None else attention.key,
            input_value=None if attention is None else attention.value,
            ih=dynamics.weight_ih,
            hh=dynamics.weight_hh,
            bias_ih=dynamics.bias_ih,
            bias_hh=dynamics.bias_hh,
            query=None if communication is None else communication.query,
            key=None if communication is None else communication.key,
            value=None if communication is None else communication.value,
            out=None if out is None else out.weight,
            out_bias=None if out is None else out.bias,
            gate=None if gate is None else gate.weight,
            gate_bias=None if gate is None else gate.bias,
        )

    def tensors(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]


def given(*tensors: Tensor | None) -> list[Tensor]:
    """Tensors that are there in this place."""
    assert all(tensor is not None for tensor in tensors)
    return list(tensors)  # type: ignore[arg-type]


@dataclass
class Plan:
    """What the sequence does, apart from the tensors that gradients reach."""

    num_rims: int
    num_active: int
    """Those that are active where any is: fewer than asked for, if too many are removed."""
    gru: bool
    squash: bool
    """Whether the tanh of what is heard is added, in the paper variant."""
    official: bool
    private: bool
    choose: stages.Chooser
    input_heads: int
    heads: int
    topk: int | None
    reverse: bool
    return_trace: bool
    product_dtype: torch.dtype
    reset: Tensor | None = None
    """``[T, B]``: the state becomes zero before the computation of step t."""
    mask: Tensor | None = None
    """``[T, B, S]``: the slots that are present."""
    valid: Tensor | None = None
    """``[T, B]``: elsewhere rows stand still."""
    disabled: Tensor | None = None
    """``[K]``: removed RIMs."""
    input_keep: Tensor | None = None
    """``[T, B * K, H * V]``: what dropout keeps of what the RIMs read, times ``input_scale``."""
    input_scale: float = 1.0
    comm_keep: Tensor | None = None
    """``[T, B * K, D]``: what dropout keeps of what the RIMs hear, times ``comm_scale``."""
    comm_scale: float = 1.0
    again: Again | None = None
    """For gradients of gradients; None under torch.compile, which has none."""

    def steps(self, length: int) -> range:
        """The steps in the order of computation."""
        return range(length)[::-1] if self.reverse else range(length)


@dataclass
class Step:
    """What is small and different at each step."""

    rows: Rows
    present: Tensor | None
    """Batch elements that are computed; None for all."""
    weights: Tensor | None
    """Input attention ``[B, H, K, S+1]``."""
    scores: Tensor | None
    """Its scores."""


class Input(NamedTuple):
    """The input of all steps, projected, by group: a batch element, or with private inputs one RIM of it."""

    keys: Tensor | None
    """``[T, G * H, S, E]``, divided by sqrt(E)."""
    values: Tensor
    """``[T, G * H, S, V]``."""


class Pass:
    """One run over a sequence: the shapes, the plan, and what is common to both directions."""

    def __init__(self, plan: Plan, weights: Weights, x: Tensor, h0: Tensor) -> None:
        self.plan = plan
        self.length, self.batch, self.slots, self.input_size = x.shape
        self.num_rims = plan.num_rims
        self.rim_size = h0.shape[1] // plan.num_rims
        self.weights = weights
        if plan.product_dtype != h0.dtype:  # autocast: matrices in its dtype, all else in the state's
            matrices = {
                f.name: w.to(plan.product_dtype)
                for f, w in zip(fields(weights), weights.tensors())
                if w is not None and "bias" not in f.name
            }
            self.weights = replace(weights, **matrices)
        self.stacked: dict[str, Tensor] = {
            name: w
            for name in ("input_query", "ih", "hh", "query")
            if (w := getattr(self.weights, name)) is not None
        }
        self.bias_ih: Sequence[Tensor] | None = None
        self.bias_hh: Sequence[Tensor] | None = None
        if weights.bias_ih is not None and weights.bias_hh is not None:
            # An LSTM's two always meet as their sum.
            bias = weights.bias_ih if plan.gru else weights.bias_ih + weights.bias_hh
            self.bias_ih, self.bias_hh = bias.unbind(0), weights.bias_hh.unbind(0)
        if self.weights.key is not None and self.weights.value is not None:
            self.stacked["told"] = torch.cat([self.weights.key, self.weights.value], dim=2)  # one product
        self.by_rim = {name: w.unbind(0) for name, w in self.stacked.items()}
        self.one_value = (
            weights.input_key is not None and plan.input_heads == 1 and (plan.private or self.slots == 1)
        )
        """Whether a RIM reads a multiple of a single value: what this does to its dynamics is then the same
        multiple of the value's product with its weights, and the gradient of the attention a dot product."""
        self.group = 1 if plan.private else plan.num_active
        """Active rows of a group of the input."""
        everywhere = [self.batch] * self.length
        present = everywhere if plan.valid is None else plan.valid.sum(1).tolist()
        self.counts = [plan.num_active * count for count in present]
        self.reset_steps = None if plan.reset is None else plan.reset.any(1).tolist()

    def project_input(self, x: Tensor) -> Input:
        """Keys and values of all steps."""
        w, heads = self.weights, self.plan.input_heads
        flat = x.reshape(-1, self.input_size)
        if w.input_key is None or w.input_value is None:
            return Input(None, self.by_group(flat, 1))
        keys = product(flat, w.input_key)
        keys /= math.sqrt(keys.shape[1] // heads)
        return Input(self.by_group(keys, heads), self.by_group(product(flat, w.input_value), heads))

    def by_group(self, rows: Tensor, heads: int) -> Tensor:
        """``[T * B * S, H * E]`` to ``[T, G * H, S, E]``."""
        slots = 1 if self.plan.private else self.slots
        return heads_first(rows, heads, slots).unflatten(0, (self.length, -1))

    def groups(self, rows: Rows, present: Tensor | None) -> Tensor | None:
        """The groups that ``rows`` read from; None for all, in order."""
        return rows.by_batch if self.plan.private else present

    def read(self, source: Input, t: int, rows: Rows, step: Step) -> tuple[Tensor, Tensor | None]:
        """What ``rows`` read from the input of step t, ``[N, H * V]`` in the order by RIM, and the attention
        on the slots by group, ``[G * H, P, S]``."""
        plan, values, heads = self.plan, source.values[t], self.plan.input_heads
        attention = None
        if step.weights is not None:
            present = self.batch if step.present is None else len(step.present)
            per_group = 1 if plan.private else len(rows.by_batch) // max(present, 1)
            attention = self.rows_of(step.weights, rows, per_group)[..., 1:]
        if values.shape[1] == 1:
            which = rows.by_rim if plan.private else rows.by_rim // self.num_rims
            read = values.view(-1, heads * values.shape[2]).index_select(0, which)
            if attention is not None:
                weight = heads_last(attention, heads).index_select(0, rows.to_rim)
                read.view(-1, heads, values.shape[2]).mul_(weight[..., None])
        else:
            assert attention is not None
            values = pick(values, heads, self.groups(rows, step.present))
            read = heads_last(torch.bmm(attention, values), heads).index_select(0, rows.to_rim)
        return self.drop(read, t, rows), attention

    def value_rows(self, t: int, rows: Rows) -> Tensor:
        """With one value: where each row, by RIM, finds it among those of all steps."""
        groups = rows.by_rim if self.plan.private else rows.by_rim // self.num_rims
        return groups + t * (self.batch * self.num_rims if self.plan.private else self.batch)

    def values_of(self, source: Input, t: int, rows: Rows) -> Tensor:
        """With one value: that of each row, by RIM, as far as dropout keeps it."""
        values = source.values.view(-1, source.values.shape[-1]).index_select(0, self.value_rows(t, rows))
        return self.drop(values, t, rows)

    def drop(self, read: Tensor, t: int, rows: Rows) -> Tensor:
        """Dropout of what ``rows`` read, in place; its own backward pass."""
        if self.plan.input_keep is None:
            return read
        return read.mul_(self.plan.input_keep[t].index_select(0, rows.by_rim)).mul_(self.plan.input_scale)

    def attend(self, step: Step) -> Tensor:
        """With one value: the attention of the active rows on it, ``[N, 1]`` by RIM."""
        assert step.weights is not None
        return step.weights.reshape(-1, 2)[:, 1:].index_select(0, step.rows.by_rim)

    def rows_of(self, weights: Tensor, rows: Rows, per_group: int) -> Tensor:
        """Of ``[B, H, K, S+1]``, those of ``rows``, by group: ``[G * H, P, S+1]``."""
        chosen = weights.transpose(1, 2).flatten(0, 1).flatten(1).index_select(0, rows.by_batch)
        return heads_first(chosen, weights.shape[1], per_group)

    def dynamics(
        self,
        rows: Rows,
        read: Tensor,
        h: Tensor,
        c: Tensor,
        sums: Tensor,
        aside: Tensor,
        scaled: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The next h and c of ``rows`` from what they read and their own state. ``sums [N, gates * D]``
        becomes the gates, ``aside [N, D]`` the tanh of the new c, or a GRU's recurrent part of the new
        gate. ``scaled``: what multiplies the product of what they read, ``[N, 1]``, and where to leave that
        product."""
        ih, hh, pieces = self.by_rim["ih"], self.by_rim["hh"], rows.per_rim(sums)
        if scaled is None:
            grouped(rows.per_rim(read), ih, pieces, biases=self.bias_ih)
            if not self.plan.gru:
                grouped(rows.per_rim(h), hh, pieces, add=True)
        else:
            attention, from_value = scaled
            grouped(rows.per_rim(read), ih, rows.per_rim(from_value))
            if not self.plan.gru:
                grouped(rows.per_rim(h), hh, pieces, biases=self.bias_ih)
                sums.addcmul_(from_value, attention)
            else:
                torch.mul(from_value, attention, out=sums)
                for piece, bias in zip(pieces, self.bias_ih or ()):
                    piece += bias
        if not self.plan.gru:
            return stages.lstm(sums, c, aside)
        from_state = torch.empty_like(sums)
        grouped(rows.per_rim(h), hh, rows.per_rim(from_state), biases=self.bias_hh)
        aside.copy_(from_state[:, 2 * self.rim_size :])
        return stages.gru(sums, from_state, h), c

    def before(self, t: int, h: Tensor) -> Tensor:
        """The state that step t begins with: ``h``, the last step's, but for resets."""
        if self.reset_steps is None or not self.reset_steps[t]:
            return h
        assert self.plan.reset is not None
        return h.view(self.batch, -1).masked_fill(self.plan.reset[t, :, None], 0.0).view_as(h)


def slot_mask(mask: Tensor, private: bool) -> Tensor:
    """``[B, S]`` to what masks scores ``[B, H, K, S]``."""
    return mask[:, None, :, None] if private else mask[:, None, None, :]
