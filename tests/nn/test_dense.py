"""The dense computation equals the cell, step by step, in values and every gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from rims.nn.fast import dense

from .dense_cases import Case, cases, errors, outcome

ENGINE = dense.Eager(dense.TorchLoop())


def assert_equal(case: Case, engine: dense.Engine, dtype: torch.dtype, tolerance: float) -> None:
    found, wanted = outcome(case, engine, dtype), outcome(case, None, dtype)
    assert torch.equal(found["active"], wanted["active"])
    worst = {name: error for name, error in errors(found, wanted).items() if not error <= tolerance}
    assert not worst


@given(cases())
@settings(max_examples=150, deadline=None)
def test_equals_the_cell_in_float64(case: Case) -> None:
    assert_equal(case, ENGINE, torch.float64, 1e-10)
