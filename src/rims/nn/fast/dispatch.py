"""Where the fast path applies, and the way into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from rims.nn.attention import Communication, InputAttention
from rims.nn.cell import RIMCell
from rims.nn.dynamics import GRUDynamics, LSTMDynamics
from rims.nn.fast import gpu, single
from rims.nn.fast.again import Again
from rims.nn.fast.native import step as native
from rims.nn.fast.passes import Plan, Weights
from rims.nn.fast.sequence import run
from rims.nn.fast.stages import Chooser
from rims.nn.sequence import PLAIN, How
from rims.nn.trace import Trace

Backend = Literal["auto", "reference", "fast"]
STOCK = (RIMCell, InputAttention, Communication, LSTMDynamics, GRUDynamics, torch.nn.Linear, torch.nn.Dropout)


def why_not(cell: RIMCell, x: Tensor, h: Tensor, c: Tensor) -> str | None:
    """What keeps this call from the fast path; None if nothing does."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "tracing and torch.compile"
    if (watcher := watched(cell, x, h, c)) is not None:
        return watcher
    return obstacle(cell, x, h, c)


def watched(cell: RIMCell, x: Tensor, h: Tensor, c: Tensor) -> str | None:
    """Who has to see each operation, where a pass written by hand shows none: the fast path would count no
    FLOPs, drop tangents, or read tensors that have no memory."""
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if torch._C._len_torch_dispatch_stack():
        return "a TorchDispatchMode"
    if torch.nn.modules.module._has_any_global_hook():
        return "a hook on all modules"
    for tensor in (x, h, c, cell.dynamics.weight_hh):
        if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            return f"a {type(tensor).__name__}"
    return None


def obstacle(cell: RIMCell, x: Tensor, h: Tensor, c: Tensor) -> str | None:
    """:func:`why_not`, tracing aside."""
    dtype, device = cell.dynamics.weight_hh.dtype, x.device
    if x.device.type not in ("cpu", "cuda"):
        return f"device {x.device.type!r}"
    if dtype not in (torch.float32, torch.float64):
        return f"weights of {dtype}"
    if h.dtype != dtype or c.dtype != dtype:
        return f"a state of {h.dtype} with weights of {dtype}"
    if not x.numel():
        return "an empty batch"
    modules: list[torch.nn.Module | None] = [cell]
    for module in modules:  # grows; Module.modules() takes four times as long, of a step's time a part
        if module is None:
            continue
        if type(module) not in STOCK:
            return f"a {type(module).__name__} inside the cell"
        if "forward" in module.__dict__:
            return f"a replaced forward of a {type(module).__name__}"
        forwards = module._forward_hooks or module._forward_pre_hooks
        if forwards or module._backward_hooks or module._backward_pre_hooks:
            return f"a hook on a {type(module).__name__}"
        for weight in module._parameters.values():
            if weight is not None and (weight.dtype != dtype or weight.device != device):
                return "weights of several dtypes or devices"
        modules += module._modules.values()
    return gpu.why_not(cell, x) if x.device.type == "cuda" else None


def run_sequence(
    cell: RIMCell, x: Tensor, h: Float[Tensor, "B H"], c: Float[Tensor, "B H"], how: How = PLAIN
) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "B H"], Float[Tensor, "B H"], Trace | None]:
    """As :func:`rims.nn.sequence.run_cell`."""
    if x.device.type == "cuda":
        return gpu.run_sequence(cell, x, h, c, how)
    if (
        not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or how.return_trace)
        and how.valid is None
        and (step := single_step_of(cell, x)) is not None
    ):
        if (fresh := how.fresh) is not None:
            h, c = (part.masked_fill(fresh[0, :, None], 0.0) for part in (h, c))
        h, c = step(cell, x[0], h, c, how.disabled)
        return h[None], h.clone(), c, None
    plan, x = prepare(cell, x, how)
    with torch.autocast(x.device.type, enabled=False):
        y, h_last, c_last, trace = run(plan, Weights.of(cell), x, h, c)
    return *finish(plan, y, h_last, c_last, c), trace


def single_step_of(cell: RIMCell, x: Tensor) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """What covers ``x`` as one step of an agent that acts: compiled, or else torch operations."""
    return next((way.single_step for way in (native, single) if way.applies(cell, x)), None)


def prepare(cell: RIMCell, x: Tensor, how: How) -> tuple[Plan, Tensor]:
    """The call in the terms of :mod:`rims.nn.fast.sequence`: the plan, with dropout drawn, and x
    ``[T, B, S, I]``."""
    dtype, device = cell.dynamics.weight_hh.dtype, x.device.type
    x = x.to(dtype)
    if cell.inputs == "vector":
        x = x[:, :, None]
    if how.mask is not None:
        x = x.masked_fill(~how.mask[..., None], 0.0)
    attention, communication = cell.input_attention, cell.communication
    autocast = torch.is_autocast_enabled(device) and dtype == torch.float32
    removed = 0 if how.disabled is None else int(how.disabled.sum())
    plan = Plan(
        num_rims=cell.num_rims,
        num_active=min(cell.num_active, cell.num_rims - removed),
        gru=cell.cell == "gru",
        squash=cell.squash,
        official=cell.variant == "official",
        private=cell.inputs == "private",
        choose=Chooser(cell.selection == "competition", cell.num_active, how.disabled),
        input_heads=1 if attention is None else attention.heads,
        heads=1 if communication is None else communication.heads,
        topk=None if communication is None else communication.topk,
        reverse=how.reverse,
        return_trace=how.return_trace,
        product_dtype=torch.get_autocast_dtype(device) if autocast else dtype,
        reset=how.fresh,
        mask=how.mask,
        valid=how.valid,
        disabled=how.disabled,
    )
    rows = (len(x), x.shape[1] * cell.num_rims)
    if cell.training and cell.input_dropout.p:
        read = cell.dynamics.weight_ih.shape[1]
        plan.input_keep, plan.input_scale = dropout_mask(cell.input_dropout.p, *rows, read)
    if cell.training and communication is not None and communication.dropout.p:
        plan.comm_keep, plan.comm_scale = dropout_mask(communication.dropout.p, *rows, cell.rim_size)
    kept = plan.input_keep, plan.input_scale, plan.comm_keep, plan.comm_scale
    plan.again = Again(cell, how, plan.product_dtype, *kept)
    return plan, x


def finish(plan: Plan, y: Tensor, h: Tensor, c: Tensor, c_first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and last state as the cell has them: a GRU passes its ``c`` through, padding is zero."""
    if plan.gru:
        c = c_first if plan.reset is None else c_first.masked_fill(plan.reset.any(0)[:, None], 0.0)
    if plan.valid is not None:
        y = y.masked_fill(~plan.valid[..., None], 0.0)
    return y, h, c


def dropout_mask(p: float, *shape: int) -> tuple[Tensor, float]:
    """What dropout keeps, for all steps, and what that is multiplied by."""
    return torch.empty(shape, dtype=torch.bool).bernoulli_(1 - p), 1 / (1 - p)
