"""A sequence backwards: gradients of the states a step at a time, those of the weights a chunk at a time.

Shapes as in :mod:`rims.nn.fast.sequence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rims.nn.fast import stages
from rims.nn.fast.matmul import accumulate, batched, grouped, outer, product
from rims.nn.fast.memory import empty, zeros
from rims.nn.fast.passes import Input, Pass, Plan, Step, Weights, given, slot_mask
from rims.nn.fast.rows import heads_first, heads_last, per_rim, pick, put

COLLECT = 4096
"""Rows collected before weight gradients are formed: enough for a fast product, little memory."""


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
        if plan.squash or plan.official:
            squashed = self.saved["squashed"][t]
            if plan.gru or plan.official:
                opened = self.saved["opened"][t]
                d_opened = d_out * squashed
                d_out.mul_(opened)
            d_out = torch.ops.aten.tanh_backward(d_out, squashed)
        if plan.gru or plan.official:
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
