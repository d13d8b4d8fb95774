"""A sequence forwards, into buffers that keep what the backward pass needs.

Shapes as in :mod:`rims.nn.fast.sequence`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rims.nn.fast import stages
from rims.nn.fast.matmul import batched, grouped, product
from rims.nn.fast.memory import empty
from rims.nn.fast.passes import Input, Pass, Plan, Step, Weights, given, slot_mask
from rims.nn.fast.rows import Buffer, Rows, heads_first, heads_last, pick
from rims.nn.selection import select_active


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
            if plan.squash or plan.official:
                self.squashed = rows(size)
                self.buffers.append(self.squashed)
            if plan.gru or plan.official:
                self.opened = rows(size)
                self.buffers.append(self.opened)
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
        rest = self.others(active, t) if plan.official and w.query is not None else None
        if rest is not None:  # all others are heard with candidates
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
            if rest is not None:
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

    def others(self, active: Tensor, t: int) -> Rows | None:
        """The rows that are computed and not active; None if there are none."""
        rows = Rows(~active if self.plan.valid is None else ~active & self.plan.valid[t, :, None])
        return rows if any(rows.counts) else None

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
        if not (plan.squash or plan.official):
            return out
        squashed = stages.tanh_(self.squashed.steps[t].copy_(out))
        if not (plan.gru or plan.official):
            return out.copy_(squashed)  # the caller's own, to add to
        opened = self.opened.steps[t]
        if w.gate is not None and w.gate_bias is not None:
            torch.sigmoid(product(heard, w.gate.t()).add_(w.gate_bias), out=opened)
        else:
            update = self.sums.steps[t][:, self.rim_size : 2 * self.rim_size]
            torch.index_select(1 - update, 0, rows.to_batch, out=opened)
        return squashed * opened
