"""Who was active when: activity, usage, switching and co-activation of the RIMs in a trace.

Shapes: T time, B batch, K RIMs, H heads, S input slots. Every result is a float64 fraction between 0 and 1.

Example::

    output, state, trace = core.trace(x)
    usage(trace)                                    # [K]; the mean over RIMs is num_active / num_rims
    usage_by_phase(trace, task.phases())["delay"]   # [K]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class Trace(Protocol):
    """What a traceable core records of one call. Any object with these attributes will do."""

    @property
    def active(self) -> Bool[Tensor, "T B K"]:
        """Whether RIM k was active at step t in row b."""

    @property
    def input_attention(self) -> Float[Tensor, "T B H K S+1"] | None:
        """What RIM k attended to in the input; index 0 of the last axis is the null slot. None when the core
        has no input attention."""

    @property
    def communication(self) -> Float[Tensor, "T B H K K"] | None:
        """What RIM k (axis 3) read from RIM j (axis 4); None when the core has no communication."""


def activity(trace: Trace) -> Float[Tensor, "T K"]:
    """The fraction of rows in which each RIM is active, step by step."""
    return _active(trace).double().mean(1)


def usage(trace: Trace) -> Float[Tensor, " K"]:
    """The fraction of all steps of all rows at which each RIM is active."""
    return _active(trace).double().mean((0, 1))


def usage_by_phase(trace: Trace, phases: Mapping[str, tuple[int, int]]) -> dict[str, Float[Tensor, " K"]]:
    """:func:`usage` within each named half-open span of time steps, as ``Task.phases()`` gives them.

    Raises ValueError for a span that is empty or reaches outside the trace.
    """
    active = _active(trace)
    for name, (start, stop) in phases.items():
        if not 0 <= start < stop <= len(active):
            raise ValueError(
                f"phase {name!r} is [{start}, {stop}); expected steps within [0, {len(active)}), at least one"
            )
    return {name: active[start:stop].double().mean((0, 1)) for name, (start, stop) in phases.items()}


def activity_by_kind(
    trace: Trace, kinds: Mapping[str, Bool[Tensor, " B"]]
) -> dict[str, Float[Tensor, "T K"]]:
    """:func:`activity` over the rows of each named kind, such as a class, as ``Task.kinds()`` gives them; NaN
    for a kind that no row is of. Its mean over time is the kind's usage.

    Raises ValueError for rows of another number than the trace has.
    """
    active = _active(trace)
    for name, rows in kinds.items():
        if rows.shape != active.shape[1:2]:
            raise ValueError(
                f"kind {name!r} is of {tuple(rows.shape)} rows; expected ({active.shape[1]},) as in the trace"
            )
    return {name: active[:, rows].double().mean(1) for name, rows in kinds.items()}


def switching_rate(trace: Trace) -> Float[Tensor, " K"]:
    """The fraction of the T - 1 transitions t -> t + 1 at which each RIM becomes active or becomes inactive.

    A RIM whose activity is a fair coin at each step has rate 0.5; one that is always, or never, active has 0.
    Raises ValueError when the trace has a single step.
    """
    active = _active(trace)
    if len(active) < 2:
        raise ValueError("the trace has 1 step; expected at least 2 to see a switch")
    return (active[1:] != active[:-1]).double().mean((0, 1))


def coactivation(trace: Trace) -> Float[Tensor, "K K"]:
    """The fraction of all steps of all rows at which RIMs i and j are both active.

    The diagonal is :func:`usage`. RIMs chosen independently would have the product of their usages.
    """
    flat = _active(trace).flatten(0, 1).double()
    return flat.T @ flat / len(flat)


def _active(trace: Trace) -> Bool[Tensor, "T B K"]:
    """Refuse the empty trace, whose fractions would be NaN."""
    if trace.active.dim() != 3 or trace.active.shape[0] * trace.active.shape[1] == 0:
        raise ValueError(f"active has shape {tuple(trace.active.shape)}; expected [T, B, K] with T, B >= 1")
    return trace.active
