"""A mean over seeds and how well it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Estimate:
    """A mean, and the half-width of its 95 % interval; a single value has none."""

    mean: float
    half_width: float | None
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent ``values`` with Student's 95 % interval: mean ± t(0.975, n - 1) s / √n.

    Raises ValueError when there are no values.
    """
    if not values:
        raise ValueError("no values to estimate a mean from")
    count = len(values)
    if count == 1:
        return Estimate(float(values[0]), None, 1)
    # stdev refuses NaN and infinity, which a diverged run may well report.
    if any(value != value or abs(value) == float("inf") for value in values):
        return Estimate(fmean(values), float("nan"), count)
    from scipy.special import stdtrit

    return Estimate(fmean(values), float(stdtrit(count - 1, 0.975)) * stdev(values) / count**0.5, count)
