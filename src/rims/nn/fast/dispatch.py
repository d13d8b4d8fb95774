"""Where the fast path applies, and the way into it."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rims.nn.attention import Communication, InputAttention
from rims.nn.cell import RIMCell
from rims.nn.dynamics import GRUDynamics, LSTMDynamics
from rims.nn.fast import gpu
from rims.nn.fast.sequence import Plan, Traces, Weights, run
from rims.nn.fast.stages import Chooser

Backend = Literal["auto", "reference", "fast"]
STOCK = (RIMCell, InputAttention, Communication, LSTMDynamics, GRUDynamics, torch.nn.Linear, torch.nn.Dropout)


def why_not(cell: RIMCell, x: Tensor, h: Tensor, c: Tensor) -> str | None:
    """What keeps this call from the fast path; None if nothing does."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "tracing and torch.compile"
    dtype = cell.dynamics.weight_hh.dtype
    if x.device.type not in ("cpu", "cuda"):
        return f"device {x.device.type!r}"
    if dtype not in (torch.float32, torch.float64):
        return f"weights of {dtype}"
    if h.dtype != dtype or c.dtype != dtype:
        return f"a state of {h.dtype} with weights of {dtype}"
    if not x.numel():
        return "an empty batch"
    for module in cell.modules():
        if type(module) not in STOCK:
            return f"a {type(module).__name__} inside the cell"
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return f"a hook on a {type(module).__name__}"
    return gpu.why_not(cell, x) if x.device.type == "cuda" else None


def run_sequence(
    cell: RIMCell,
    x: Tensor,
    h: Float[Tensor, "B H"],
    c: Float[Tensor, "B H"],
    *,
    reset: Bool[Tensor, "T B"] | None = None,
    mask: Tensor | None = None,
    valid: Bool[Tensor, "T B"] | None = None,
    disabled: Bool[Tensor, " K"] | None = None,
    reverse: bool = False,
    return_trace: bool = False,
) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "B H"], Float[Tensor, "B H"], Traces | None]:
    """As :func:`rims.nn.rim.run_cell`."""
    if x.device.type == "cuda":
        return gpu.run_sequence(
            cell,
            x,
            h,
            c,
            reset=reset,
            mask=mask,
            valid=valid,
            disabled=disabled,
            reverse=reverse,
            return_trace=return_trace,
        )
    dtype, device = cell.dynamics.weight_hh.dtype, x.device.type
    x = x.to(dtype)
    if cell.inputs == "vector":
        x = x[:, :, None]
    if mask is not None:
        x = x.masked_fill(~mask[..., None], 0.0)
    if reverse and reset is not None:  # nothing may cross from t back to t - 1 where t begins anew
        reset = torch.cat([reset[1:], torch.zeros_like(reset[:1])])
    attention, communication = cell.input_attention, cell.communication
    autocast = torch.is_autocast_enabled(device) and dtype == torch.float32
    removed = 0 if disabled is None else int(disabled.sum())
    plan = Plan(
        num_rims=cell.num_rims,
        num_active=min(cell.num_active, cell.num_rims - removed),
        gru=cell.cell == "gru",
        official=cell.variant == "official",
        private=cell.inputs == "private",
        choose=Chooser(cell.selection == "competition", cell.num_active, disabled),
        input_heads=1 if attention is None else attention.heads,
        heads=1 if communication is None else communication.heads,
        topk=None if communication is None else communication.topk,
        reverse=reverse,
        return_trace=return_trace,
        product_dtype=torch.get_autocast_dtype(device) if autocast else dtype,
        reset=reset,
        mask=mask,
        valid=valid,
        disabled=disabled,
    )
    rows = (len(x), x.shape[1] * cell.num_rims)
    if cell.training and cell.input_dropout.p:
        read = cell.dynamics.weight_ih.shape[1]
        plan.input_keep, plan.input_scale = dropout_mask(cell.input_dropout.p, *rows, read)
    if cell.training and communication is not None and communication.dropout.p:
        plan.comm_keep, plan.comm_scale = dropout_mask(communication.dropout.p, *rows, cell.rim_size)
    with torch.autocast(device, enabled=False):
        y, h_last, c_last, traces = run(plan, weights_of(cell), x, h, c)
    if plan.gru:
        c_last = c if reset is None else c.masked_fill(reset.any(0)[:, None], 0.0)
    if valid is not None:
        y = y.masked_fill(~valid[..., None], 0.0)
    return y, h_last, c_last, traces if return_trace else None


def dropout_mask(p: float, *shape: int) -> tuple[Tensor, float]:
    """What dropout keeps, for all steps, and what that is multiplied by."""
    return torch.empty(shape, dtype=torch.bool).bernoulli_(1 - p), 1 / (1 - p)


def weights_of(cell: RIMCell) -> Weights:
    """The cell's weights by their names here."""
    attention, communication, dynamics = cell.input_attention, cell.communication, cell.dynamics
    none = (None, None, None)
    reads = none if attention is None else (attention.query, attention.key, attention.value)
    own = (dynamics.weight_ih, dynamics.weight_hh, dynamics.bias_ih, dynamics.bias_hh)
    if communication is None:
        return Weights(*reads, *own, *none, None, None, None, None)
    hears = (communication.query, communication.key, communication.value)
    out, gate = communication.out, communication.gate
    gates = (None, None) if gate is None else (gate.weight, gate.bias)
    return Weights(*reads, *own, *hears, out.weight, out.bias, *gates)
