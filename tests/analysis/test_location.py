"""Correlations against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rims.analysis import location_correlation

from .test_usage import Recorded, record

STEPS, ROWS, RIMS = 6, 40, 3


@pytest.fixture
def trace() -> Recorded:
    return record(torch.rand(STEPS, ROWS, RIMS) < 0.5)


def test_it_is_pearsons_correlation_at_each_step(trace: Recorded) -> None:
    seen = torch.rand(STEPS, ROWS, RIMS) + 0.5 * trace.active
    found = location_correlation(trace, seen)
    for t in range(STEPS):
        for k in range(RIMS):
            expected = np.corrcoef(trace.active[t, :, k].numpy(), seen[t, :, k].double().numpy())[0, 1]
            assert found[t, k] == pytest.approx(expected, abs=1e-9)
    assert found.mean() > 0.4


def test_a_rim_that_follows_what_it_sees_has_1_and_the_opposite_minus_1(trace: Recorded) -> None:
    torch.testing.assert_close(
        location_correlation(trace, trace.active.float()), torch.ones(STEPS, RIMS).double()
    )
    torch.testing.assert_close(
        location_correlation(trace, 1000.1 - trace.active.float()), -torch.ones(STEPS, RIMS).double()
    )


def test_what_never_varies_has_no_correlation() -> None:
    active = torch.rand(STEPS, ROWS, RIMS) < 0.5
    active[:, :, 0], active[:, :, 1] = True, False
    seen = torch.rand(STEPS, ROWS, RIMS)
    seen[3] = 0.1
    found = location_correlation(record(active), seen)
    assert found[:, :2].isnan().all()
    assert found[3].isnan().all()
    assert not found[[0, 1, 2, 4, 5], 2].isnan().any()


def test_another_shape_is_refused(trace: Recorded) -> None:
    with pytest.raises(ValueError, match=r"seen has shape \(6, 40, 2\); expected \(6, 40, 3\)"):
        location_correlation(trace, torch.rand(STEPS, ROWS, 2))
