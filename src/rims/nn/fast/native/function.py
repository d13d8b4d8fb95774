"""A whole sequence by the compiled passes, as one differentiable function: what :mod:`rims.nn.fast.sequence`
is of torch operations, without the cost of starting those.

Products over all steps at once (keys and values of the input, and their gradients) are torch's; the loop over
time is one call for some of the batch rows, on a thread of its own where there are several.

Shapes as in :mod:`rims.nn.fast.sequence`.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rims.nn.fast import again
from rims.nn.fast.matmul import outer, product
from rims.nn.fast.memory import empty
from rims.nn.fast.native.build import library
from rims.nn.fast.native.layout import Sequence
from rims.nn.fast.passes import Plan, Weights, given
from rims.nn.trace import Trace

THREAD_ROWS = 8
"""Rows that are worth a thread."""
ROWS = torch.contiguous_format
COLLECT = 128
"""Rows that are collected, at most, before a weight's gradient grows by one product."""
COLLECT_NUMBERS = 1 << 21
"""What such rows of all RIMs may take together, to stay in the processor's cache."""

SUMMED = ("d_ask", "d_ih", "d_hh", "d_ih_bias", "d_hh_bias", "d_told", "d_query", "d_out", "d_out_bias")
"""Gradients that each thread sums up for itself."""


class Shape(NamedTuple):
    """The sizes of a call, by their names in :mod:`rims.nn.fast.native.layout`."""

    steps: int
    batch: int
    rims: int
    active_rims: int
    rim_size: int
    gates: int
    heads: int
    key_size: int
    value_size: int
    comm_heads: int
    comm_key_size: int
    comm_value_size: int

    @property
    def read(self) -> int:
        """What a RIM reads of the input."""
        return self.heads * self.value_size

    @property
    def told(self) -> int:
        """Keys and values of a RIM."""
        return self.comm_heads * (self.comm_key_size + self.comm_value_size)


def covers(plan: Plan, x: Tensor) -> bool:
    """Whether the compiled passes compute this; the rest runs as torch operations."""
    return (
        not (plan.official or plan.choose.competition)
        and plan.topk is None
        and plan.mask is None
        and (plan.private or x.shape[2] == 1)
        and plan.product_dtype == x.dtype
        and library() is not None
    )


def shape_of(plan: Plan, w: Weights, x: Tensor) -> Shape:
    ih, hh = given(w.ih, w.hh)
    comm_key = 0 if w.key is None else w.key.shape[2] // plan.heads
    comm_value = 0 if w.value is None else w.value.shape[2] // plan.heads
    return Shape(
        steps=x.shape[0],
        batch=x.shape[1],
        rims=hh.shape[0],
        active_rims=plan.num_active,
        rim_size=hh.shape[1],
        gates=hh.shape[2] // hh.shape[1],
        heads=plan.input_heads,
        key_size=0 if w.input_key is None else w.input_key.shape[1] // plan.input_heads,
        value_size=ih.shape[1] // plan.input_heads,
        comm_heads=0 if w.key is None else plan.heads,
        comm_key_size=comm_key,
        comm_value_size=comm_value,
    )


def run(
    plan: Plan, weights: Weights, x: Tensor, h0: Tensor, c0: Tensor
) -> tuple[Tensor, Tensor, Tensor, Trace | None]:
    """The sequence without gradients: all states, the last h and c, and the trace."""
    shape, keep = shape_of(plan, weights, x), plan.return_trace
    states, h, c, kept = forward(plan, weights, shape, x, h0, c0, keep=keep)
    return states, h, c, trace_of(plan, shape, kept) if keep else None


class NativeFunction(torch.autograd.Function):
    """The two passes as one function of x, h0, c0 and the weights; also gives the parts of a trace."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, x: Tensor, h0: Tensor, c0: Tensor, *tensors: Tensor | None) -> Any:
        weights = Weights(*tensors)
        shape = shape_of(plan, weights, x)
        states, h, c, kept = forward(plan, weights, shape, x, h0, c0, keep=True)
        trace = trace_of(plan, shape, kept) if plan.return_trace else (None, None, None)
        ctx.plan, ctx.shape, ctx.names, ctx.num_weights = plan, shape, [*kept], len(tensors)
        ctx.save_for_backward(x, h0, c0, *tensors, states, *kept.values())
        if trace[0] is not None:
            ctx.mark_non_differentiable(trace[0])
        ctx.set_materialize_grads(False)
        return states, h, c, *trace

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        x, h0, c0, *rest = ctx.saved_tensors
        if again.wanted(grads):
            inputs = (x, h0, c0, *rest[: ctx.num_weights])
            return None, *again.gradients(ctx.plan.again, inputs, ctx.needs_input_grad[1:], grads)
        weights = Weights(*rest[: ctx.num_weights])
        states, *kept = rest[ctx.num_weights :]
        saved = dict(zip(ctx.names, kept))
        dy, dh, dc, _, *traced = grads
        with torch.autocast(x.device.type, enabled=False):  # backward() may be called under it
            d_values, d_keys, dh0, dc0, by_name = backward(
                ctx.plan, weights, ctx.shape, h0, states, saved, dy, dh, dc, *traced
            )
            by_name |= input_gradients(weights, x, d_values, d_keys)
            dx = x_gradient(weights, d_values, d_keys).view_as(x) if ctx.needs_input_grad[1] else None
        return None, dx, dh0, dc0, *(by_name.get(field.name) for field in fields(Weights))


def forward(
    plan: Plan, w: Weights, s: Shape, x: Tensor, h0: Tensor, c0: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """All states ``[T, B, K * D]``, the last h and c ``[B, K * D]``, and what the backward pass needs."""
    rows = s.steps * s.batch if keep else s.batch
    kept = {
        "active": torch.empty(rows, s.active_rims, dtype=torch.int32),
        **{name: empty(h0, rows, *sizes) for name, sizes in saved_shapes(plan.squash, s).items()},
    }
    if plan.return_trace:
        kept["all_attention"] = h0.new_zeros(rows, s.rims, s.heads)
    kept["keys"], kept["values"] = project_input(plan, w, x)
    states, c = empty(h0, s.steps, s.batch, s.rims * s.rim_size), c0.clone(memory_format=ROWS)
    ih, hh = given(w.ih, w.hh)
    bias = w.bias_ih
    if not plan.gru and w.bias_ih is not None and w.bias_hh is not None:
        bias = w.bias_ih + w.bias_hh
    matrices = {"ask_weight": w.input_query, "ih_weight": ih, "hh_weight": hh, "query_weight": w.query}
    if w.key is not None and w.value is not None and w.out is not None:
        matrices["out_weight"] = w.out.t()[None]
        matrices["told_weight"] = torch.cat([w.key, w.value], dim=2)
    call(
        *("forward", plan, s),
        {
            **{name: None if matrix is None else panels(matrix) for name, matrix in matrices.items()},
            "ih_bias": bias,
            "hh_bias": w.bias_hh,
            "out_bias": w.out_bias,
            "h0": h0,
            "states": states,
            "c": c,
            **kept,
        },
        keep=keep,
    )
    return states, states[0 if plan.reverse else -1].clone(), c, kept


def backward(
    plan: Plan,
    w: Weights,
    s: Shape,
    h0: Tensor,
    states: Tensor,
    kept: dict[str, Tensor],
    dy: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    d_attention: Tensor | None,
    d_communication: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor | None]]:
    """Gradients of the input's values and keys (before scaling), of h0, c0 and, by name, of the weights that
    the loop over time uses."""
    dh, dc = (torch.zeros_like(h0) if part is None else part.clone(memory_format=ROWS) for part in (dh, dc))
    parts = threads(s)

    def sums(*sizes: int) -> Tensor:
        return h0.new_zeros(parts, *sizes)

    ih, hh = given(w.ih, w.hh)
    total: dict[str, Tensor] = {"d_ih": sums(*ih.shape), "d_hh": sums(*hh.shape)}
    if w.bias_ih is not None and w.bias_hh is not None:
        total |= {"d_ih_bias": sums(*w.bias_ih.shape), "d_hh_bias": sums(*w.bias_hh.shape)}
    turned = {"ih_weight": ih, "hh_weight": hh, "ask_weight": w.input_query, "query_weight": w.query}
    matrices = {name: panels(matrix.transpose(1, 2)) for name, matrix in turned.items() if matrix is not None}
    if w.input_query is not None:
        total["d_ask"] = sums(*w.input_query.shape)
    if w.query is not None and w.key is not None and w.value is not None and w.out is not None:
        both = torch.cat([w.key, w.value], dim=2)
        matrices |= {"told_weight": panels(both.transpose(1, 2)), "out_weight": panels(w.out[None])}
        total |= {"d_told": sums(*both.shape), "d_query": sums(*w.query.shape)}
        total |= {"d_out": sums(*w.out.shape), "d_out_bias": sums(s.rim_size)}
    d_keys, d_values = torch.zeros_like(kept["keys"]), torch.zeros_like(kept["values"])
    call(
        *("backward", plan, s),
        {
            "h0": h0,
            "states": states,
            **kept,
            **matrices,
            **total,
            "dy": dy,
            "dh": dh,
            "dc": dc,
            "d_keys": d_keys,
            "d_values": d_values,
            "attention_grad": d_attention,
            "communication_grad": d_communication,
        },
        keep=True,
        parts=parts,
    )
    summed = {name[2:]: part[0] if parts == 1 else part.sum(0) for name, part in total.items()}
    grads: dict[str, Tensor | None] = {
        name: summed.get(name) for name in ("ih", "hh", "query", "out", "out_bias")
    }
    grads["bias_ih"] = summed.get("ih_bias")
    grads["bias_hh"] = summed.get("hh_bias" if plan.gru else "ih_bias")
    grads["input_query"] = summed.get("ask")
    if w.key is not None:
        grads["key"], grads["value"] = summed["told"].tensor_split([w.key.shape[2]], dim=2)
    d_keys /= math.sqrt(max(s.key_size, 1))
    return d_values, d_keys, dh, dc, grads


def input_gradients(w: Weights, x: Tensor, d_values: Tensor, d_keys: Tensor) -> dict[str, Tensor | None]:
    """Those of the weights that make keys and values of the input."""
    if w.input_key is None or w.input_value is None:
        return {}
    flat = x.reshape(-1, x.shape[-1])
    return {"input_key": outer(flat, d_keys), "input_value": outer(flat, d_values)}


def x_gradient(w: Weights, d_values: Tensor, d_keys: Tensor) -> Tensor:
    """That of the input, ``[T * B * G, I]``."""
    if w.input_key is None or w.input_value is None:
        return d_values
    return product(d_values, w.input_value.t()).addmm_(d_keys, w.input_key.t())


def saved_shapes(squash: bool, s: Shape) -> dict[str, tuple[int, ...]]:
    """What the forward pass makes of each step and row."""
    shapes: dict[str, tuple[int, ...]] = {
        "attention": (s.active_rims, s.heads),
        "asks": (s.rims, s.heads * s.key_size),
        "sums": (s.active_rims, s.gates * s.rim_size),
        "aside": (s.active_rims, s.rim_size),
        "fresh": (s.active_rims, s.rim_size),
        "told": (s.rims, s.told),
        "queries": (s.active_rims, s.comm_heads * s.comm_key_size),
        "weights": (s.active_rims, s.comm_heads, s.rims),
        "heard": (s.active_rims, s.comm_heads * s.comm_value_size),
    }
    if squash and s.comm_heads:
        shapes["squashed"] = (s.active_rims, s.rim_size)
    return shapes


def trace_of(plan: Plan, s: Shape, kept: dict[str, Tensor]) -> Trace:
    """What happened, from what the forward pass left."""
    valid = torch.ones(s.steps, s.batch, dtype=torch.bool) if plan.valid is None else plan.valid
    chosen = kept["active"].long().masked_fill(~valid.view(-1, 1), 0)
    active = torch.zeros(len(chosen), s.rims, dtype=torch.bool).scatter_(1, chosen, True)
    active = active.view(s.steps, s.batch, s.rims) & valid[..., None]
    attention = communication = None
    if s.key_size:
        real = kept["all_attention"].view(s.steps, s.batch, s.rims, s.heads).transpose(2, 3)
        attention = torch.stack([1 - real, real], dim=-1)
    if s.comm_heads:
        weights = kept["weights"].new_zeros(len(chosen), s.rims, s.comm_heads, s.rims)
        weights[active.view(-1, s.rims)] = (
            kept["weights"].view(valid.numel(), -1, s.comm_heads, s.rims)[valid.view(-1)].flatten(0, 1)
        )
        communication = weights.transpose(1, 2).view(s.steps, s.batch, s.comm_heads, s.rims, s.rims)
    return Trace(active, attention, communication)


def project_input(plan: Plan, w: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled keys ``[T * B * G, H * E]`` and values ``[T * B * G, H * V]`` of all steps; without attention,
    what is read is x itself."""
    flat = x.reshape(-1, x.shape[-1])
    if w.input_key is None or w.input_value is None:
        return flat.new_empty(0), flat.contiguous()
    keys = product(flat, w.input_key)
    keys /= math.sqrt(keys.shape[1] // plan.input_heads)
    return keys, product(flat, w.input_value)


def panels(weights: Tensor) -> Tensor:
    """``[K, in, out]`` as the passes read it (``matmul.h``): ``[K, panel, in, column]``, padded by zeros."""
    loaded = library()
    assert loaded is not None
    columns = loaded.panel_columns_f64() if weights.dtype == torch.float64 else loaded.panel_columns_f32()
    count, rows, width = weights.shape
    most = -(-width // columns) * columns
    laid = weights.new_zeros if most > width else weights.new_empty
    into = laid(count, most // columns, rows, columns)
    if most == width:
        into.copy_(weights.unflatten(2, (-1, columns)).transpose(1, 2))
    else:
        whole = width // columns
        into[:, :whole].copy_(weights[..., : whole * columns].unflatten(2, (whole, columns)).transpose(1, 2))
        into[:, whole, :, : width - whole * columns].copy_(weights[..., whole * columns :])
    return into


def threads(s: Shape) -> int:
    """On how many a sequence runs."""
    return max(1, min(torch.get_num_threads(), s.batch // THREAD_ROWS)) if s.steps > 1 else 1


def call(
    name: str,
    plan: Plan,
    s: Shape,
    tensors: Mapping[str, Tensor | None],
    *,
    keep: bool,
    parts: int | None = None,
) -> None:
    """One pass over all rows, on ``parts`` threads. ``tensors`` by their names in the structure; each of
    :data:`SUMMED` has a first dimension of ``parts``. Raises MemoryError."""
    run = passes(name, tensors["h0"])
    parts = threads(s) if parts is None else parts
    width = s.read + s.gates * s.rim_size * 2 + 5 * s.rim_size + s.told + s.heads * s.key_size
    sequence = Sequence(
        **s._asdict(),
        gru=plan.gru,
        squash=plan.squash,
        attend=s.key_size > 0,
        communicate=s.comm_heads > 0,
        private_inputs=plan.private,
        reverse=plan.reverse,
        collect=max(32, min(COLLECT, COLLECT_NUMBERS // (s.rims * width))),
        input_scale=plan.input_scale,
        comm_scale=plan.comm_scale,
        packed=True,
        keep=keep,
    )
    masks = {"reset": plan.reset, "valid": plan.valid, "disabled": plan.disabled}
    masks |= {"input_keep": plan.input_keep, "comm_keep": plan.comm_keep}
    held = {key: tensor.contiguous() for key, tensor in {**tensors, **masks}.items() if tensor is not None}
    for key, tensor in held.items():  # what is written to is contiguous as it is
        setattr(sequence, key, tensor.data_ptr())
    failed = []

    def work(part: int) -> None:
        own = Sequence.from_buffer_copy(sequence)
        own.first, own.last = s.batch * part // parts, s.batch * (part + 1) // parts
        for key in SUMMED if part else ():
            if key in held:
                setattr(own, key, held[key][part].data_ptr())
        if run(ctypes.byref(own)):
            failed.append(part)

    others = [threading.Thread(target=work, args=(part,)) for part in range(1, parts)]
    for thread in others:
        thread.start()
    work(0)
    for thread in others:
        thread.join()
    if failed:
        raise MemoryError(f"no memory for the {name} pass over {s.batch} rows of {s.rims} RIMs")


def passes(name: str, like: Tensor | None) -> Callable[[Any], int]:
    """The compiled pass for numbers ``like`` these."""
    loaded = library()
    assert loaded is not None
    assert like is not None
    return getattr(loaded, f"{name}_{'f64' if like.dtype == torch.float64 else 'f32'}")
