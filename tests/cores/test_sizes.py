"""Sizes that make systems comparable."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rims.cores import CORES, GRUConfig, LSTMConfig, RIMConfig, SLSTMConfig
from rims.cores.base import Core, CoreConfig, tensors
from rims.cores.sizes import matched


@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize(("gates", "config"), [(4, LSTMConfig()), (3, GRUConfig())])
@given(input_size=st.integers(1, 300), units=st.integers(1, 300))
def test_finds_the_size_from_its_parameters(
    gates: int, config: CoreConfig, input_size: int, units: int
) -> None:
    same = replace(config, hidden_size=units)
    assert matched(config, same, input_size, "params").hidden_size == units


def test_takes_the_nearest_parameters() -> None:
    """Counted by the formula 4 h (I + h + 2) over all h, and by torch's own layer."""

    def distance(units: int) -> int:
        return abs(4 * units * (600 + units + 2) - 1_764_900)

    random = torch.get_rng_state()
    found = matched(LSTMConfig(), RIMConfig(), 600, "params").hidden_size
    assert torch.equal(random, torch.get_rng_state())
    assert found == min(range(1, 2000), key=distance)
    assert sum(p.numel() for p in nn.LSTM(600, found).parameters()) == 1_763_360


def test_the_size_of_the_demo() -> None:
    rim = RIMConfig(hidden_size=300, input_key_size=32, input_value_size=64, comm_key_size=16)
    assert matched(LSTMConfig(), rim, 64, "params") == LSTMConfig(hidden_size=202)


@pytest.mark.parametrize(
    ("config", "size"), [(LSTMConfig(), 600), (GRUConfig(), 1200), (SLSTMConfig(), 75), (SLSTMConfig(6), 75)]
)
def test_equal_state_is_exact(config: CoreConfig, size: int) -> None:
    found = matched(config, RIMConfig(), 600, "state")
    assert found == replace(config, **{config.size: size})
    state = found.build(600).initial_state(1)
    assert sum(part.numel() for part in tensors(state)) == 1200


def test_a_rim_may_be_matched_too_and_keeps_its_options() -> None:
    rim = RIMConfig(hidden_size=25, num_rims=5, num_active=2, comm_heads=1)
    found = matched(rim, LSTMConfig(hidden_size=120), 64, "state")
    assert found == replace(rim, hidden_size=120)


@pytest.mark.parametrize("match", ["state", "params"])
@pytest.mark.parametrize("name", sorted(CORES))
def test_every_core_is_matched_or_says_why_not(name: str, match: str) -> None:
    attribute = {"state": "state_size", "params": "num_parameters"}[match]
    wanted = getattr(RIMConfig().build(600), attribute)
    found, why = CORES[name](), ""
    try:
        found = matched(found, RIMConfig(), 600, match)
    except ValueError as error:
        why = str(error)
    if why:
        sides = r"( \w+ \d+ has [\d,]+,?){1,2}"
        assert re.fullmatch(rf"no \w+ gives {name} the .* of rim, {wanted:,}( within 5 %)?:{sides}", why)
        return
    assert replace(found, **{found.size: getattr(CORES[name](), found.size)}) == CORES[name]()
    with torch.device("meta"):
        value = getattr(found.build(600), attribute)
    assert value == pytest.approx(wanted, rel=0.05 if match == "params" else 0, abs=0)


def test_what_is_impossible_names_the_sizes_on_both_sides() -> None:
    sides = "head_size 62 has 992, head_size 63 has 1,008"
    whole = f"^no head_size gives slstm the state size of lstm, 1,000: {sides}$"
    with pytest.raises(ValueError, match=whole):
        matched(SLSTMConfig(), LSTMConfig(hidden_size=500), 600, "state")
    smallest = RIMConfig(hidden_size=6).build(600).num_parameters
    with pytest.raises(ValueError, match=rf"of lstm, 4,832 within 5 %: hidden_size 6 has {smallest:,}$"):
        matched(RIMConfig(), LSTMConfig(hidden_size=2), 600, "params")
    with pytest.raises(ValueError, match=r"lstm, 64 within 5 %: hidden_size 2 has 48, hidden_size 3 has 81$"):
        matched(GRUConfig(), LSTMConfig(hidden_size=2), 4, "params")


class Fixed(Core):
    """State of 8 numbers, whatever its width."""

    def __init__(self, input_size: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size, width)

    def initial_state(self, batch_size: int) -> torch.Tensor:
        return self.linear.weight.new_zeros(batch_size, 8)


@dataclass
class FixedConfig(CoreConfig):
    name: ClassVar[str] = "fixed"
    size: ClassVar[str] = "width"
    width: int = 5

    def build(self, input_size: int) -> Fixed:
        return Fixed(input_size, self.width)


def test_a_state_that_does_not_depend_on_the_size() -> None:
    assert matched(FixedConfig(), LSTMConfig(hidden_size=4), 3, "state") == FixedConfig()
    with pytest.raises(ValueError, match="state size of lstm, 1,200: width 1 has 8, width 2 has 8"):
        matched(FixedConfig(), LSTMConfig(), 3, "state")
    with pytest.raises(ValueError, match=r"state size of lstm, 2: width 1 has 8$"):
        matched(FixedConfig(), LSTMConfig(hidden_size=1), 3, "state")


@pytest.mark.without_shape_checks
def test_an_unknown_match() -> None:
    with pytest.raises(ValueError, match="match is 'flops'; expected 'state' or 'params'"):
        matched(LSTMConfig(), RIMConfig(), 600, "flops")
