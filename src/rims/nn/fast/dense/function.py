"""The two passes, one operation after another or as an engine runs them, as one differentiable function.

Shapes: see :mod:`rims.nn.fast.dense`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from rims.nn.fast import again
from rims.nn.fast.again import Again
from rims.nn.fast.dense.products import gradients, hoist
from rims.nn.fast.dense.tensors import NUM_DIFFERENTIABLE, Hoisted, Inputs, Loop, Options, Saved


@runtime_checkable
class Engine(Protocol):
    """How the two passes are run: functions of tensors alone, so that they can be captured."""

    def forward(self, o: Options, i: Inputs, keep: bool) -> tuple[Hoisted, Saved]:
        """The forward pass; ``keep`` as in :class:`Loop`."""

    def backward(
        self,
        o: Options,
        i: Inputs,
        hoisted: Hoisted,
        s: Saved,
        want_x: bool,
        dy: Tensor,
        dh: Tensor,
        dc: Tensor,
    ) -> list[Tensor | None]:
        """Gradients of the first ``NUM_DIFFERENTIABLE`` inputs, from those of all states ``[T, B, K, D]`` and
        of the last h and c ``[B, K, D]``."""


class Eager:
    """Both passes, one operation after another, around a loop."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def forward(self, o: Options, i: Inputs, keep: bool) -> tuple[Hoisted, Saved]:
        hoisted = hoist(o, i)
        return hoisted, self.loop.forward(o, i, hoisted.asks, hoisted.reads, keep)

    def backward(
        self,
        o: Options,
        i: Inputs,
        hoisted: Hoisted,
        s: Saved,
        want_x: bool,
        dy: Tensor,
        dh: Tensor,
        dc: Tensor,
    ) -> list[Tensor | None]:
        pieces = self.loop.backward(o, i, hoisted.asks, hoisted.reads, s, dy, dh, dc)
        return gradients(o, i, hoisted, s, pieces, want_x)


class DenseFunction(torch.autograd.Function):
    """The two passes as one function of the inputs."""

    @staticmethod
    def forward(ctx: Any, o: Options, engine: Engine, repeat: Again | None, *tensors: Tensor | None) -> Any:
        i = Inputs(*tensors)  # type: ignore[arg-type]
        hoisted, s = engine.forward(o, i, True)
        ctx.o, ctx.engine, ctx.again = o, engine, repeat
        ctx.save_for_backward(*tensors, *hoisted, *s)
        ctx.mark_non_differentiable(s.active)
        ctx.set_materialize_grads(False)
        return outputs(o, i, s)

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh: Tensor | None, dc: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        split = len(Inputs._fields)
        without = [None] * (split - NUM_DIFFERENTIABLE)
        if again.wanted((dy, dh, dc)):
            needed = ctx.needs_input_grad[3 : 3 + NUM_DIFFERENTIABLE]
            inputs = ctx.saved_tensors[:NUM_DIFFERENTIABLE]
            return None, None, None, *again.gradients(ctx.again, inputs, needed, (dy, dh, dc)), *without
        i = Inputs(*ctx.saved_tensors[:split])
        hoisted = Hoisted(*ctx.saved_tensors[split : split + len(Hoisted._fields)])
        s = Saved(*ctx.saved_tensors[split + len(Hoisted._fields) :])
        shape, last = s.states.shape, s.states[0]
        with torch.autocast(i.x.device.type, enabled=False):
            grads = ctx.engine.backward(
                ctx.o,
                i,
                hoisted,
                s,
                ctx.needs_input_grad[3],
                torch.zeros_like(s.states) if dy is None else dy.reshape(shape),
                torch.zeros_like(last) if dh is None else dh.reshape(shape[1:]),
                torch.zeros_like(last) if dc is None else dc.reshape(shape[1:]),
            )
        return None, None, None, *grads, *without


def outputs(o: Options, i: Inputs, s: Saved) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All states ``[T, B, K * D]``, the last h and c, and who was active."""
    last = o.steps(len(i.x))[-1]
    c_last = i.c0 if o.gru else s.memory[last if len(s.memory) > 1 else 0].flatten(1)
    return s.states.flatten(2), s.states[last].flatten(1).clone(), c_last.clone(), s.active


class Result(NamedTuple):
    """What a run gives."""

    states: Tensor
    """``[T, B, K * D]``."""
    h: Tensor
    c: Tensor
    """The last ones, ``[B, K * D]``."""
    active: Tensor
    """``[T, B, K]``."""
    attention: Tensor | None = None
    """On the input, ``[R, T, B, K]``; as the next, only where no gradients are recorded."""
    hearing: Tensor | None = None
    """``[T, B, H, K, K]``; None without communication."""


def run(o: Options, i: Inputs, engine: Engine, repeat: Again | None = None) -> Result:
    """The sequence, differentiable; as often as one likes, if told how to do it once more."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in i):
        result = Result(*DenseFunction.apply(o, engine, repeat, *i))
    else:
        _, s = engine.forward(o, i, False)
        result = Result(*outputs(o, i, s), s.attention, s.hearing)
    if o.gru:  # passed through
        c = i.c0 if i.reset is None else i.c0.masked_fill(i.reset.any(0)[:, None], 0.0)
        result = result._replace(c=c)
    return result
