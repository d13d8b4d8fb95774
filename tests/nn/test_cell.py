"""RIMCell against loops over the equations, finite differences and the definition of selection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rims import RIMCell
from rims.nn.selection import select_active

from . import brute_force
from .strategies import rim_options


def random_input(cell: RIMCell, batch: int, slots: int) -> torch.Tensor:
    sizes = {"vector": [], "slots": [slots], "private": [cell.num_rims]}[cell.inputs]
    return torch.randn(batch, *sizes, cell.input_size, dtype=torch.float64)


@settings(max_examples=100, deadline=None)
@given(
    options=rim_options(),
    batch=st.integers(1, 3),
    slots=st.integers(1, 4),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_cell_equals_loops_over_the_equations(options, batch, slots, seed, data) -> None:
    torch.manual_seed(seed)
    cell = RIMCell(**options, dtype=torch.float64)
    with torch.no_grad():
        for p in cell.parameters():  # far from the small initial values, where everything is nearly linear
            p.copy_(torch.randn_like(p))
    x = random_input(cell, batch, slots)
    h, c = (torch.randn(batch, cell.hidden_size, dtype=torch.float64) for _ in range(2))
    mask = None
    if cell.inputs != "vector" and data.draw(st.booleans()):
        mask = torch.rand(x.shape[:-1]) < 0.6
    disabled = data.draw(st.sets(st.integers(0, cell.num_rims - 1), max_size=cell.num_rims - 1))

    state = cell(x, (h, c) if cell.cell == "lstm" else h, mask=mask, disabled=sorted(disabled))

    slots_of_x = (x[:, None] if cell.inputs == "vector" else x).numpy()
    expected_h, expected_c, _ = brute_force.step(
        cell, slots_of_x, h.numpy(), c.numpy(), None if mask is None else mask.numpy(), sorted(disabled)
    )
    got_h, got_c = state if cell.cell == "lstm" else (state, c)
    np.testing.assert_allclose(got_h.detach().numpy(), expected_h, rtol=1e-10, atol=1e-12)
    if cell.cell == "lstm":
        np.testing.assert_allclose(got_c.detach().numpy(), expected_c, rtol=1e-10, atol=1e-12)


@pytest.mark.without_shape_checks
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize(
    ("variant", "num_active", "communication"),
    [("paper", 2, True), ("official", 3, True), ("official", 2, False)],
)
@pytest.mark.parametrize("selection", ["null", "competition"])
def test_gradcheck(cell: str, variant: str, num_active: int, communication: bool, selection: str) -> None:
    """Two steps against finite differences, in every input, state and parameter.

    The official variant blocks the gradient of inactive RIMs in communication, on purpose, so finite
    differences can only agree where all are active or none communicates; the recorded arrays check it.
    """
    module = RIMCell(
        2, 6, 3, num_active, cell=cell, variant=variant, selection=selection, input_key_size=3,
        input_value_size=2, input_heads=2, communication=communication, comm_heads=2, comm_key_size=2,
        dtype=torch.float64,
    )  # fmt: skip
    x = torch.randn(2, 1, 2, dtype=torch.float64, requires_grad=True)
    h = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    c = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def run(x, h, c, *values):
        state = (h, c) if cell == "lstm" else h
        for x_t in x:
            state = torch.func.functional_call(module, dict(zip(names, values)), (x_t, state))
        return state

    inputs = (x, h, c, *module.parameters()) if cell == "lstm" else (x, h, c.detach(), *module.parameters())
    assert torch.autograd.gradcheck(run, inputs)


@given(
    rows=st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=5, max_size=5), min_size=1, max_size=4
    ),
    count=st.integers(1, 5),
    disabled=st.sets(st.integers(0, 4), max_size=4),
)
def test_selection_takes_exactly_the_least_and_ties_go_to_the_lower_index(rows, count, disabled) -> None:
    active = select_active(
        torch.tensor(rows), count, torch.tensor([k in disabled for k in range(5)]) if disabled else None
    )
    for row, chosen in zip(rows, active.tolist()):
        allowed = [k for k in range(5) if k not in disabled]
        expected = sorted(allowed, key=lambda k: (row[k], k))[:count]
        assert [k for k in range(5) if chosen[k]] == sorted(expected)


@pytest.mark.without_shape_checks
def test_gru_state_stays_bounded_over_1000_steps_for_any_weights() -> None:
    """A plain residual grew to 2e6 in 128 steps; through the update gate it stays within max(2, |h_0|)."""
    for scale in (1.0, 10.0, 100.0):
        cell = RIMCell(4, 24, 6, 4, cell="gru")
        with torch.no_grad():
            for p in cell.parameters():
                p.mul_(scale)
            h = torch.randn(8, 24)
            bound = max(2.0, h.abs().max().item())
            for _ in range(1000):
                h = cell(torch.randn(8, 4), h)
            assert h.abs().max() <= bound + 1e-4


@pytest.mark.without_shape_checks
@pytest.mark.parametrize("comm_tanh", [False, True])
def test_lstm_state_is_bounded_with_comm_tanh_and_not_without(comm_tanh: bool) -> None:
    """A resting RIM is heard with the sum that it keeps: the plain residual builds sums on sums."""
    torch.manual_seed(0)
    cell = RIMCell(4, 24, 6, 4, comm_tanh=comm_tanh)
    with torch.no_grad():
        for p in cell.parameters():
            p.mul_(10.0)
        h = c = torch.zeros(8, 24)
        for _ in range(1000):
            h, c = cell(torch.randn(8, 4), (h, c))
    assert (h.abs().max() <= 2) == comm_tanh


@pytest.mark.without_shape_checks
def test_official_gru_grows_no_faster_than_its_tanh_allows() -> None:
    """As released: sigmoid * tanh is added at each step, so |h| gains less than 1 a step."""
    cell = RIMCell(4, 24, 6, 4, cell="gru", variant="official")
    h = torch.zeros(8, 24)
    with torch.no_grad():
        for _ in range(1000):
            h = cell(torch.randn(8, 4), h)
    assert h.abs().max() < 10


def test_competition_hears_the_first_input_although_all_rims_tie() -> None:
    """At zero state all margins vanish; the released code then reads nothing and loses the first symbol."""
    cell = RIMCell(4, 24, 6, 4, selection="competition", communication=False)
    first, second = (cell(torch.randn(2, 4))[0] for _ in range(2))
    assert (first - second).abs().max() > 1e-3
    read = cell.input_attention(torch.randn(2, 1, 4), torch.zeros(2, 6, 4))
    torch.testing.assert_close(read.attention[:, 0, :, 1], torch.tensor([[0.25] * 4 + [0.0] * 2] * 2))


def test_scores_are_float32_under_autocast() -> None:
    """Half precision cannot tell RIMs apart whose attention differs by 1e-4 around 0.5."""
    cell = RIMCell(16, 60, 6, 3, comm_heads=1)
    h = 1e-3 * torch.randn(32, 60)
    x = torch.randn(32, 16)
    with torch.autocast("cpu", torch.bfloat16):
        read = cell.input_attention(x[:, None], h.view(32, 6, 10))
    assert read.penalty.dtype == torch.float32
    assert all(len(set(row)) == 6 for row in read.penalty.tolist())


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize(("inputs", "shape"), [("vector", ()), ("slots", (3,)), ("private", (6,))])
def test_a_single_row_is_a_batch_of_one(kind, inputs, shape) -> None:
    """As nn.LSTMCell and nn.GRUCell take it."""
    cell = RIMCell(4, 24, cell=kind, inputs=inputs)
    x, h, c = torch.randn(*shape, 4), torch.randn(24), torch.randn(24)
    options = {} if inputs == "vector" else {"mask": torch.rand(shape) < 0.7}
    batched = {name: mask[None] for name, mask in options.items()}
    alone = cell(x, (h, c) if kind == "lstm" else h, **options)
    row = cell(x[None], hx=(h[None], c[None]) if kind == "lstm" else h[None], **batched)
    for a, b in zip(*([state] if kind == "gru" else state for state in (alone, row))):
        assert torch.equal(a, b[0])
    assert [part.shape for part in (cell(x) if kind == "lstm" else [cell(x)])] == [(24,)] * (
        1 + (kind == "lstm")
    )
    with pytest.raises(ValueError, match=r"h has shape \(23,\); expected \[24\]"):
        cell(x, (h[1:], c) if kind == "lstm" else h[1:])
