"""The recurrent entity network against loops over its equations and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rims.cores import EntNetConfig, EntNetCore


def numpy_step(core: EntNetCore, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """One row: the slots ``h [S, D]`` after the input ``x [I]``."""
    w = {name: p.detach().numpy() for name, p in core.named_parameters()}
    s = w["input.weight"] @ x + w["input.bias"]
    new = np.empty_like(h)
    for j in range(len(h)):
        key = w["keys"][j]
        gate = 1 / (1 + np.exp(-(s @ (h[j] + key) + w["gate_bias"][j])))
        candidate = w["from_state.weight"] @ h[j] + w["from_input.weight"] @ s + w["from_input.bias"]
        candidate = candidate + w["from_key.weight"] @ key
        for d in range(h.shape[1]):
            if candidate[d] < 0:
                candidate[d] *= w["slope"][d]
        moved = h[j] + gate * candidate
        norm = np.sqrt((moved**2).sum())
        new[j] = moved / (norm if norm > 0 else 1.0)
    return new


@settings(max_examples=60, deadline=None)
@given(
    slots=st.integers(1, 4),
    size=st.integers(1, 4),
    given_state=st.booleans(),
    seed=st.integers(0, 999),
)
def test_equals_loops_over_the_equations(slots: int, size: int, given_state: bool, seed: int) -> None:
    torch.manual_seed(seed)
    core = EntNetConfig(slots, size).build(3).double()
    with torch.no_grad():
        for p in core.parameters():
            p.copy_(torch.randn_like(p))
    x, reset = torch.randn(6, 2, 3, dtype=torch.float64), torch.rand(6, 2) < 0.3
    start = torch.randn(2, slots, size, dtype=torch.float64)
    output, last = core(x, start if given_state else None, reset)
    keys = core.keys.detach().numpy()
    for b in range(2):
        h = start[b].numpy() if given_state else keys
        for t in range(6):
            h = numpy_step(core, x[t, b].numpy(), keys if reset[t, b] else h)
            np.testing.assert_allclose(output[t, b].detach().numpy(), h.flatten(), rtol=0, atol=1e-10)
        np.testing.assert_allclose(last[b].detach().numpy(), h, rtol=0, atol=1e-10)


def test_gradcheck() -> None:
    """Three steps: in the input, the first state and every parameter, the keys by every way they take."""
    core = EntNetConfig(num_slots=2, slot_size=3).build(2).double()
    names = [name for name, _ in core.named_parameters()]
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    reset = torch.tensor([[False, False], [False, True], [False, False]])

    def run(x, state, *values):
        return torch.func.functional_call(core, dict(zip(names, values)), (x, state, reset))

    def run_from_none(x, *values):
        return torch.func.functional_call(core, dict(zip(names, values)), (x,))

    with torch.no_grad():
        core.slope.copy_(torch.tensor([0.3, 1.5, -0.5]))  # a kink that is seen
    assert torch.autograd.gradcheck(run, (x, state, *core.parameters()), fast_mode=True)
    assert torch.autograd.gradcheck(run_from_none, (x, *core.parameters()), fast_mode=True)


def test_the_first_state_is_the_keys_and_gradients_reach_them_by_it_alone() -> None:
    """Also after a reset; with W and s at zero there is no other way."""
    core = EntNetConfig(num_slots=3, slot_size=4).build(5)
    assert torch.equal(core.initial_state(2), core.keys.expand(2, -1, -1))
    with torch.no_grad():
        core.from_key.weight.zero_()
        core.input.weight.zero_()
        core.input.bias.zero_()
    x = torch.randn(4, 2, 5)
    for reset, steps in ((None, 4), (torch.tensor([[False] * 2, [False] * 2, [True] * 2, [False] * 2]), 2)):
        core.keys.grad = None
        core(x, reset=reset)[0][-1].sum().backward()
        after_resets = core.keys.grad
        core.keys.grad = None
        core(x[-steps:])[0][-1].sum().backward()
        assert core.keys.grad.any()
        torch.testing.assert_close(after_resets, core.keys.grad, rtol=1e-5, atol=1e-6)
    core.keys.grad = None
    core(x, core.initial_state(2).detach())[0].sum().backward()
    assert not core.keys.grad.any()


def test_slots_have_norm_one_and_a_norm_of_zero_is_no_division() -> None:
    core = EntNetConfig(num_slots=3, slot_size=4).build(5)
    _, state = core(torch.randn(6, 2, 5))
    torch.testing.assert_close(state.norm(dim=-1), torch.ones(2, 3))
    with torch.no_grad():
        for p in core.parameters():
            p.zero_()
    start = torch.zeros(2, 3, 4, requires_grad=True)
    output, _ = core(torch.randn(6, 2, 5), start)
    assert not output.any()
    output.sum().backward()
    assert start.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in core.parameters())


def test_parameters_start_as_released() -> None:
    core = EntNetConfig().build(600)
    for name, p in core.named_parameters():
        if name == "slope":
            assert torch.equal(p, torch.ones(60))
        else:
            assert p.std().item() == pytest.approx(0.1, rel=4 / (2 * p.numel()) ** 0.5), name
            assert abs(p.mean().item()) < 0.4 / p.numel() ** 0.5, name


def test_parameters_state_and_flops_by_hand() -> None:
    """One U, V, W for all slots; a gate bias for each slot; a slope for each number of a slot."""
    core = EntNetConfig().build(600)
    inputs, S, D = 600, 20, 60
    assert core.state_size == core.output_size == S * D == 1200
    assert core.num_parameters == inputs * D + D + S * D + S + 3 * D * D + D + D
    assert core.flops_per_step == 2 * (inputs * D + D * D + S * D * D + 2 * S * D)


@pytest.mark.parametrize("option", ["num_slots", "slot_size"])
def test_sizes_below_one_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"^{option} is 0; expected at least 1$"):
        EntNetConfig(**{option: 0}).build(5)
