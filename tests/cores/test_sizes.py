"""Sizes that make systems comparable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rims.cores.sizes import units_for_parameters


@pytest.mark.parametrize(("gates", "layer"), [(4, nn.LSTM), (3, nn.GRU)])
@given(input_size=st.integers(1, 300), units=st.integers(1, 300))
def test_finds_the_size_from_its_parameters(
    gates: int, layer: type[nn.Module], input_size: int, units: int
) -> None:
    parameters = sum(p.numel() for p in layer(input_size, units, device="meta").parameters())
    assert units_for_parameters(gates, input_size, parameters) == units


def test_takes_the_nearest() -> None:
    def distance(units: int) -> int:
        return abs(4 * units * (600 + units + 2) - 1_764_900)

    assert units_for_parameters(4, 600, 1_764_900) == min(range(1, 2000), key=distance)
    assert units_for_parameters(4, 600, 5) == 1
