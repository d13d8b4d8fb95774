"""The fast path on a GPU: where it applies, and which engine runs it.

Engines, best first: ``kernel``, the loop over time as Triton kernels, captured in CUDA graphs; ``graphs``,
the dense computation captured so; ``dense``, the same without capture; ``reference``, the cell step by step.
The environment variable RIMS_GPU names one for measuring.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rims.nn.cell import RIMCell
from rims.nn.fast.again import Again
from rims.nn.fast.dense import Eager, Engine, Inputs, Options, TorchLoop, run
from rims.nn.fast.graphs import Graphs
from rims.nn.sequence import PLAIN, How, run_cell
from rims.nn.trace import Trace

ENGINES = ("kernel", "graphs", "dense", "reference")


def why_not(cell: RIMCell, x: Tensor) -> str | None:
    """What keeps this call from the fast path on a GPU; None if nothing does."""
    if requested() == "reference":
        return "RIMS_GPU=reference"
    communication = cell.communication
    obstacles = {
        'variant="official"': cell.variant != "paper",
        'selection="competition"': cell.selection != "null",
        f"inputs={cell.inputs!r}": cell.inputs != "vector",
        "input_attention=False": cell.input_attention is None,
        "comm_topk": communication is not None and communication.topk is not None,
    }
    return next((f"{name} on device {x.device.type!r}" for name, found in obstacles.items() if found), None)


def requested() -> str | None:
    """The engine that RIMS_GPU names."""
    name = os.environ.get("RIMS_GPU") or None
    if name is not None and name not in ENGINES:
        raise ValueError(f"RIMS_GPU is {name!r}; expected one of {', '.join(ENGINES)}")
    return name


@cache
def engine(name: str) -> Engine:
    """The engine of that name; made once, since graphs are kept in it."""
    if name == "kernel":
        from rims.nn.fast.kernel import KernelLoop

        return Graphs(Eager(KernelLoop()))
    dense = Eager(TorchLoop())
    return Graphs(dense) if name == "graphs" else dense


def kernel_obstacle(o: Options, i: Inputs) -> str | None:
    """What keeps the sequence from the kernel."""
    try:
        from rims.nn.fast import kernel
    except ImportError:
        return "Triton is not installed"
    return kernel.why_not(o, i)


def choose_engine(o: Options, i: Inputs) -> Engine:
    """The requested engine, or the best that runs this."""
    name = requested()
    if name is None:
        name = "kernel" if kernel_obstacle(o, i) is None else "graphs"
    elif name == "kernel" and (obstacle := kernel_obstacle(o, i)) is not None:
        raise ValueError(f"RIMS_GPU is 'kernel', which does not cover this: {obstacle}")
    return engine(name)


def run_sequence(
    cell: RIMCell, x: Tensor, h: Float[Tensor, "B H"], c: Float[Tensor, "B H"], how: How = PLAIN
) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "B H"], Float[Tensor, "B H"], Any]:
    """As :func:`rims.nn.sequence.run_cell`."""
    if how.return_trace and torch.is_grad_enabled():  # only the reference's traces carry gradients
        return run_cell(cell, x, h, c, how)
    assert how.mask is None  # only slots and private inputs have one
    o, i = prepare(cell, x, h, c, how)
    o, i = with_dropout(cell, o, i)
    repeat = Again(cell, how, o.product_dtype, i.input_keep, o.input_scale, i.comm_keep, o.comm_scale)
    # Triton and graphs work on the current device, which need not be that of x.
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        result = run(o, i, choose_engine(o, i), repeat)
    y = result.states if how.valid is None else result.states.masked_fill(~how.valid[..., None], 0.0)
    if not how.return_trace:
        return y, result.h, result.c, None
    assert result.attention is not None
    attention = torch.stack([1 - result.attention, result.attention], -1)  # on null, on the input
    trace = Trace(result.active, attention.permute(1, 2, 0, 3, 4), result.hearing)
    return y, result.h, result.c, trace


def prepare(cell: RIMCell, x: Tensor, h: Tensor, c: Tensor, how: How = PLAIN) -> tuple[Options, Inputs]:
    """The call in the terms of :mod:`rims.nn.fast.dense`, without dropout."""
    attention, dynamics, communication = cell.input_attention, cell.dynamics, cell.communication
    assert attention is not None
    dtype, device = dynamics.weight_hh.dtype, x.device.type
    autocast = torch.is_autocast_enabled(device) and dtype == torch.float32
    query = key = value = weight = bias = None
    if communication is not None:
        query, key, value = communication.query, communication.key, communication.value
        weight, bias = communication.out.weight, communication.out.bias
    o = Options(
        num_rims=cell.num_rims,
        num_active=cell.num_active,
        gru=cell.cell == "gru",
        input_heads=attention.heads,
        heads=0 if communication is None else communication.heads,
        reverse=how.reverse,
        squash=cell.squash,
        product_dtype=torch.get_autocast_dtype(device) if autocast else dtype,
    )
    i = Inputs(
        x.to(dtype),
        h,
        c,
        attention.query,
        attention.key,
        attention.value,
        dynamics.weight_ih,
        dynamics.weight_hh,
        dynamics.bias_ih,
        dynamics.bias_hh,
        query,
        key,
        value,
        weight,
        bias,
        how.fresh,
        how.valid,
        how.disabled,
    )
    return o, i


def with_dropout(cell: RIMCell, o: Options, i: Inputs) -> tuple[Options, Inputs]:
    """The same with dropout masks drawn, where the cell is in training and has dropout."""
    steps, communication = (*i.x.shape[:2], cell.num_rims), cell.communication
    if cell.training and cell.input_dropout.p:
        p = cell.input_dropout.p
        i = i._replace(input_keep=draw(p, i.x, *steps, cell.dynamics.weight_ih.shape[1]))
        o = replace(o, input_scale=1 / (1 - p))
    if cell.training and communication is not None and communication.dropout.p:
        p = communication.dropout.p
        i = i._replace(comm_keep=draw(p, i.x, *steps, cell.rim_size))
        o = replace(o, comm_scale=1 / (1 - p))
    return o, i


def draw(p: float, like: Tensor, *shape: int) -> Tensor:
    """What dropout keeps."""
    return torch.empty(shape, dtype=torch.bool, device=like.device).bernoulli_(1 - p)
