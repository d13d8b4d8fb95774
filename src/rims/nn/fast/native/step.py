"""One step of a few rows without gradients, an agent that acts: one call of the compiled pass, on weights as
they lie.

Here the time goes into reading weights and into what surrounds the arithmetic. Of a single row only the input
weights of active RIMs are read. Addresses are asked for anew at each step: nothing would tell that kept ones,
or copies, are out of date."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor

from rims.nn.cell import RIMCell
from rims.nn.fast import single
from rims.nn.fast.native.build import library
from rims.nn.fast.native.function import ROWS, Shape, passes, saved_shapes
from rims.nn.fast.native.layout import Sequence


def applies(cell: RIMCell, x: Tensor) -> bool:
    """Whether ``x [T, B, ...]`` is one step that :func:`single_step` covers, gradients and masks aside."""
    communication = cell.communication
    topk = communication is not None and communication.topk is not None
    return single.applies(cell, x) and not topk and library() is not None


@lru_cache(maxsize=64)
def places(squash: bool, shape: Shape) -> tuple[dict[str, int], int]:
    """Where what a step makes lies in one piece of memory, and how many numbers that takes."""
    sizes = {"keys": shape.heads * shape.key_size, "values": shape.read}
    sizes |= {name: prod(sizes_of) for name, sizes_of in saved_shapes(squash, shape).items()}
    ends = list(accumulate(-(-size * shape.batch // 16) * 16 for size in sizes.values()))
    return dict(zip(sizes, [0, *ends])), ends[-1]


def single_step(
    cell: RIMCell, x: Tensor, h: Tensor, c: Tensor, disabled: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The next h and c ``[B, K * D]`` from x ``[B, I]``; as :meth:`RIMCell.step`."""
    # By name through Module.__getattr__, weights would take as long as some products.
    modules: dict[str, Any] = cell._modules
    attention, communication = modules["input_attention"], modules["communication"]
    read, dynamics, hear = (module._parameters for module in (attention, modules["dynamics"], communication))
    out = communication._modules["out"]._parameters
    rims, width, gates = dynamics["weight_ih"].shape
    heads, comm_heads, gru = attention.heads, communication.heads, cell.cell == "gru"
    shape = Shape(
        steps=1,
        batch=len(x),
        rims=rims,
        active_rims=min(cell.num_active, rims - (0 if disabled is None else int(disabled.sum()))),
        rim_size=cell.rim_size,
        gates=gates // cell.rim_size,
        heads=heads,
        key_size=read["key"].shape[1] // heads,
        value_size=width // heads,
        comm_heads=comm_heads,
        comm_key_size=hear["key"].shape[2] // comm_heads,
        comm_value_size=hear["value"].shape[2] // comm_heads,
    )
    where, total = places(cell.squash, shape)
    space, states, c = h.new_empty(total), h.new_empty(h.shape), c.clone(memory_format=ROWS)
    active = torch.empty(len(x), shape.active_rims, dtype=torch.int32)
    ih_bias, hh_bias = dynamics.get("bias_ih"), dynamics.get("bias_hh")
    held: dict[str, Tensor | None] = {
        "x": x,
        "h0": h,
        "states": states,
        "c": c,
        "active": active,
        "disabled": disabled,
        "key_weight": read["key"],
        "read_weight": read["value"],
        "ask_weight": read["query"],
        "ih_weight": dynamics["weight_ih"],
        "hh_weight": dynamics["weight_hh"],
        "ih_bias": ih_bias if gru or ih_bias is None or hh_bias is None else ih_bias + hh_bias,
        "hh_bias": hh_bias if gru else None,
        "told_weight": hear["key"],
        "value_weight": hear["value"],
        "query_weight": hear["query"],
        "out_weight": out["weight"].t(),
        "out_bias": out["bias"],
    }
    held = {name: None if tensor is None else tensor.contiguous() for name, tensor in held.items()}
    base, bytes_of = space.data_ptr(), space.element_size()
    sequence = Sequence(
        **shape._asdict(),
        last=len(x),
        gru=gru,
        squash=cell.squash,
        attend=1,
        communicate=1,
        input_size=x.shape[1],
        **{name: base + place * bytes_of for name, place in where.items()},
        **{name: tensor.data_ptr() for name, tensor in held.items() if tensor is not None},
    )
    if passes("forward", h)(ctypes.byref(sequence)):
        raise MemoryError(f"no memory for a step of {len(x)} rows of {rims} RIMs")
    return states, c
