"""The dense computation equals the cell, step by step, in values and every gradient."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from rims.nn.cell import RIMCell
from rims.nn.fast import dense, gpu
from rims.nn.fast.dense.loop import choose
from rims.nn.selection import select_active
from rims.nn.sequence import How, run_cell

from .dense_cases import PAPER_IN_SMALL, Case, assert_equal, cases, errors, outcome

ENGINE = dense.Eager(dense.TorchLoop())


@given(cases())
@settings(max_examples=100, deadline=None)
def test_equals_the_cell(case: Case) -> None:
    assert_equal(case, ENGINE, torch.float64, 1e-10)


@given(cases())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equals_the_cell_in_float32(case: Case) -> None:
    assert_equal(case, ENGINE, torch.float32, 1e-4)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_is_near_the_cell_under_autocast(cell: str) -> None:
    case = Case({**PAPER_IN_SMALL, "cell": cell})
    found = outcome(case, ENGINE, torch.float32, autocast=torch.bfloat16)
    worst = max(errors(found, outcome(case, None, torch.float32)).values())
    assert 1e-4 < worst < 0.03  # half precision is used, and does not hurt


@pytest.mark.parametrize("removed", [(), (0,), (1, 2)])
def test_active_rims_are_those_of_the_sort(removed: tuple[int, ...]) -> None:
    penalty = torch.randint(5, (500, 5)) / 4  # many ties
    penalty[torch.rand(500, 5) < 0.1] = torch.nan
    disabled = torch.tensor([k in removed for k in range(5)]) if removed else None
    layer = RIMCell(1, 5, 5, 2)
    o, _ = gpu.prepare(layer, torch.zeros(1, 1, 1), torch.zeros(1, 5), torch.zeros(1, 5))
    assert torch.equal(choose(o, penalty, disabled, None), select_active(penalty, 2, disabled))


def test_backward_twice_gives_the_same() -> None:
    layer = RIMCell(**PAPER_IN_SMALL)
    x, h = torch.randn(3, 2, 10), torch.randn(2, 60)
    result = dense.run(*gpu.prepare(layer, x, h, h), ENGINE)
    first, second = (
        torch.autograd.grad(
            result.states.sum(), list(layer.parameters()), retain_graph=True, allow_unused=True
        )
        for _ in range(2)
    )
    assert all(a is None or torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_second_derivatives_equal_finite_differences(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIMS_GPU", "dense")
    torch.manual_seed(0)
    layer = RIMCell(3, 8, 4, 2, cell=cell, input_dropout=0.3, comm_dropout=0.3, dtype=torch.float64)
    x, h = torch.randn(3, 2, 3, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    how = How(reset=torch.tensor([[False, False], [True, False], [False, False]]), reverse=True)

    def run(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same dropout at each call
        own = {id(old): new for old, new in zip(layer.parameters(), weights)}
        return gpu.run_sequence(copy.deepcopy(layer, own), x, h, h, how)[0]

    given = x.requires_grad_(), h.requires_grad_(), *layer.parameters()
    assert torch.autograd.gradgradcheck(run, given, fast_mode=True)


def test_dropout_keeps_the_mean() -> None:
    layer = RIMCell(**PAPER_IN_SMALL, input_dropout=0.5, comm_dropout=0.25)
    o, i = gpu.prepare(layer, torch.randn(50, 20, 10), *torch.randn(2, 20, 60))
    o, i = gpu.with_dropout(layer, o, i)
    assert i.input_keep is not None
    assert i.comm_keep is not None
    assert (i.input_keep.double().mean() * o.input_scale).item() == pytest.approx(1, abs=0.01)
    assert (i.comm_keep.double().mean() * o.comm_scale).item() == pytest.approx(1, abs=0.01)
    layer.eval()
    o = replace(o, input_scale=1.0, comm_scale=1.0)
    assert gpu.with_dropout(layer, o, i._replace(input_keep=None, comm_keep=None))[1].input_keep is None


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("gradients", [False, True])
def test_traces_are_those_of_the_cell(gradients: bool, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIMS_GPU", "dense")
    layer = RIMCell(**PAPER_IN_SMALL, cell=cell).double()
    x, h, c = torch.randn(4, 3, 10).double(), *torch.randn(2, 3, 60).double()
    valid, reset = torch.rand(2, 4, 3) < 0.5
    with torch.set_grad_enabled(gradients):
        how = How(valid=valid, reset=reset, return_trace=True)
        wanted = run_cell(layer, x, h, c, how)
        found = gpu.run_sequence(layer, x, h, c, how)
    torch.testing.assert_close(found[:3], wanted[:3])
    assert torch.equal(found[3].active, wanted[3].active)
    torch.testing.assert_close(found[3].input_attention, wanted[3].input_attention)
    now = valid[..., None, None, None]  # padding has no communication worth a trace
    torch.testing.assert_close(found[3].communication * now, wanted[3].communication * now)


def test_the_engine_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = RIMCell(**PAPER_IN_SMALL)
    x, h = torch.randn(3, 2, 10), torch.randn(2, 60)
    o, i = gpu.prepare(layer, x, h, h)
    for name in ("kernel", "graphs", "dense"):
        monkeypatch.setenv("RIMS_GPU", name)
        assert gpu.choose_engine(o, i) is gpu.engine(name)
    monkeypatch.setenv("RIMS_GPU", "reference")
    assert gpu.why_not(layer, x) == "RIMS_GPU=reference"
    monkeypatch.setenv("RIMS_GPU", "fastest")
    with pytest.raises(ValueError, match="RIMS_GPU is 'fastest'; expected one of kernel, graphs"):
        gpu.why_not(layer, x)
    monkeypatch.delenv("RIMS_GPU")
    assert gpu.why_not(layer, x) is None
    for options in (
        {"variant": "official"},
        {"selection": "competition"},
        {"inputs": "slots"},
        {"comm_topk": 2},
    ):
        assert next(iter(options)) in str(gpu.why_not(RIMCell(**PAPER_IN_SMALL, **options), x))
    layer = RIMCell(**{**PAPER_IN_SMALL, "num_active": 6}, input_attention=False)
    assert "input_attention=False" in str(gpu.why_not(layer, x))
