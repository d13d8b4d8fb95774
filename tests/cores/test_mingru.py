"""The minGRU against loops written apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rims.cores import MinGRUConfig, MinGRUCore
from rims.cores.mingru import MinGRULayer


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def loop_layer(gates: np.ndarray, h: np.ndarray, grad: np.ndarray) -> tuple[np.ndarray, ...]:
    """Values, and the gradients of ``(values * grad).sum()`` with respect to gates and h, by hand."""
    z, new = np.split(gates, 2, axis=-1)
    z = sigmoid(z)
    states = [h]
    for t in range(len(z)):
        states.append((1 - z[t]) * states[-1] + z[t] * new[t])
    grad_gates, carried = np.zeros_like(gates), np.zeros_like(h)
    for t in reversed(range(len(z))):
        carried = carried + grad[t]
        grad_gates[t] = np.concatenate(
            [carried * (new[t] - states[t]) * z[t] * (1 - z[t]), carried * z[t]], axis=-1
        )
        carried = carried * (1 - z[t])
    return np.stack(states[1:]), grad_gates, carried


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 2, 7, 64, 1000])
def test_a_layer_equals_a_loop_with_gradients(steps: int, dtype: torch.dtype) -> None:
    """Gates all over (0, 1): the product of what is kept underflows within the longer sequences."""
    layer = MinGRULayer(10, 5, "linear").to(dtype)
    torch.nn.init.eye_(layer.input.weight)
    torch.nn.init.zeros_(layer.input.bias)
    gates = (4 * torch.randn(steps, 3, 10, dtype=dtype)).requires_grad_()
    h = torch.randn(3, 5, dtype=dtype, requires_grad=True)
    grad = torch.randn(steps, 3, 5, dtype=dtype)
    output, last = layer(gates, h, torch.zeros_like(h), None)
    assert torch.equal(last, output[-1])
    found = (output, *torch.autograd.grad(output, (gates, h), grad))
    wanted = loop_layer(*(t.detach().double().numpy() for t in (gates, h, grad)))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for f, w in zip(found, wanted):
        np.testing.assert_allclose(f.detach().double().numpy(), w, rtol=0, atol=tolerance * np.abs(w).max())


def core(input_size: int = 4, hidden_size: int = 6, **options) -> MinGRUCore:
    """A small core in float64, all its parameters at random."""
    made = MinGRUConfig(hidden_size, **options).build(input_size).double()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.7)
    return made


def loop(core: MinGRUCore, x: np.ndarray, reset: np.ndarray, positive: bool) -> tuple[np.ndarray, np.ndarray]:
    """Output and last state, step by step and layer by layer."""
    weights = {name: p.detach().numpy() for name, p in core.named_parameters()}

    def norm(v, name):
        scale = np.sqrt((v * v).mean(-1, keepdims=True) + np.finfo(v.dtype).eps)
        return v / scale * weights[f"{name}.weight"]

    state = np.zeros((x.shape[1], core.num_layers, core.hidden_size))
    outputs = []
    for t, v in enumerate(x):
        state[reset[t]] = 0
        for i in range(core.num_layers):
            sums = norm(v, f"norms.{i}") @ weights[f"layers.{i}.input.weight"].T
            sums += weights[f"layers.{i}.input.bias"]
            z, new = sigmoid(sums[:, : core.hidden_size]), sums[:, core.hidden_size :]
            if positive:
                new = np.where(new >= 0, new + 0.5, sigmoid(new))
            state[:, i] = (1 - z) * state[:, i] + z * new
            v = v + state[:, i] @ weights[f"outputs.{i}.weight"].T + weights[f"outputs.{i}.bias"]
        outputs.append(norm(v, "last_norm"))
    return np.stack(outputs), state


@pytest.mark.parametrize("steps", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("candidate", ["linear", "positive"])
def test_equals_a_loop(steps: int, candidate: str) -> None:
    made = core(candidate=candidate, num_layers=2)
    x, reset = torch.randn(steps, 3, 4, dtype=torch.float64), torch.rand(steps, 3) < 0.1
    output, state = made(x, reset=reset)
    wanted, last = loop(made, x.numpy(), reset.numpy(), candidate == "positive")
    np.testing.assert_allclose(output.detach().numpy(), wanted, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(state.detach().numpy(), last, rtol=1e-10, atol=1e-10)
    single, _ = made.float()(x.float(), reset=reset)
    np.testing.assert_allclose(single.detach().numpy(), wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("candidate", ["linear", "positive"])
def test_gradients_equal_finite_differences(candidate: str) -> None:
    made = core(2, 2, candidate=candidate, num_layers=2)
    names = [name for name, _ in made.named_parameters()]
    reset = torch.tensor([[False, False], [False, True], [False, False], [True, False]])

    def run(x, state, *parameters):
        return torch.func.functional_call(made, dict(zip(names, parameters)), (x, state, reset))

    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, state, *made.parameters()))


def test_a_reset_cuts_off_nan_in_the_middle_of_a_sequence() -> None:
    made = core()
    x, reset = torch.randn(9, 2, 4, dtype=torch.float64), torch.zeros(9, 2, dtype=torch.bool)
    reset[5, 0] = True
    clean, _ = made(x, reset=reset)
    x[2, 0] = torch.nan
    output, _ = made(x, reset=reset)
    assert output[2:5, 0].isnan().all()
    torch.testing.assert_close(output[5:], clean[5:])
    torch.testing.assert_close(output[:, 1], clean[:, 1])


def test_memory_of_a_thousand_steps() -> None:
    """A gate that is shut keeps what was stored; in float32 as well."""
    made = core(num_layers=1).float()
    with torch.no_grad():
        made.layers[0].input.weight[:6] = 0
        made.layers[0].input.bias[:6] = -1e3
    state = torch.randn(2, 1, 6)
    assert torch.equal(made(torch.randn(1000, 2, 4), state)[1], state)


def test_sizes_by_hand() -> None:
    """In each layer gate, candidate and the way out, with biases, and a norm; one more norm at the end."""
    inputs, H, L = 7, 5, 2
    made = MinGRUConfig(H, L).build(inputs)
    matrices = L * 3 * inputs * H
    assert made.num_parameters == matrices + L * (2 * H + inputs + inputs) + inputs
    assert made.flops_per_step == 2 * matrices
    assert made.state_size == L * H


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0; expected at least 1"),
        ({"num_layers": 0}, "num_layers is 0; expected at least 1"),
        ({"candidate": "tanh"}, "candidate is 'tanh'; expected 'linear' or 'positive'"),
    ],
)
@pytest.mark.without_shape_checks
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MinGRUConfig(**options).build(4)
