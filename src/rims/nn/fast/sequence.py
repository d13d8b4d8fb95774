"""A whole sequence as one differentiable function, with its backward pass through time written by hand.

Forwards: keys and values of all steps by one large product each; then, a step at a time, what depends on the
state, into buffers allocated once. Only active rows move, so only they are multiplied by the dynamics'
weights. Backwards: the same steps in reverse, each turning the gradient of the states after the step into
that of the states before; what the weights' gradients are made of is collected over some steps and multiplied
at once. What is dear to compute again is saved (gates, queries, keys and values), the rest computed again.

Shapes: T time, B batch, K RIMs, D units of a RIM, I input, S slots, H heads, E and V key and value size of a
head, A active RIMs, N active rows of a step; states are ``[B * K, D]``, see :mod:`rims.nn.fast.rows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rims.nn.fast import stages
from rims.nn.fast.matmul import accumulate, batched, grouped, outer, product
from rims.nn.fast.memory import empty, zeros
from rims.nn.fast.rows import Buffer, Rows, cut, heads_first, heads_last, per_rim, pick, put
from rims.nn.selection import select_active
from rims.nn.trace import Trace

COLLECT = 4096
"""Rows collected before weight gradients are formed: enough for a fast product, little memory."""


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


class Forward(Pass):
    """The forward pass; ``saved`` is what the backward pass needs."""

    def __init__(self, plan: Plan, weights: Weights, x: Tensor, h0: Tensor, keep: bool) -> None:
        super().__init__(plan, weights, x, h0)
        w, everywhere = self.weights, [self.batch * plan.num_rims] * self.length
        size, gates = self.rim_size, 3 if plan.gru else 4
        self.keep = keep

        def rows(width: int) -> Buffer:
            return Buffer(self.counts, [width], h0, keep)

        self.sums, self.c_before, self.aside = rows(gates * size), rows(size), rows(size)
        self.buffers = [self.sums, self.c_before, self.aside]
        if self.one_value:
            self.from_value = rows(gates * size)
            self.buffers.append(self.from_value)
        if w.input_query is not None:
            self.asks = Buffer(everywhere, [w.input_query.shape[2]], h0, keep)
            self.buffers.append(self.asks)
        if w.query is not None and w.key is not None and w.value is not None:
            key_size, value_size = w.key.shape[2], w.value.shape[2]
            heads = plan.heads
            by_head = [count // plan.num_active * heads for count in self.counts]
            every = [self.batch * heads] * self.length
            self.told = Buffer(everywhere, [size], h0, keep)
            self.queries = Buffer(by_head, [plan.num_active, key_size // heads], h0, keep)
            self.keys = Buffer(every, [self.num_rims, key_size // heads], h0, keep)
            self.values = Buffer(every, [self.num_rims, value_size // heads], h0, keep)
            self.attention = Buffer(by_head, [plan.num_active, self.num_rims], h0, keep)
            self.heard = rows(value_size)
            self.buffers += [self.told, self.queries, self.keys, self.values, self.attention, self.heard]
            if plan.gru or plan.official:
                self.squashed, self.opened = rows(size), rows(size)
                self.buffers += [self.squashed, self.opened]
            self.scratch = h0.new_empty(everywhere[0], key_size + value_size)
        self.steps: dict[int, Step] = {}
        self.traces: dict[int, tuple[Tensor, Tensor | None, Tensor | None]] = {}

    def run(self, x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor, Input]:
        """All states ``[T, B, K * D]``, the last h and c ``[B, K * D]``, and the projected input."""
        source = self.project_input(x)
        states = empty(h0, self.length, self.batch * self.num_rims, self.rim_size)
        h, c = h0.reshape(states.shape[1:]), c0.reshape(states.shape[1:]).clone()
        for t in self.plan.steps(self.length):
            h, c = self.before(t, h), self.before(t, c)
            self.step(source, t, h, c, states[t])
            h = states[t]
        states = states.view(self.length, self.batch, -1)
        return states, h.view(self.batch, -1).clone(), c.view(self.batch, -1), source

    def step(self, source: Input, t: int, h: Tensor, c: Tensor, after: Tensor) -> None:
        """Step t from ``h`` to ``after`` ``[B * K, D]``, and c in place."""
        plan, w = self.plan, self.weights
        step, active = self.select(source, t, h)
        rows = step.rows
        if self.keep:
            self.steps[t] = step

        scaled = None
        if self.one_value:
            read = self.values_of(source, t, rows)
            scaled = self.attend(step), self.from_value.steps[t]
        else:
            read, _ = self.read(source, t, rows, step)
        c_before = self.c_before.steps[t]
        torch.index_select(c, 0, rows.by_rim, out=c_before)
        h_rows = h.index_select(0, rows.by_rim)
        h_new, c_new = self.dynamics(
            rows, read, h_rows, c_before, self.sums.steps[t], self.aside.steps[t], scaled
        )
        if plan.official and w.query is not None:  # all others are heard with candidates
            rest = self.others(active, t)
            read, _ = self.read(source, t, rest, step)
            sums = read.new_empty(len(read), self.sums.base.shape[1])
            candidates, _ = self.dynamics(
                rest,
                read,
                h.index_select(0, rest.by_rim),
                c.index_select(0, rest.by_rim),
                sums,
                torch.empty_like(sums[:, : self.rim_size]),
            )
        if not plan.gru:
            c.index_copy_(0, rows.by_rim, c_new)

        after.copy_(h)
        if w.query is None:
            after.index_copy_(0, rows.by_rim, h_new)
            attention = None
        else:
            told = self.told.steps[t].copy_(h)
            told.index_copy_(0, rows.by_rim, h_new)
            if plan.official:
                told.index_copy_(0, rest.by_rim, candidates)
            out = self.communicate(t, step, told, h_new)
            after.index_copy_(0, rows.by_batch, out.add_(h_new.index_select(0, rows.to_batch)))
            attention = self.attention.steps[t]
        if plan.return_trace:
            if attention is not None:
                dense = h.new_zeros(len(h), plan.heads * self.num_rims)
                dense.index_copy_(0, rows.by_batch, heads_last(attention, plan.heads))
                attention = dense.view(self.batch, self.num_rims, plan.heads, -1).transpose(1, 2)
            self.traces[t] = (active, step.weights, attention)

    def select(self, source: Input, t: int, h: Tensor) -> tuple[Step, Tensor]:
        """Attend to the input; which rows move."""
        plan, w = self.plan, self.weights
        present = None if plan.valid is None else plan.valid[t].nonzero().squeeze(1)
        weights = scores = None
        if w.input_query is None or source.keys is None:
            penalty = h.new_zeros(self.batch, self.num_rims)
        else:
            asks = self.asks.steps[t]
            batched(h, self.stacked["input_query"], asks)
            per_group = 1 if plan.private else self.num_rims
            scores = torch.bmm(heads_first(asks, plan.input_heads, per_group), source.keys[t].transpose(1, 2))
            scores = scores.view(self.batch, -1, plan.input_heads, per_group, scores.shape[-1])
            scores = scores.transpose(1, 2).flatten(2, 3)
            weights, penalty = plan.choose(scores, self.mask(t))
        active = select_active(penalty, plan.num_active, plan.disabled)
        if plan.valid is not None:
            active = active & plan.valid[t, :, None]
        return Step(Rows(active), present, weights, scores if plan.choose.competition else None), active

    def mask(self, t: int) -> Tensor | None:
        return None if self.plan.mask is None else slot_mask(self.plan.mask[t], self.plan.private)

    def others(self, active: Tensor, t: int) -> Rows:
        return Rows(~active if self.plan.valid is None else ~active & self.plan.valid[t, :, None])

    def communicate(self, t: int, step: Step, told: Tensor, h_new: Tensor) -> Tensor:
        """What the active rows add to their state, ``[N, D]`` by batch element."""
        plan, w, rows = self.plan, self.weights, step.rows
        query, key, value, out_weight = given(w.query, w.key, w.value, w.out)
        batched(told, self.stacked["told"], self.scratch)
        sizes = [key.shape[2], value.shape[2]]
        for flat, buffer in zip(self.scratch.split(sizes, dim=1), (self.keys, self.values)):
            split = flat.view(self.batch, self.num_rims, plan.heads, -1).transpose(1, 2)
            buffer.steps[t].view_as(split).copy_(split)
        flat = h_new.new_empty(len(h_new), query.shape[2])
        grouped(rows.per_rim(h_new), self.by_rim["query"], rows.per_rim(flat))
        queries = self.queries.steps[t]
        flat = flat.index_select(0, rows.to_batch)
        torch.div(heads_first(flat, plan.heads, plan.num_active), math.sqrt(queries.shape[2]), out=queries)
        keys = pick(self.keys.steps[t], plan.heads, step.present)
        values = pick(self.values.steps[t], plan.heads, step.present)
        scores = torch.bmm(queries, keys.transpose(1, 2), out=self.attention.steps[t])
        if plan.disabled is not None:
            scores.masked_fill_(plan.disabled, -torch.inf)
        if plan.topk is not None:
            kept = select_active(-scores.flatten(0, 1), plan.topk).view_as(scores)
            scores.masked_fill_(~kept, -torch.inf)
        attention = stages.softmax_(scores)
        heard, parts = self.heard.steps[t], torch.bmm(attention, values)
        parts = parts.view(-1, plan.heads, *parts.shape[1:]).transpose(1, 2)
        heard.view(parts.shape).copy_(parts)
        out = product(heard, out_weight.t())
        if w.out_bias is not None:
            out += w.out_bias
        if plan.comm_keep is not None:
            out.mul_(plan.comm_keep[t].index_select(0, rows.by_batch)).mul_(plan.comm_scale)
        if not (plan.gru or plan.official):
            return out
        squashed, opened = stages.tanh_(self.squashed.steps[t].copy_(out)), self.opened.steps[t]
        if w.gate is not None and w.gate_bias is not None:
            torch.sigmoid(product(heard, w.gate.t()).add_(w.gate_bias), out=opened)
        else:
            update = self.sums.steps[t][:, self.rim_size : 2 * self.rim_size]
            torch.index_select(1 - update, 0, rows.to_batch, out=opened)
        return squashed * opened


def slot_mask(mask: Tensor, private: bool) -> Tensor:
    """``[B, S]`` to what masks scores ``[B, H, K, S]``."""
    return mask[:, None, :, None] if private else mask[:, None, None, :]


class Collector:
    """Forms the gradients of the RIMs' own weights, ``[K, i, o]`` each, by products over many steps at once.

    ``products``: for each gradient the weight, and the names of what goes in and of the gradient of what
    comes out; ``biases``: the same without the first name; ``more``: other names to collect.
    """

    def __init__(
        self,
        products: dict[str, tuple[Tensor, str, str]],
        biases: dict[str, tuple[Tensor, str]],
        more: Sequence[str] = (),
    ) -> None:
        self.products, self.biases = products, biases
        self.totals = {name: torch.zeros_like(weight) for name, (weight, *_) in products.items()}
        self.totals |= {name: torch.zeros_like(bias) for name, (bias, _) in biases.items()}
        wanted = {name for _, x, dy in products.values() for name in (x, dy)}
        wanted |= {dy for _, dy in biases.values()} | set(more)
        self.pieces: dict[str, list[Sequence[Tensor]]] = {name: [] for name in wanted}

    def add(self, **pieces: Sequence[Tensor]) -> None:
        """Some rows under each name, cut by RIM."""
        for name, by_rim in pieces.items():
            if name in self.pieces:
                self.pieces[name].append(by_rim)

    def flush(self, read_of: Callable[[int, dict[str, Tensor]], Tensor] | None = None) -> None:
        """Add what was collected to the gradients. ``read_of`` makes RIM k's rows named "read" of the
        others."""
        collected = {name: steps for name, steps in self.pieces.items() if steps}
        for k in range(len(next(iter(collected.values()))[0]) if collected else 0):
            rows = {
                name: steps[0][k] if len(steps) == 1 else torch.cat([step[k] for step in steps])
                for name, steps in collected.items()
            }
            if read_of is not None and "index" in rows:
                rows["read"] = read_of(k, rows)
            for name, (_, x, dy) in self.products.items():
                if x in rows:
                    accumulate(self.totals[name][k], rows[x], rows[dy])
            for name, (_, dy) in self.biases.items():
                self.totals[name][k] += rows[dy].sum(0)
        for steps in self.pieces.values():
            steps.clear()


class Backward(Pass):
    """The backward pass over what :class:`Forward` left."""

    def __init__(
        self, plan: Plan, weights: Weights, x: Tensor, h0: Tensor, needed: set[str], forward: dict[str, Any]
    ) -> None:
        super().__init__(plan, weights, x, h0)
        self.needed = needed
        self.source: Input = forward["source"]
        self.states: Tensor = forward["states"]
        self.steps: dict[int, Step] = forward["steps"]
        self.stacked = {name: w.transpose(1, 2).contiguous() for name, w in self.stacked.items()}
        self.transposed = {name: w.unbind(0) for name, w in self.stacked.items()}
        self.saved: dict[str, Sequence[Tensor]] = forward["saved"]
        self.told: Tensor = forward["told"]
        self.asks: Tensor | None = forward["asks"]
        self.h0 = h0
        # Where RIMs that are not active matter to the scores, all rows ask; else those that are active.
        self.all_ask = plan.choose.competition or forward["traced"]
        state_sums = "d_state" if plan.gru else "d_input"
        pairs = {
            "input_query": (weights.input_query, "asking" if self.all_ask else "h", "d_asks"),
            "ih": (weights.ih, "read", "d_input"),
            "hh": (weights.hh, "h", state_sums),
            "query": (weights.query, "h_new", "d_query"),
        }
        sums = {"bias_ih": (weights.bias_ih, "d_input"), "bias_hh": (weights.bias_hh, state_sums)}
        self.chunk = min(self.length, max(1, COLLECT // max(self.counts)))
        products = {n: (w, x, dy) for n, (w, x, dy) in pairs.items() if w is not None and n in needed}
        biases = {n: (w, dy) for n, (w, dy) in sums.items() if w is not None and n in needed}
        self.d_keys = None if self.source.keys is None else zeros(x, self.source.keys.shape)
        self.d_values = zeros(x, self.source.values.shape)
        if weights.key is not None and weights.value is not None:
            size = weights.key.shape[2] + weights.value.shape[2]
            self.d_heard = empty(x, self.chunk, self.batch * self.num_rims, size)
            both = torch.cat([weights.key, weights.value], dim=2)
            if {"key", "value"} & needed:
                products["told"] = (both, "told", "d_told")
        self.d_scores = x.new_zeros(self.chunk if self.one_value else 0, self.batch * self.num_rims, 1)
        """With one value: gradients of the scores in a chunk."""
        more = ("index", "attention", "kept", "d_input") if self.one_value else ()
        self.collect = Collector(products, biases, more)
        self.d_out: list[Tensor] = []
        self.d_gate: list[Tensor] = []

    def run(
        self, dy: Tensor, dh: Tensor, dc: Tensor, d_attention: Tensor | None, d_communication: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of h0 and c0 ``[B, K * D]`` from those of all states, the last h and c, and the
        traces."""
        shape = (self.batch * self.num_rims, self.rim_size)
        dh, dc = dh.reshape(shape).clone(), dc.reshape(shape).clone()
        dy = dy.reshape(self.length, *shape)
        order = self.plan.steps(self.length)
        for position in reversed(range(self.length)):
            t = order[position]
            dh += dy[t]
            h = self.states[order[position - 1]] if position else self.h0
            self.step(
                t,
                self.before(t, h.reshape(shape)),
                dh,
                dc,
                None if d_attention is None else d_attention[t],
                None if d_communication is None else d_communication[t],
            )
            dh, dc = self.before(t, dh), self.before(t, dc)
            if (
                not t % self.chunk
                if not self.plan.reverse
                else t == self.length - 1 or not (t + 1) % self.chunk
            ):
                self.end_chunk(t - t % self.chunk)
        return dh.view(self.batch, -1), dc.view(self.batch, -1)

    def end_chunk(self, start: int) -> None:
        """Weight gradients of the steps from ``start`` to the next multiple of ``chunk``."""
        stop = min(start + self.chunk, self.length)
        if self.weights.key is not None:
            rows = self.batch * self.num_rims
            told = self.told[start * rows : stop * rows]
            self.collect.add(
                told=per_rim(told, self.num_rims),
                d_told=per_rim(self.d_heard[: stop - start].flatten(0, 1), self.num_rims),
            )
        self.collect.flush(self.read_of if self.one_value else None)
        if self.one_value and not self.all_ask:
            rows = 1 if self.plan.private else self.num_rims
            d_keys, asks = given(self.d_keys, self.asks)
            parts = self.d_scores[: stop - start].reshape(-1, 1, rows)
            size, per_step = asks.shape[-1], self.batch * self.num_rims
            asks = asks[start * per_step : stop * per_step].view(-1, rows, size)
            d_keys[start:stop] = torch.bmm(parts, asks).view_as(d_keys[start:stop])
            self.d_scores.zero_()

    def step(
        self,
        t: int,
        h: Tensor,
        dh: Tensor,
        dc: Tensor,
        d_attention: Tensor | None,
        d_communication: Tensor | None,
    ) -> None:
        """From the gradients of the states after step t, ``dh`` and ``dc [B * K, D]``, to those before, in
        place."""
        plan, w, step = self.plan, self.weights, self.steps[t]
        rows = step.rows
        if w.query is None:
            dh_new, d_write = dh.index_select(0, rows.by_rim), None
        else:
            dh_new, d_write = self.communicate(t, step, dh, d_communication)

        h_rows = h.index_select(0, rows.by_rim)
        gates, aside = self.saved["sums"][t], self.saved["aside"][t]
        if plan.gru:
            d_input, d_state, d_rows = stages.gru_backward(gates, aside, h_rows, dh_new, d_write)
        else:
            c = self.saved["c_before"][t]
            dc_new = dc.index_select(0, rows.by_rim)
            d_input, dc_new = stages.lstm_backward(gates, c, aside, dh_new, dc_new)
            d_state, d_rows = d_input, torch.empty_like(h_rows)
            dc.index_copy_(0, rows.by_rim, dc_new)
        d_state_by_rim = rows.per_rim(d_state)
        grouped(d_state_by_rim, self.transposed["hh"], rows.per_rim(d_rows), add=plan.gru)

        self.collect.add(h=rows.per_rim(h_rows), d_input=rows.per_rim(d_input), d_state=d_state_by_rim)
        d_asks = None
        if self.one_value:
            d_asks = self.attend_backward(t, step, d_input, d_attention)
        else:
            read, attention = self.read(self.source, t, rows, step)
            self.collect.add(read=rows.per_rim(read))
            if attention is not None or "x" in self.needed:
                d_read = torch.empty_like(read)
                grouped(rows.per_rim(d_input), self.transposed["ih"], rows.per_rim(d_read))
                d_asks = self.read_backward(t, step, attention, self.drop(d_read, t, rows), d_attention)
        if d_asks is None:
            dh.index_copy_(0, rows.by_rim, d_rows)
        elif self.all_ask:
            dh.index_copy_(0, rows.by_rim, d_rows)
            batched(d_asks, self.stacked["input_query"], dh, add=True)
            self.collect.add(asking=per_rim(h, self.num_rims), d_asks=per_rim(d_asks, self.num_rims))
        else:
            pieces = rows.per_rim(d_asks)
            grouped(pieces, self.transposed["input_query"], rows.per_rim(d_rows), add=True)
            self.collect.add(d_asks=pieces)
            dh.index_copy_(0, rows.by_rim, d_rows)

    def communicate(
        self, t: int, step: Step, dh: Tensor, d_communication: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of what the dynamics made: of the active rows' h, ``[N, D]`` by RIM, and of how far a
        GRU's update gate is open for what is heard. Adds to ``dh`` what comes from RIMs that were heard with
        the state they keep."""
        plan, w, rows = self.plan, self.weights, step.rows
        key, value, out = given(w.key, w.value, w.out)
        d_out = dh.index_select(0, rows.by_batch)
        d_gate = d_write = None
        if plan.gru or plan.official:
            squashed, opened = self.saved["squashed"][t], self.saved["opened"][t]
            d_opened = d_out * squashed
            d_out = torch.ops.aten.tanh_backward(d_out.mul_(opened), squashed)
            if w.gate is None:
                d_write = d_opened.index_select(0, rows.to_rim)
            else:
                d_gate = torch.ops.aten.sigmoid_backward(d_opened, opened)
        if plan.comm_keep is not None:
            d_out = (d_out * plan.comm_keep[t].index_select(0, rows.by_batch)).mul_(plan.comm_scale)
        d_heard = product(d_out, out)
        self.d_out.append(d_out)
        if d_gate is not None and w.gate is not None:
            d_heard += product(d_gate, w.gate)
            self.d_gate.append(d_gate)

        d_heard = heads_first(d_heard, plan.heads, plan.num_active)
        queries, attention = self.saved["queries"][t], self.saved["attention"][t]
        keys = pick(self.saved["keys"][t], plan.heads, step.present)
        values = pick(self.saved["values"][t], plan.heads, step.present)
        d_values = torch.bmm(attention.transpose(1, 2), d_heard)
        d_attention = torch.bmm(d_heard, values.transpose(1, 2))
        if d_communication is not None:
            dense = d_communication.transpose(1, 2).reshape(-1, plan.heads * self.num_rims)
            d_attention += heads_first(dense.index_select(0, rows.by_batch), plan.heads, plan.num_active)
        d_scores = stages.softmax_backward(attention, d_attention)
        d_keys = torch.bmm(d_scores.transpose(1, 2), queries)
        d_queries = torch.bmm(d_scores, keys).div_(math.sqrt(keys.shape[2]))
        d_query = heads_last(d_queries, plan.heads).index_select(0, rows.to_rim)

        d_flat = self.d_heard[t % self.chunk]
        sizes = [key.shape[2], value.shape[2]]
        for flat, d_parts in zip(d_flat.split(sizes, dim=1), (d_keys, d_values)):
            split = flat.view(self.batch, self.num_rims, plan.heads, -1).transpose(1, 2)
            if step.present is None:
                split.copy_(d_parts.view_as(split))
            else:
                split.zero_().index_copy_(0, step.present, d_parts.unflatten(0, (-1, plan.heads)))
        if plan.official:  # no gradient reaches the candidates of those that are not active
            d_told = torch.empty_like(dh)
            batched(d_flat, self.stacked["told"], d_told)
            dh_new = dh.index_select(0, rows.by_rim).add_(d_told.index_select(0, rows.by_rim))
        else:
            batched(d_flat, self.stacked["told"], dh, add=True)
            dh_new = dh.index_select(0, rows.by_rim)
        pieces = rows.per_rim(d_query)
        grouped(pieces, self.transposed["query"], rows.per_rim(dh_new), add=True)
        h_new = self.saved["told"][t].index_select(0, rows.by_rim)
        self.collect.add(h_new=rows.per_rim(h_new), d_query=pieces)
        return dh_new, d_write

    def read_backward(
        self, t: int, step: Step, attention: Tensor | None, d_read: Tensor, d_weights: Tensor | None
    ) -> Tensor | None:
        """From the gradient of what the active rows read, ``[N, H * V]`` by RIM, to that of the queries: of
        all rows, or of the active ones by RIM. None without attention. Notes those of keys and values."""
        rows, heads = step.rows, self.plan.input_heads
        groups = self.groups(rows, step.present)
        d_read = heads_first(d_read.index_select(0, rows.to_batch), heads, self.group)
        if attention is None or step.weights is None:
            put(self.d_values[t], heads, groups, d_read.sum(1, keepdim=True))
            return None
        all_keys, d_keys = given(self.source.keys, self.d_keys)
        values = pick(self.source.values[t], heads, groups)
        put(self.d_values[t], heads, groups, torch.bmm(attention.transpose(1, 2), d_read))
        d_slots = torch.bmm(d_read, values.transpose(1, 2))
        asks, slots = self.saved["asks"][t], d_slots.shape[2]
        if not self.all_ask:
            weights = self.rows_of(step.weights, rows, self.group)
            d_scores = stages.softmax_backward(weights, torch.nn.functional.pad(d_slots, (1, 0)))[..., 1:]
            asks = heads_first(asks.index_select(0, rows.by_batch), heads, self.group)
            keys = pick(all_keys[t], heads, groups)
            put(d_keys[t], heads, groups, torch.bmm(d_scores.transpose(1, 2), asks))
            return heads_last(torch.bmm(d_scores, keys), heads).index_select(0, rows.to_rim)
        d_slots = heads_last(d_slots, heads).view(-1, heads, slots)
        return self.scores_backward(t, step, rows.by_batch, d_slots, d_weights)

    def scores_backward(
        self, t: int, step: Step, where: Tensor, d_slots: Tensor, d_weights: Tensor | None
    ) -> Tensor:
        """From the gradient of the attention of the rows ``where`` on the slots, ``[N, H, S]``, to that of
        the queries of all rows. Notes that of the keys."""
        plan, heads, asks = self.plan, self.plan.input_heads, self.saved["asks"][t]
        assert step.weights is not None
        all_keys, d_keys = given(self.source.keys, self.d_keys)
        dense = asks.new_zeros(len(asks), heads, 1 + d_slots.shape[2])
        dense[:, :, 1:].index_copy_(0, where, d_slots)
        dense = dense.view(self.batch, self.num_rims, heads, -1).transpose(1, 2)
        if d_weights is not None:
            dense = dense + d_weights
        mask = None if plan.mask is None else slot_mask(plan.mask[t], plan.private)
        d_scores = plan.choose.backward(step.scores, mask, step.weights, dense)
        per_group = 1 if plan.private else self.num_rims
        d_scores = heads_first(d_scores.transpose(1, 2).flatten(0, 1).flatten(1), heads, per_group)
        asks = heads_first(asks, heads, per_group)
        d_keys[t] = torch.bmm(d_scores.transpose(1, 2), asks)
        return heads_last(torch.bmm(d_scores, all_keys[t]), heads)

    def attend_backward(self, t: int, step: Step, d_input: Tensor, d_weights: Tensor | None) -> Tensor:
        """The same with one value, from the gradient of the dynamics' sums. The value's own gradient waits
        for :meth:`end_chunk`."""
        plan, rows = self.plan, step.rows
        attention, index = self.attend(step), self.value_rows(t, rows)
        per_rim = rows.per_rim
        self.collect.add(index=per_rim(index), attention=per_rim(attention))
        if plan.input_keep is not None:
            kept = plan.input_keep[t].index_select(0, rows.by_rim).to(d_input.dtype)
            self.collect.add(kept=per_rim(kept.mul_(plan.input_scale)))
        d_slots = (d_input * self.saved["from_value"][t]).sum(1, keepdim=True)
        if self.all_ask:
            return self.scores_backward(t, step, rows.by_rim, d_slots[:, :, None], d_weights)
        d_scores = d_slots.mul_(attention).mul_(1 - attention)
        self.d_scores[t % self.chunk].index_copy_(0, rows.by_rim, d_scores)
        (keys,) = given(self.source.keys)
        return keys.view(-1, keys.shape[-1]).index_select(0, index).mul_(d_scores)

    def read_of(self, k: int, rows: dict[str, Tensor]) -> Tensor:
        """With one value: what RIM k's rows of a chunk read. Adds the gradient of the values."""
        values = self.source.values.view(-1, self.source.values.shape[-1])
        index, attention = rows["index"], rows["attention"]
        if {"x", "input_value"} & self.needed:
            d_values = self.d_values.view_as(values)
            d_read = product(rows["d_input"], self.transposed["ih"][k])
            if "kept" in rows:
                d_read.mul_(rows["kept"])
            # A RIM is active at most once at each place, so nothing is lost between reading and writing.
            d_values.index_copy_(0, index, d_values.index_select(0, index).addcmul_(d_read, attention))
        read = values.index_select(0, index).mul_(attention)
        return read.mul_(rows["kept"]) if "kept" in rows else read

    def gradients(self, x: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Those of x and, by name, of the weights."""
        w, heads = self.weights, self.plan.input_heads
        grads = self.collect.totals
        if w.key is not None and "told" in grads:
            grads["key"], grads["value"] = grads.pop("told").tensor_split([w.key.shape[2]], dim=2)
        d_values = heads_last(self.d_values.flatten(0, 1), heads)
        if self.d_keys is None:
            return d_values.view_as(x), self.out_gradients(grads)
        d_keys = heads_last(self.d_keys.flatten(0, 1), heads)
        d_keys /= math.sqrt(self.d_keys.shape[-1])
        input_key, input_value = given(w.input_key, w.input_value)
        flat = x.reshape(-1, self.input_size)
        if "input_key" in self.needed:
            grads["input_key"] = outer(flat, d_keys)
        if "input_value" in self.needed:
            grads["input_value"] = outer(flat, d_values)
        dx = None
        if "x" in self.needed:
            dx = product(d_values, input_value.t())
            grouped([d_keys], [input_key.t()], [dx], add=True)
            dx = dx.view_as(x)
        return dx, self.out_gradients(grads)

    def out_gradients(self, grads: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds those of the projections that all RIMs share."""
        if self.d_out:
            order = list(self.plan.steps(self.length))[::-1]
            heard = torch.cat([self.saved["heard"][t] for t in order])
            for name, steps in (("out", self.d_out), ("gate", self.d_gate)):
                if steps and {name, f"{name}_bias"} & self.needed:
                    gradient = torch.cat(steps)
                    grads[name] = outer(gradient, heard)
                    grads[f"{name}_bias"] = gradient.sum(0)
        return grads


SAVED = (
    *("sums", "from_value", "c_before", "aside", "asks"),
    *("told", "queries", "keys", "values", "attention", "heard", "squashed", "opened"),
)


class SequenceFunction(torch.autograd.Function):
    """The two passes as one function of x, h0, c0 and the weights."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, x: Tensor, h0: Tensor, c0: Tensor, *tensors: Tensor | None) -> Any:
        run = Forward(plan, Weights(*tensors), x, h0, keep=True)
        states, h, c, source = run.run(x, h0, c0)
        active, attention, communication = stack_traces(run.traces) or (None, None, None)
        names = [name for name in SAVED if hasattr(run, name)]
        buffers = [getattr(run, name) for name in names]
        ctx.plan, ctx.steps, ctx.names = plan, run.steps, names
        ctx.counts = [buffer.counts for buffer in buffers]
        ctx.num_weights = len(tensors)
        ctx.save_for_backward(
            x, h0, *tensors, states, source.keys, source.values, *(buffer.base for buffer in buffers)
        )
        if active is not None:
            ctx.mark_non_differentiable(active)
        ctx.set_materialize_grads(False)
        return states, h, c, active, attention, communication

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        x, h0, *rest = ctx.saved_tensors
        weights, (states, keys, values, *buffers) = Weights(*rest[: ctx.num_weights]), rest[ctx.num_weights :]
        dy, dh, dc, _, d_attention, d_communication = grads
        names = ["plan", "x", "h", "c", *(field.name for field in fields(Weights))]
        needed = {name for name, wanted in zip(names, ctx.needs_input_grad) if wanted}
        forward = {
            "source": Input(keys, values),
            "states": states,
            "steps": ctx.steps,
            "saved": {n: cut(b, c) for n, b, c in zip(ctx.names, buffers, ctx.counts)},
            **{n: buffers[ctx.names.index(n)] if n in ctx.names else None for n in ("told", "asks")},
            "traced": d_attention is not None,
        }
        zeros = torch.zeros_like(h0)
        with torch.autocast(x.device.type, enabled=False):  # backward() may be called under it
            run = Backward(ctx.plan, weights, x, h0, needed, forward)
            dh0, dc0 = run.run(
                torch.zeros_like(states) if dy is None else dy,
                zeros if dh is None else dh,
                zeros if dc is None else dc,
                d_attention,
                d_communication,
            )
            dx, by_name = run.gradients(x)
        return None, dx, dh0, dc0, *(by_name.get(name) for name in names[4:])


def stack_traces(traces: dict[int, tuple[Tensor, Tensor | None, Tensor | None]]) -> Trace | None:
    """Steps to one trace, in the order of time; None of none."""
    if not traces:
        return None
    steps = zip(*(traces[t] for t in range(len(traces))))
    active, *attention = (None if parts[0] is None else torch.stack(parts) for parts in steps)
    assert active is not None
    return Trace(active, *attention)


def run(
    plan: Plan, weights: Weights, x: Tensor, h0: Tensor, c0: Tensor
) -> tuple[Tensor, Tensor, Tensor, Trace | None]:
    """The sequence ``x [T, B, S, I]`` from ``h0, c0 [B, K * D]``: all states ``[T, B, K * D]``, the last h
    and c, and the trace."""
    tensors = weights.tensors()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h0, c0, *tensors)):
        states, h, c, *traces = SequenceFunction.apply(plan, x, h0, c0, *tensors)
        return states, h, c, None if traces[0] is None else Trace(*traces)
    forward = Forward(plan, weights, x, h0, keep=False)
    states, h, c, _ = forward.run(x, h0, c0)
    return states, h, c, stack_traces(forward.traces)
