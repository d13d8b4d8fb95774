"""Random layers and sequences that the GPU's fast path covers; an engine compared with the cell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from rims.nn.cell import RIMCell
from rims.nn.fast import dense
from rims.nn.fast.gpu import prepare
from rims.nn.sequence import How, run_cell


class Case(NamedTuple):
    """A layer and what it is run on."""

    options: dict[str, Any]
    length: int = 4
    batch: int = 3
    seed: int = 0
    reset: bool = False
    valid: bool = False
    disabled: tuple[int, ...] = ()
    reverse: bool = False
    input_dropout: bool = False
    comm_dropout: bool = False
    zero_state: bool = False


PAPER_IN_SMALL: dict[str, Any] = {"input_size": 10, "hidden_size": 60, "num_rims": 6, "num_active": 4}


@st.composite
def cases(draw: st.DrawFn, max_length: int = 5, max_rim: int = 5, dropout: bool = True) -> Case:
    """Any combination of the options covered."""
    num_rims = draw(st.integers(1, 6))
    num_active = draw(st.integers(1, num_rims))
    heads = draw(st.integers(1, 2))
    communication = draw(st.booleans())
    options: dict[str, Any] = {
        "input_size": draw(st.integers(1, 6)),
        "hidden_size": num_rims * draw(st.integers(1, max_rim)),
        "num_rims": num_rims,
        "num_active": num_active,
        "cell": draw(st.sampled_from(["lstm", "gru"])),
        "bias": draw(st.booleans()),
        "input_heads": heads,
        "input_key_size": draw(st.integers(1, 5)),
        "input_value_size": draw(st.integers(1, 5)),
        "communication": communication,
        "comm_tanh": draw(st.booleans()),
        "comm_heads": draw(st.integers(1, 3)),
        "comm_key_size": draw(st.integers(1, 5)),
        "comm_value_size": draw(st.integers(1, 5)),
    }
    removed = draw(st.sets(st.integers(0, num_rims - 1), max_size=num_rims - 1))
    return Case(
        options,
        length=draw(st.integers(1, max_length)),
        batch=draw(st.integers(1, 4)),
        seed=draw(st.integers(0, 2**16)),
        reset=draw(st.booleans()),
        valid=draw(st.booleans()),
        disabled=tuple(removed),
        reverse=draw(st.booleans()),
        input_dropout=dropout and draw(st.booleans()),
        comm_dropout=dropout and communication and draw(st.booleans()),
        zero_state=draw(st.booleans()),
    )


class Kept(nn.Module):
    """Dropout with known masks, a step at a time."""

    def __init__(self, masks: list[Tensor], scale: float) -> None:
        super().__init__()
        self.masks, self.scale = masks, scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.masks.pop(0) * self.scale


def outcome(
    case: Case,
    engine: dense.Engine | None,
    dtype: torch.dtype,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """All results and gradients by name: of the engine, or of the cell step by step where it is None."""
    torch.manual_seed(case.seed)
    cell = RIMCell(**case.options).double()
    length, batch, scale = case.length, case.batch, 1.25
    x = torch.randn(length, batch, cell.input_size).double()
    h, c = (torch.randn(batch, cell.hidden_size).double() * (not case.zero_state) for _ in range(2))
    reset = torch.rand(length, batch) < 0.3 if case.reset else None
    valid = torch.rand(length, batch) < 0.7 if case.valid else None
    read = cell.dynamics.weight_ih.shape[1]
    input_keep = torch.rand(length, batch, cell.num_rims, read) < 0.8 if case.input_dropout else None
    comm_keep = torch.rand(length, batch, cell.num_rims, cell.rim_size) < 0.8 if case.comm_dropout else None
    weighing = [torch.randn(length, batch, cell.hidden_size), *torch.randn(2, batch, cell.hidden_size)]

    cell = cell.to(device, dtype)
    x, h, c = (t.to(device, dtype).requires_grad_() for t in (x, h, c))
    weighing = [w.to(device, dtype) for w in weighing]
    reset, valid = (None if t is None else t.to(device) for t in (reset, valid))
    input_keep, comm_keep = (None if t is None else t.to(device) for t in (input_keep, comm_keep))
    disabled = None
    if case.disabled:
        disabled = torch.tensor([k in case.disabled for k in range(cell.num_rims)], device=device)
    how = How(reset, None, valid, disabled, case.reverse, return_trace=True)
    with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
        if engine is None:
            order = range(length)[::-1] if case.reverse else range(length)
            if input_keep is not None:
                cell.input_dropout = Kept([input_keep[t] for t in order], scale)  # type: ignore[assignment]
            if comm_keep is not None and cell.communication is not None:
                cell.communication.dropout = Kept([comm_keep[t] for t in order], scale)  # type: ignore[assignment]
            y, h_last, c_last, trace = run_cell(cell, x, h, c, how)
            assert trace is not None
            active = trace.active
        else:
            o, i = prepare(cell, x, h, c, how)
            i = i._replace(input_keep=input_keep, comm_keep=comm_keep)
            o = replace(o, input_scale=scale, comm_scale=scale)
            with torch.autocast(device, enabled=False):
                result = dense.run(o, i, engine)
            y, h_last, c_last, active = result[:4]
            y = y if valid is None else y.masked_fill(~valid[..., None], 0.0)
    loss = sum((part * w).sum() for part, w in zip((y, h_last, c_last), weighing))
    loss.backward()  # type: ignore[union-attr]
    found = {"y": y, "h": h_last, "c": c_last, "active": active, "d x": x.grad, "d h": h.grad, "d c": c.grad}
    found |= {f"d {name}": p.grad for name, p in cell.named_parameters()}
    return {k: torch.zeros(()) if v is None else v.detach().double().cpu() for k, v in found.items()}


def errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """By name, the largest difference relative to the largest value (or to 1, if that is less: gradients of
    weights that hardly matter have no scale of their own)."""
    assert found.keys() == wanted.keys()
    return {
        name: float((found[name] - value).abs().max() / max(1.0, float(value.abs().max())))
        for name, value in wanted.items()
    }


def assert_equal(case: Case, engine: dense.Engine, dtype: torch.dtype, tolerance: float) -> None:
    """The engine and the cell agree in all results and gradients."""
    found, wanted = outcome(case, engine, dtype), outcome(case, None, dtype)
    assert torch.equal(found["active"], wanted["active"])
    worst = {name: error for name, error in errors(found, wanted).items() if not error <= tolerance}
    assert not worst
