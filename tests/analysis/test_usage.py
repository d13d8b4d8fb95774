"""Usage, switching and co-activation against loops that say what each means."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from rims.analysis import (
    Trace,
    activity,
    activity_by_kind,
    coactivation,
    switching_rate,
    usage,
    usage_by_phase,
)

T, B, K = 7, 3, 4


class Recorded(NamedTuple):
    active: Tensor
    input_attention: Tensor
    communication: Tensor | None


def record(active: Tensor) -> Recorded:
    steps, batch, rims = active.shape
    return Recorded(active, torch.zeros(steps, batch, 1, rims, 2), None)


@pytest.fixture
def trace() -> Recorded:
    return record(torch.rand(T, B, K, generator=torch.Generator().manual_seed(0)) < 0.4)


def test_any_object_with_the_attributes_is_a_trace(trace: Recorded) -> None:
    assert isinstance(trace, Trace)
    assert not isinstance(object(), Trace)


def test_activity_is_the_fraction_of_rows(trace: Recorded) -> None:
    result = activity(trace)
    for t in range(T):
        for k in range(K):
            assert result[t, k] == pytest.approx(sum(bool(trace.active[t, b, k]) for b in range(B)) / B)


def test_usage_is_the_fraction_of_steps(trace: Recorded) -> None:
    result = usage(trace)
    for k in range(K):
        count = sum(bool(trace.active[t, b, k]) for t in range(T) for b in range(B))
        assert result[k] == pytest.approx(count / (T * B))


def test_activity_by_kind_counts_the_kinds_rows(trace: Recorded) -> None:
    kinds = {"a": [True, False, True], "b": [False, True, False], "none": [False] * B}
    result = activity_by_kind(trace, {name: torch.tensor(rows) for name, rows in kinds.items()})
    for name in ("a", "b"):
        rows = [b for b in range(B) if kinds[name][b]]
        for t in range(T):
            for k in range(K):
                count = sum(bool(trace.active[t, b, k]) for b in rows)
                assert result[name][t, k] == pytest.approx(count / len(rows))
    assert result["none"].isnan().all()
    with pytest.raises(ValueError, match=r"kind 'a' is of \(2,\) rows; expected \(3,\)"):
        activity_by_kind(trace, {"a": torch.tensor([True, False])})


def test_usage_by_phase_counts_within_the_span(trace: Recorded) -> None:
    phases = {"first": (0, 2), "rest": (2, T)}
    result = usage_by_phase(trace, phases)
    assert list(result) == ["first", "rest"]
    for name, (start, stop) in phases.items():
        for k in range(K):
            count = sum(bool(trace.active[t, b, k]) for t in range(start, stop) for b in range(B))
            assert result[name][k] == pytest.approx(count / ((stop - start) * B))


def test_switching_rate_counts_changes(trace: Recorded) -> None:
    result = switching_rate(trace)
    for k in range(K):
        count = sum(
            bool(trace.active[t, b, k]) != bool(trace.active[t + 1, b, k])
            for t in range(T - 1)
            for b in range(B)
        )
        assert result[k] == pytest.approx(count / ((T - 1) * B))


def test_coactivation_counts_pairs(trace: Recorded) -> None:
    result = coactivation(trace)
    for i in range(K):
        for j in range(K):
            count = sum(
                bool(trace.active[t, b, i] & trace.active[t, b, j]) for t in range(T) for b in range(B)
            )
            assert result[i, j] == pytest.approx(count / (T * B))
    torch.testing.assert_close(result.diagonal(), usage(trace))


def test_large_traces_are_counted_exactly() -> None:
    """Float32 stops counting at 2**24, which a long evaluation reaches."""
    active = torch.ones(2**13, 2**11 + 1, 1, dtype=torch.bool)
    assert usage(record(active)).item() == 1.0
    assert coactivation(record(active)).item() == 1.0


@pytest.mark.parametrize("span", [(3, 3), (-1, 2), (0, T + 1), (4, 2)])
def test_a_span_that_is_no_span_is_refused(trace: Recorded, span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"phase 'delay' is .* expected steps within \[0, 7\)"):
        usage_by_phase(trace, {"delay": span})


def test_an_empty_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="expected \\[T, B, K\\] with T, B >= 1"):
        usage(record(torch.zeros(0, B, K, dtype=torch.bool)))


def test_one_step_has_no_switch(trace: Recorded) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        switching_rate(record(trace.active[:1]))
