"""The Triton kernels against the cell, by Triton's interpreter.

Run by test_kernel.py in a process of its own: the interpreter is chosen when a kernel is defined.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from rims.nn.fast import dense, gpu
from rims.nn.fast.kernel import KernelLoop

from .dense_cases import PAPER_IN_SMALL, Case, assert_equal, cases, errors, outcome

ENGINE = dense.Eager(KernelLoop())
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


@given(cases(max_length=3, max_rim=5))  # a first step, one between, a last
@settings(max_examples=35, deadline=None, derandomize=True)
def test_equals_the_cell(case: Case) -> None:
    assert_equal(case, ENGINE, torch.float32, 1e-4)


@given(cases(max_length=3, max_rim=40))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_equals_the_cell_with_rims_of_several_tiles(case: Case) -> None:
    assert_equal(case, ENGINE, torch.float32, 1e-4)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_equals_the_cell_with_several_programs(cell: str) -> None:
    case = Case({**PAPER_IN_SMALL, "cell": cell}, length=2, batch=19, reset=True, valid=True)
    assert_equal(case, ENGINE, torch.float32, 1e-4)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_is_near_the_cell_under_autocast(cell: str) -> None:
    case = Case({**PAPER_IN_SMALL, "cell": cell}, length=3)
    found = outcome(case, ENGINE, torch.float32, autocast=torch.float16)
    worst = max(errors(found, outcome(case, None, torch.float32)).values())
    assert 1e-5 < worst < 0.03  # half precision is used, and does not hurt


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_nothing_is_kept_without_gradients(cell: str) -> None:
    from rims.nn.cell import RIMCell

    layer = RIMCell(**{**PAPER_IN_SMALL, "cell": cell})
    x, h, c = torch.randn(5, 3, layer.input_size), *torch.randn(2, 3, layer.hidden_size)
    o, i = gpu.prepare(layer, x, h, c)
    wanted = dense.run(o, i, ENGINE)
    with torch.no_grad():
        found = dense.run(o, i, ENGINE)
    assert all(torch.equal(a, b) for a, b in zip(found[:4], wanted[:4]))
    assert ENGINE.forward(o, i, False)[1].gates.shape[0] == 1


def test_nan_stays_in_its_row() -> None:
    from rims.nn.cell import RIMCell

    layer = RIMCell(**PAPER_IN_SMALL)
    x, h, c = torch.randn(4, 3, layer.input_size), *torch.randn(2, 3, layer.hidden_size)
    bad = x.clone()
    bad[1, 1] = torch.nan
    with torch.no_grad():
        good, found = (dense.run(*gpu.prepare(layer, given, h, c), ENGINE) for given in (x, bad))
    others = [0, 2]
    assert torch.equal(found.states[:, others], good.states[:, others])
    assert torch.equal(found.c[others], good.c[others])
    assert found.states[-1, 1].isnan().any()
    assert (found.active.sum(-1) == layer.num_active).all()
