"""Intervals against tables of Student's t and hand arithmetic."""

from __future__ import annotations

import math

import pytest

from rims.report.statistics import Estimate, estimate


def test_one_value_has_no_interval() -> None:
    assert estimate([0.5]) == Estimate(0.5, None, 1)


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.7062), (3, 4.30265), (5, 2.77645), (11, 2.22814)])
def test_the_interval_is_students(count: int, quantile: float) -> None:
    """The quantiles are those printed in statistical tables for a two-sided 95 % interval."""
    values = [float(i) for i in range(count)]
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    found = estimate(values)
    assert found.mean == pytest.approx(mean)
    assert found.half_width == pytest.approx(quantile * deviation / math.sqrt(count), rel=1e-5)
    assert found.count == count


def test_a_diverged_seed_is_not_hidden() -> None:
    found = estimate([1.0, math.nan])
    assert math.isnan(found.mean)
    assert found.half_width is not None
    assert math.isnan(found.half_width)


def test_no_values_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate([])
