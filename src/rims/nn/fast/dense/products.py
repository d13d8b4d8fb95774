"""The large products: what all steps need, before the loop, and the gradients of weights and input, after it.

Shapes: see :mod:`rims.nn.fast.dense`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rims.nn.fast.dense.loop import split_heads, states_before
from rims.nn.fast.dense.tensors import NUM_DIFFERENTIABLE, Hoisted, Inputs, Options, Pieces, Saved


def hoist(o: Options, i: Inputs) -> Hoisted:
    """Everything that does not depend on the state."""
    length, batch, size = i.x.shape
    dtype, heads, num_rims = o.product_dtype, o.input_heads, o.num_rims
    flat = i.x.reshape(length * batch, size).to(dtype)

    def by_head(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (heads, -1)).transpose(0, 1)

    keys = by_head(flat @ i.input_key.to(dtype)).to(i.h0.dtype) / math.sqrt(i.input_key.shape[1] // heads)
    # RIMs are ranked by their scores, so u is never rounded to half precision.
    asks = torch.bmm(keys, query_by_head(o, i.input_query))
    values = by_head(flat @ i.input_value.to(dtype))
    ih = i.ih.to(dtype)
    if i.input_keep is None:
        reads = torch.bmm(values, ih_by_head(o, ih))
    else:
        kept = keep_values(o, i, values)
        per_rim = ih.unflatten(1, (heads, -1)).transpose(0, 1).flatten(0, 1)
        reads = torch.bmm(kept.flatten(0, 1), per_rim).unflatten(0, (heads, -1)).transpose(1, 2).contiguous()
    shape = (heads, length, batch, num_rims, -1)
    return Hoisted(keys, values, asks.view(shape), reads.view(shape))


def query_by_head(o: Options, query: Tensor) -> Tensor:
    """``[K, D, R * E]`` to ``[R, E, K * D]``."""
    return query.unflatten(-1, (o.input_heads, -1)).permute(2, 3, 0, 1).flatten(2)


def ih_by_head(o: Options, ih: Tensor) -> Tensor:
    """``[K, R * V, G]`` to ``[R, V, K * G]``."""
    return ih.unflatten(1, (o.input_heads, -1)).permute(1, 2, 0, 3).flatten(2)


def keep_values(o: Options, i: Inputs, values: Tensor) -> Tensor:
    """What dropout leaves each RIM of ``values [R, N, V]``: ``[R, K, N, V]``."""
    assert i.input_keep is not None
    keep = i.input_keep.flatten(0, 1).unflatten(-1, (o.input_heads, -1)).permute(2, 1, 0, 3)
    return values[:, None] * keep * o.input_scale


def gradients(
    o: Options, i: Inputs, hoisted: Hoisted, s: Saved, p: Pieces, want_x: bool
) -> list[Tensor | None]:
    """Those of the first ``NUM_DIFFERENTIABLE`` inputs: each of a weight is one product over all rows."""
    dtype, heads, num_rims = o.product_dtype, o.input_heads, o.num_rims
    length, batch, size = i.x.shape
    rows = length * batch
    grads: dict[str, Tensor] = {"h0": p.dh0.flatten(1)}
    if not o.gru:
        grads["c0"] = p.dc0.flatten(1)

    # What moves the states by themselves.
    start = states_before(o, i, i.h0, s.states).flatten(0, 1)
    d_input, d_state = p.d_input.flatten(0, 1), p.d_state.flatten(0, 1)
    grads["hh"] = over_rows(start, d_state, dtype)
    if i.bias_ih is not None:
        grads["bias_ih"] = d_input.sum(0, dtype=i.h0.dtype)
        grads["bias_hh"] = d_state.sum(0, dtype=i.h0.dtype)

    # What was heard. A loop may have padded E and V of a head with zeros.
    if p.d_qkv is not None and p.d_out is not None:
        assert s.told is not None
        assert s.heard is not None
        assert s.qkv is not None
        assert i.query is not None
        assert i.value is not None
        whole = over_rows(s.told.flatten(0, 1), p.d_qkv.flatten(0, 1), dtype)
        parts = split_heads(o, whole, s.heard.shape[-1])
        for name, part, weight in zip(("query", "key", "value"), parts, (i.query, i.query, i.value)):
            grads[name] = part[..., : weight.shape[-1] // o.heads].flatten(-2)
        d_out = p.d_out.flatten(0, 2)
        d_weight = (d_out.t() @ s.heard.flatten(0, 2)).unflatten(-1, (o.heads, -1))
        grads["out"] = d_weight[..., : i.value.shape[-1] // o.heads].flatten(-2)
        grads["out_bias"] = d_out.sum(0, dtype=i.h0.dtype)

    # What was asked of the input: scores = h . u.
    d_scores = p.d_scores.view(heads, rows, num_rims)
    d_asks = (d_scores[..., None] * start).flatten(2)
    d_keys = torch.bmm(d_asks, query_by_head(o, i.input_query).transpose(1, 2))
    d_query = torch.bmm(hoisted.keys.transpose(1, 2), d_asks)
    grads["input_query"] = d_query.unflatten(2, (num_rims, -1)).permute(2, 3, 0, 1).flatten(2)
    d_keys = (d_keys / math.sqrt(d_keys.shape[-1])).to(dtype).transpose(0, 1).flatten(1)

    # What was read from it: a * P.
    ih = i.ih.to(dtype)
    d_reads = (s.attention.view(heads, rows, num_rims, 1) * d_input).to(dtype)
    if i.input_keep is None:
        flat = d_reads.flatten(2)
        d_ih = torch.bmm(hoisted.values.transpose(1, 2), flat)
        grads["ih"] = d_ih.unflatten(2, (num_rims, -1)).permute(2, 0, 1, 3).flatten(1, 2)
        d_values = torch.bmm(flat, ih_by_head(o, ih).transpose(1, 2))
    else:
        d_reads = d_reads.transpose(1, 2).flatten(0, 1)
        kept = keep_values(o, i, hoisted.values).flatten(0, 1)
        d_ih = torch.bmm(kept.transpose(1, 2), d_reads).unflatten(0, (heads, -1))
        grads["ih"] = d_ih.transpose(0, 1).flatten(1, 2)
        per_head = ih.unflatten(1, (heads, -1)).transpose(0, 1).flatten(0, 1)
        d_kept = torch.bmm(d_reads, per_head.transpose(1, 2)).unflatten(0, (heads, -1))
        keep = i.input_keep.flatten(0, 1).unflatten(-1, (heads, -1)).permute(2, 1, 0, 3)
        d_values = (d_kept * keep).sum(1) * o.input_scale
    d_values = d_values.transpose(0, 1).flatten(1)

    flat_x = i.x.reshape(rows, size).to(dtype)
    grads["input_key"] = flat_x.t() @ d_keys
    grads["input_value"] = flat_x.t() @ d_values
    if want_x:
        dx = d_keys @ i.input_key.to(dtype).t() + d_values @ i.input_value.to(dtype).t()
        grads["x"] = dx.view_as(i.x)

    result: list[Tensor | None] = []
    for name, tensor in zip(Inputs._fields[:NUM_DIFFERENTIABLE], i):
        grad = grads.get(name)
        result.append(None if grad is None or tensor is None else grad.to(tensor.dtype))
    return result


def over_rows(rows: Tensor, d_rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient ``[K, i, o]`` of each RIM's matrix from its rows ``[N, K, i]`` and ``[N, K, o]``."""
    return torch.bmm(rows.to(dtype).permute(1, 2, 0), d_rows.to(dtype).transpose(0, 1))
