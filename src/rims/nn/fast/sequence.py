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

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from rims.nn.fast import again
from rims.nn.fast.backward import Backward
from rims.nn.fast.forward import Forward
from rims.nn.fast.native import function as native
from rims.nn.fast.passes import Input, Plan, Weights
from rims.nn.fast.rows import cut
from rims.nn.trace import Trace

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
            x, h0, c0, *tensors, states, source.keys, source.values, *(buffer.base for buffer in buffers)
        )
        if active is not None:
            ctx.mark_non_differentiable(active)
        ctx.set_materialize_grads(False)
        return states, h, c, active, attention, communication

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        x, h0, c0, *rest = ctx.saved_tensors
        if again.wanted(grads):
            inputs = (x, h0, c0, *rest[: ctx.num_weights])
            return None, *again.gradients(ctx.plan.again, inputs, ctx.needs_input_grad[1:], grads)
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


def function_of(plan: Plan, x: Tensor) -> type[torch.autograd.Function]:
    """The sequence as a function: compiled, where that is covered and there is a compiler."""
    return native.NativeFunction if native.covers(plan, x) else SequenceFunction


def run(
    plan: Plan, weights: Weights, x: Tensor, h0: Tensor, c0: Tensor
) -> tuple[Tensor, Tensor, Tensor, Trace | None]:
    """The sequence ``x [T, B, S, I]`` from ``h0, c0 [B, K * D]``: all states ``[T, B, K * D]``, the last h
    and c, and the trace."""
    tensors = weights.tensors()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h0, c0, *tensors)):
        states, h, c, *traces = function_of(plan, x).apply(plan, x, h0, c0, *tensors)
        return states, h, c, None if traces[0] is None else Trace(*traces)
    if native.covers(plan, x):
        return native.run(plan, weights, x, h0, c0)
    forward = Forward(plan, weights, x, h0, keep=False)
    states, h, c, _ = forward.run(x, h0, c0)
    return states, h, c, stack_traces(forward.traces)
