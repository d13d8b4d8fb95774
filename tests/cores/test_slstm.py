"""The sLSTM against a loop over the paper's equations without the stabiliser, number by number."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch

from rims.cores import SLSTMConfig, SLSTMCore
from rims.cores.base import tensors
from rims.cores.slstm import SLSTMState


def core(forget_gate: str, scale: float = 1.0, head_size: int = 2, num_heads: int = 3) -> SLSTMCore:
    """A small core whose weights, biases included, are normal numbers times ``scale``."""
    made = SLSTMConfig(head_size, num_heads, forget_gate).build(4).double()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.7 * scale)
    return made


def loop(core: SLSTMCore, x: torch.Tensor, number: type) -> list[list[list[float]]]:
    """h [T, B, H] by equations 8 to 14 as they stand, in floats or decimals, one unit at a time."""
    exp = math.exp if number is float else Decimal.exp

    def sigmoid(v):
        return 1 / (1 + exp(-v))

    def tanh(v):
        return 2 * sigmoid(2 * v) - 1

    heads, size = core.num_heads, core.head_size
    weight, bias, recurrent, x = (
        [[[number(v) for v in row] for row in rows] for rows in array.detach().tolist()]
        for array in (
            core.input.weight.view(heads * 4, size, -1),
            core.input.bias.view(1, heads * 4, size),
            core.recurrent,
            x,
        )
    )
    outputs = []
    h, c, n = ([[number(0)] * (heads * size) for _ in x[0]] for _ in range(3))
    for rows in x:
        before = h
        h = [[number(0)] * (heads * size) for _ in rows]
        for b, row in enumerate(rows):
            for head in range(heads):
                for unit in range(size):
                    z, i, f, o = (
                        sum(w * v for w, v in zip(weight[head * 4 + gate][unit], row))
                        + bias[0][head * 4 + gate][unit]
                        + sum(
                            before[b][head * size + u] * recurrent[head][u][gate * size + unit]
                            for u in range(size)
                        )
                        for gate in range(4)
                    )
                    f = exp(f) if core.forget_gate == "exp" else sigmoid(f)
                    k = head * size + unit
                    c[b][k] = f * c[b][k] + exp(i) * tanh(z)
                    n[b][k] = f * n[b][k] + exp(i)
                    h[b][k] = sigmoid(o) * c[b][k] / n[b][k]
        outputs.append([[float(v) for v in row] for row in h])
    return outputs


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_equals_the_unstabilised_equations(forget_gate: str) -> None:
    made, x = core(forget_gate), torch.randn(12, 3, 4, dtype=torch.float64)
    expected = torch.tensor(loop(made, x, float), dtype=torch.float64)
    torch.testing.assert_close(made(x)[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_gates_far_beyond_what_an_exponential_holds(forget_gate: str, dtype: torch.dtype) -> None:
    """Sums of some thousand: exp overflows in floats, not in decimals, which the stabilised core equals."""
    made, x = core(forget_gate, scale=1000), torch.randn(8, 2, 4, dtype=torch.float64)
    with pytest.raises((OverflowError, ZeroDivisionError)):
        loop(made, x, float)
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 60, 10**12, -(10**12)
        expected = torch.tensor(loop(made, x, Decimal), dtype=torch.float64)
    output, state = made.to(dtype)(x.to(dtype))
    for part in (output, *tensors(state)):
        assert part.isfinite().all()
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in made.parameters())
    if dtype == torch.float64:
        torch.testing.assert_close(output, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("first", [-1e4, 1e4])
def test_the_first_input_gate_may_be_anything(first: float) -> None:
    """From an empty memory h_1 = sigmoid(o) tanh(z), whatever i and f."""
    made = core("sigmoid")
    with torch.no_grad():
        made.input.bias.view(3, 4, 2)[:, 1:3] = first
    x = torch.randn(1, 5, 4, dtype=torch.float64)
    output, state = made(x)
    z, _, _, o = made.input(x)[0].view(5, 3, 4, 2).unbind(2)
    torch.testing.assert_close(output[0].view(5, 3, 2), torch.sigmoid(o) * torch.tanh(z))
    assert torch.equal(state.n, torch.ones_like(state.n))


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_gradients_equal_finite_differences(forget_gate: str) -> None:
    made = core(forget_gate, head_size=1, num_heads=2)
    names = [name for name, _ in made.named_parameters()]
    reset = torch.tensor([[False, False], [False, True], [False, False], [True, False]])

    def run(x, h, c, n, m, *parameters):
        output, state = torch.func.functional_call(
            made, dict(zip(names, parameters)), (x, SLSTMState(h, c, n, m), reset)
        )
        return output, *tensors(state)

    x = torch.randn(4, 2, 4, dtype=torch.float64, requires_grad=True)
    _, state = made(torch.randn(3, 2, 4, dtype=torch.float64))
    state = [part.detach().requires_grad_() for part in tensors(state)]
    assert torch.autograd.gradcheck(run, (x, *state, *made.parameters()))


def test_a_unit_hears_its_own_head_alone() -> None:
    made = core("sigmoid")
    x = torch.randn(1, 2, 4, dtype=torch.float64)
    _, state = made(torch.randn(3, 2, 4, dtype=torch.float64))
    h = state.h.clone()
    h[:, 1] += 1
    change = made(x, state._replace(h=h))[0] - made(x, state)[0]
    heads = change.view(2, 3, 2).abs().amax((0, 2))
    assert heads[1] > 1e-3
    assert not heads[[0, 2]].any()


def test_memory_is_long_at_first() -> None:
    """Forget gates start between sigmoid(3) and sigmoid(6) in every head, with a head of one unit too."""
    for head_size in (1, 5):
        bias = SLSTMConfig(head_size, 2).build(4).input.bias.view(2, 4, head_size)
        torch.testing.assert_close(bias[:, 2], torch.linspace(3, 6, head_size).expand(2, -1))
        assert not bias[:, [0, 1, 3]].any()


def test_sizes_by_hand() -> None:
    """A unit is reached by the input and by its own head, four times each."""
    inputs, N, D = 7, 3, 5
    core = SLSTMConfig(D, N).build(inputs)
    matrices = 4 * N * D * (inputs + D)
    assert core.num_parameters == matrices + 4 * N * D
    assert core.flops_per_step == 2 * matrices
    assert core.state_size == 4 * N * D


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_size": 0}, "head_size is 0; expected at least 1"),
        ({"num_heads": 0}, "num_heads is 0; expected at least 1"),
        ({"forget_gate": "relu"}, "forget_gate is 'relu'; expected 'sigmoid' or 'exp'"),
    ],
)
@pytest.mark.without_shape_checks
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SLSTMConfig(**options).build(4)
