"""The fast sequence inside torch.compile, as an operator that the compiler does not look into.

Traced, a sequence would be unrolled: a graph of T times some fifty operations, minutes to compile, slower
than the passes written by hand. As an operator it is one node, forwards and backwards. What the backward pass
needs stays outside the graph, in :data:`KEPT`, under a number that the graph hands from one to the other; it
is let go with the tensor that holds the number.

Shapes as in :mod:`rims.nn.fast.sequence`.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rims.nn.cell import RIMCell
from rims.nn.fast.dispatch import finish, obstacle, prepare
from rims.nn.fast.passes import Plan, Weights
from rims.nn.fast.sequence import function_of, run
from rims.nn.fast.stages import Chooser
from rims.nn.sequence import PLAIN, How
from rims.nn.trace import Trace

KEPT: dict[int, SimpleNamespace] = {}
"""What forward passes have left for their backward passes."""
numbers = itertools.count()

MASKS = ("reset", "mask", "valid", "input_keep", "comm_keep")


def applies(cell: RIMCell, x: Tensor, h: Tensor, c: Tensor, how: How) -> bool:
    """Whether this call, under torch.compile, goes through the operator. A single step does not: the compiler
    makes of it what no operator is, one loop."""
    return (
        torch.compiler.is_dynamo_compiling()
        and not torch.compiler.is_exporting()
        and x.device.type == "cpu"
        and len(x) > 1
        and cell.selection == "null"  # competition calls autograd inside, which an operator cannot
        and how.disabled is None
        and not how.return_trace
        and not torch.is_autocast_enabled("cpu")
        and obstacle(cell, x, h, c) is None
    )


def run_sequence(
    cell: RIMCell, x: Tensor, h: Float[Tensor, "B H"], c: Float[Tensor, "B H"], how: How = PLAIN
) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "B H"], Float[Tensor, "B H"], Trace | None]:
    """As :func:`rims.nn.sequence.run_cell`."""
    plan, x = prepare(cell, x, how)
    weights = Weights.of(cell).tensors()
    masks = [getattr(plan, name) for name in MASKS]
    y, h_last, c_last, _ = sequence(
        x,
        h,
        c,
        [w for w in weights if w is not None],
        [m for m in masks if m is not None],
        [w is not None for w in weights] + [m is not None for m in masks],
        numbers_of(plan),
        [plan.input_scale, plan.comm_scale],
        torch.is_grad_enabled(),
    )
    return *finish(plan, y, h_last, c_last, c), None


def numbers_of(plan: Plan) -> list[int]:
    """A plan but for its tensors and scales."""
    return [
        plan.num_rims,
        plan.num_active,
        int(plan.gru),
        int(plan.squash),
        int(plan.official),
        int(plan.private),
        plan.input_heads,
        plan.heads,
        plan.topk or 0,
        int(plan.reverse),
    ]


def plan_of(
    values: Sequence[int], scales: Sequence[float], masks: Sequence[Tensor | None], like: Tensor
) -> Plan:
    """The reverse of :func:`numbers_of`."""
    num_rims, num_active, gru, squash, official, private, input_heads, heads, topk, reverse = values
    given: dict[str, Any] = dict(zip(MASKS, masks))
    return Plan(
        num_rims=num_rims,
        num_active=num_active,
        gru=bool(gru),
        squash=bool(squash),
        official=bool(official),
        private=bool(private),
        choose=Chooser(False, num_active, None),
        input_heads=input_heads,
        heads=heads,
        topk=topk or None,
        reverse=bool(reverse),
        return_trace=False,
        product_dtype=like.dtype,
        input_scale=scales[0],
        comm_scale=scales[1],
        **given,
    )


# Schemas are written out because run-time shape checks (the tests') hide the annotations.
@torch.library.custom_op(
    "rims::sequence",
    mutates_args=(),
    schema="(Tensor x, Tensor h, Tensor c, Tensor[] weights, Tensor[] masks, bool[] present, int[] values, "
    "float[] scales, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
)
def sequence(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    present: Sequence[bool],
    values: Sequence[int],
    scales: Sequence[float],
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All states, the last h and c, and the number under which the backward pass finds the rest.

    ``present`` says which of a cell's weights and of :data:`MASKS` are given.
    """
    given = iter([*weights, *masks])
    tensors = [next(given) if there else None for there in present]
    count = len(fields(Weights))
    plan = plan_of(values, scales, tensors[count:], h)
    number = next(numbers)
    handle = torch.tensor(number)
    if keep:
        context = Context(function=function_of(plan, x))
        y, h_last, c_last, *_ = context.function.forward(context, plan, x, h, c, *tensors[:count])
        KEPT[number] = context
        weakref.finalize(handle, KEPT.pop, number, None)
    else:
        y, h_last, c_last, _ = run(plan, Weights(*tensors[:count]), x, h, c)
    return y, h_last, c_last, handle


class Context(SimpleNamespace):
    """What autograd would give ``function`` to keep things in."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        pass

    def set_materialize_grads(self, value: bool) -> None:
        pass


@sequence.register_fake
def _(x: Tensor, h: Tensor, c: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = h.new_empty(x.shape[0], *h.shape)
    return y, h.new_empty(h.shape), c.new_empty(c.shape), torch.empty((), dtype=torch.int64)


@torch.library.custom_op(
    "rims::sequence_backward",
    mutates_args=(),
    schema="(Tensor handle, Tensor dy, Tensor dh, Tensor dc, Tensor[] inputs, bool[] present, bool[] needed) "
    "-> Tensor[]",
)
def sequence_backward(
    handle: Tensor,
    dy: Tensor,
    dh: Tensor,
    dc: Tensor,
    inputs: Sequence[Tensor],
    present: Sequence[bool],
    needed: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x, h, c and the weights that are there, of those that are ``needed``."""
    context = KEPT[int(handle)]
    there = [True, True, True, *present[: len(fields(Weights))]]
    wanted = iter(needed)
    context.needs_input_grad = [False, *(next(wanted) if given else False for given in there)]
    with torch.no_grad():
        _, *found = context.function.backward(context, dy, dh, dc, None, None, None)
    gradients = [g for g, given in zip(found, there) if given]
    result, seen = [], set()
    for gradient, tensor, want in zip(gradients, inputs, needed):
        if not want:
            continue
        if gradient is None:
            gradient = torch.zeros_like(tensor)
        elif gradient.data_ptr() in seen or not gradient.is_contiguous():
            gradient = gradient.clone(
                memory_format=torch.contiguous_format
            )  # an operator's results share nothing
        seen.add(gradient.data_ptr())
        result.append(gradient)
    return result


@sequence_backward.register_fake
def _(
    handle: Tensor, dy: Tensor, dh: Tensor, dc: Tensor, inputs: Any, present: Any, needed: Any
) -> list[Tensor]:
    return [t.new_empty(t.shape) for t, want in zip(inputs, needed) if want]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, h, c, weights, *others = inputs
    ctx.save_for_backward(output[3], x, h, c, *weights)
    ctx.present = list(others[1])
    ctx.nothing = [[None] * len(others[0]), *[None] * (len(others) - 1)]  # a gradient for each mask, too


def _backward(ctx: Any, dy: Tensor, dh: Tensor, dc: Tensor, _: Any) -> Any:
    handle, *inputs = ctx.saved_tensors
    x, h, c, weights, *_ = ctx.needs_input_grad
    needed = [x, h, c, *(weights if isinstance(weights, (list, tuple)) else [weights] * (len(inputs) - 3))]
    found = iter(sequence_backward(handle, dy, dh, dc, inputs, ctx.present, needed))
    dx, dh0, dc0, *d_weights = [next(found) if want else None for want in needed]
    return dx, dh0, dc0, d_weights, *ctx.nothing


sequence.register_autograd(_backward, setup_context=_setup)
