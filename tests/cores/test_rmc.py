"""The relational memory core against recordings of the released code, loops over its equations and finite
differences; faults of other ports, each shown to be seen by the recordings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rims.cores import RMCConfig, RMCCore
from rims.cores import rmc as module

BOUND = 2e-6


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_rmc" in metafunc.fixturenames:
        folder: Path = metafunc.config.getoption("--golden-dir")
        files = sorted(folder.glob("rmc_*.npz"))
        if not files:
            raise pytest.UsageError(f"--golden-dir {folder} holds no rmc_*.npz")
        metafunc.parametrize("golden_rmc", files, ids=[f.stem for f in files])


def load(path: Path) -> tuple[RMCCore, torch.Tensor, np.ndarray]:
    """The core with the recorded weights, the inputs and the recorded outputs. 3 slots, 2 heads, head size 4,
    key size 5; gate and blocks stand in the file's name."""
    with np.load(path) as file:
        golden = dict(file)
    _, gate, blocks = (part.split("-")[-1] for part in path.stem.split("_"))
    options = {"gate": gate.replace("None", "none"), "num_blocks": int(blocks)}
    core = RMCConfig(num_slots=3, num_heads=2, head_size=4, key_size=5, **options).build(6)

    def numbered(name: str, n: int) -> str:
        return f"weight:{name}_{n}" if n else f"weight:{name}"

    gates = [] if gate == "None" else [core.input_gates, core.memory_gates]
    names = {
        "weight:mlp/linear_0": core.mlp[0],
        "weight:mlp/linear_1": core.mlp[2],
    }
    linears = [core.input, *(qkv[0] for qkv in core.qkv), *gates]
    norms = [
        norm for qkv, *after in zip(core.qkv, core.attention_norm, core.mlp_norm) for norm in (qkv[1], *after)
    ]
    names |= {numbered("linear", n): layer for n, layer in enumerate(linears)}
    names |= {numbered("layer_norm", n): layer for n, layer in enumerate(norms)}
    state = {}
    for name, layer in names.items():
        matrix = isinstance(layer, nn.Linear)
        state[layer.weight] = golden.pop(f"{name}/w").T if matrix else golden.pop(f"{name}/gamma")
        state[layer.bias] = golden.pop(f"{name}/b" if matrix else f"{name}/beta")
    assert set(state) == set(core.parameters())
    with torch.no_grad():
        for parameter, value in state.items():
            assert parameter.shape == value.shape
            parameter.copy_(torch.from_numpy(value))
    inputs, outputs = golden.pop("inputs"), golden.pop("outputs")
    assert not golden, f"not used: {sorted(golden)}"
    return core, torch.from_numpy(inputs), outputs


def error(core: RMCCore, x: torch.Tensor, expected: np.ndarray) -> float:
    with torch.no_grad():
        return float(np.abs(core(x)[0].numpy() - expected).max())


def test_golden_outputs(golden_rmc: Path) -> None:
    core, x, expected = load(golden_rmc)
    assert error(core, x, expected) < BOUND


class NormOverSlots(nn.Module):
    """Layer norm over slots and features jointly."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, x.shape[-2:]) * self.weight + self.bias


def one_mlp_layer(core: RMCCore) -> None:
    core.mlp[2] = core.mlp[0]


def relu_at_the_end(core: RMCCore) -> None:
    core.mlp.append(nn.ReLU())


def norm_over_slots(core: RMCCore) -> None:
    core.mlp_norm[-1] = NormOverSlots(core.mlp_norm[-1])


def no_forget_bias(core: RMCCore) -> None:
    with torch.no_grad():
        core.input_gates.bias.chunk(2)[1].sub_(1.0)


def input_bias(core: RMCCore) -> None:
    with torch.no_grad():
        core.input_gates.bias.chunk(2)[0].add_(1.0)


@pytest.mark.parametrize(
    "fault", [one_mlp_layer, relu_at_the_end, norm_over_slots, no_forget_bias, input_bias]
)
def test_recordings_see_the_faults_of_other_ports(
    fault: Callable[[RMCCore], None], request: pytest.FixtureRequest
) -> None:
    for blocks in (1, 2):
        folder = request.config.getoption("--golden-dir")
        core, x, expected = load(folder / f"rmc_gate-unit_blocks-{blocks}.npz")
        fault(core)
        assert error(core, x, expected) > 100 * BOUND


# --- loops over the equations, in NumPy ---


def layer_norm(v, weight, bias):
    return (v - v.mean()) / np.sqrt(v.var() + 1e-5) * weight + bias


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def softmax(v):
    e = np.exp(v - v.max())
    return e / e.sum()


def numpy_step(config: RMCConfig, w: dict[str, np.ndarray], x: np.ndarray, M: np.ndarray) -> np.ndarray:
    """One row: the memory ``M [S, F]`` after the input ``x [I]``."""
    S, H, V = config.num_slots, config.num_heads, config.head_size
    E = config.key_size or V

    def linear(name, v):
        return w[f"{name}.weight"] @ v + w[f"{name}.bias"]

    def norm(name, v):
        return layer_norm(v, w[f"{name}.weight"], w[f"{name}.bias"])

    xi = linear("input", x)
    rows = [*M, xi]
    for n in range(config.num_blocks):
        qkv = [norm(f"qkv.{n}.1", linear(f"qkv.{n}.0", row)) for row in rows]
        heard = []
        for i in range(len(rows)):
            parts = []
            for a in range(H):
                at = a * (2 * E + V)
                q = qkv[i][at : at + E]
                scores = [q @ other[at + E : at + 2 * E] / np.sqrt(E) for other in qkv]
                p = softmax(np.array(scores))
                parts.append(sum(p[j] * qkv[j][at + 2 * E : at + 2 * E + V] for j in range(len(rows))))
            heard.append(np.concatenate(parts))
        rows = [norm(f"attention_norm.{n}", row + h) for row, h in zip(rows, heard)]
        thought = []
        for row in rows:
            for layer in range(config.mlp_layers):
                row = linear(f"mlp.{2 * layer}", row if layer == 0 else np.maximum(row, 0))
            thought.append(row)
        rows = [norm(f"mlp_norm.{n}", row + t) for row, t in zip(rows, thought)]
    new = np.array(rows[:S])
    if config.gate == "none":
        return new
    for j in range(S):
        gates = linear("input_gates", xi) + linear("memory_gates", np.tanh(M[j]))
        half = len(gates) // 2
        new[j] = sigmoid(gates[:half]) * np.tanh(new[j]) + sigmoid(gates[half:] + 1) * M[j]
    return new


@settings(max_examples=60, deadline=None)
@given(
    config=st.builds(
        RMCConfig,
        num_slots=st.integers(1, 4),
        num_heads=st.integers(1, 3),
        head_size=st.integers(1, 3),
        key_size=st.none() | st.integers(1, 3),
        num_blocks=st.integers(1, 3),
        mlp_layers=st.integers(1, 3),
        gate=st.sampled_from(["unit", "memory", "none"]),
    ),
    seed=st.integers(0, 999),
)
def test_equals_loops_over_the_equations(config: RMCConfig, seed: int) -> None:
    torch.manual_seed(seed)
    core = config.build(3).double()
    with torch.no_grad():
        for p in core.parameters():
            p.copy_(torch.randn_like(p))
    w = {name: p.detach().numpy() for name, p in core.named_parameters()}
    x, reset = torch.randn(4, 2, 3, dtype=torch.float64), torch.rand(4, 2) < 0.3
    start = torch.randn(2, core.num_slots, core.features, dtype=torch.float64)
    output, last = core(x, start, reset)
    for b in range(2):
        M = start[b].numpy()
        for t in range(4):
            if reset[t, b]:
                M = np.array([[float(i == j) for j in range(core.features)] for i in range(core.num_slots)])
            M = numpy_step(config, w, x[t, b].numpy(), M)
            np.testing.assert_allclose(output[t, b].detach().numpy(), M.flatten(), rtol=0, atol=1e-10)
        np.testing.assert_allclose(last[b].detach().numpy(), M, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("gate", "blocks"), [("unit", 1), ("memory", 2), ("none", 2)])
def test_gradcheck(gate: str, blocks: int) -> None:
    """Three steps: in the input, the first state and every parameter."""
    core = RMCConfig(num_slots=2, num_heads=2, head_size=2, key_size=1, num_blocks=blocks, gate=gate).build(2)
    core.double()
    names = [name for name, _ in core.named_parameters()]
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    reset = torch.tensor([[False, False], [False, True], [False, False]])

    def run(x, state, *values):
        return torch.func.functional_call(core, dict(zip(names, values)), (x, state, reset))

    assert torch.autograd.gradcheck(run, (x, state, *core.parameters()), fast_mode=True)


def test_the_gradient_reaches_the_first_state_through_all_steps() -> None:
    core = RMCConfig(num_slots=3, num_heads=2, head_size=4).build(5)
    state = core.initial_state(2).clone().requires_grad_()
    core(torch.randn(10, 2, 5), state)[0][-1].square().sum().backward()
    assert state.grad is not None
    assert (state.grad.flatten(1).norm(dim=1) > 1e-6).all()


# --- sizes, initial values, errors ---


def test_parameters_by_hand() -> None:
    """MLP layers are distinct and shared by the blocks; gate biases are constants."""
    inputs, S, H, V, E, n, m = 7, 3, 2, 5, 4, 2, 3
    F, Q = H * V, H * (2 * E + V)
    trunk = inputs * F + F + n * (F * Q + Q + 2 * Q + 4 * F) + m * (F * F + F)
    for gate, gates in (("unit", 2 * F), ("memory", 2), ("none", 0)):
        config = RMCConfig(
            num_slots=S, num_heads=H, head_size=V, key_size=E, num_blocks=n, mlp_layers=m, gate=gate
        )
        assert config.build(inputs).num_parameters == trunk + 2 * (F * gates + gates)
    assert (module.INPUT_BIAS, module.FORGET_BIAS) == (0.0, 1.0)


def test_default_state_and_flops_by_hand() -> None:
    """Each product with each row that needs it: the last (here the only) block keeps the slots alone."""
    core = RMCConfig().build(50)
    assert core.state_size == core.output_size == 1200
    inputs, S, H, F, Q = 50, 4, 4, 300, 900
    products = inputs * F + (S + 1) * F * Q + 2 * H * S * (S + 1) * 75 + 2 * S * F * F + (S + 1) * F * 2 * F
    assert core.flops_per_step == 2 * products


@pytest.mark.parametrize(("slots", "heads"), [(3, 4), (4, 1)])
def test_the_memory_starts_as_the_identity_cut_or_padded(slots: int, heads: int) -> None:
    core = RMCConfig(num_slots=slots, num_heads=heads, head_size=2).build(5)
    expected = torch.zeros(slots, 2 * heads)
    for i in range(min(slots, 2 * heads)):
        expected[i, i] = 1.0
    assert torch.equal(core.initial_state(3), expected.expand(3, -1, -1))


def test_weights_start_as_released() -> None:
    core = RMCConfig().build(50)
    for layer in core.modules():
        if isinstance(layer, nn.Linear):
            deviation = layer.in_features**-0.5
            assert layer.weight.abs().max() <= 2 * deviation
            # a normal distribution cut at two deviations has a deviation of 0.880
            assert layer.weight.std().item() == pytest.approx(0.8796 * deviation, rel=0.01)
            assert not layer.bias.any()


@pytest.mark.parametrize(
    "option", ["num_slots", "num_heads", "head_size", "key_size", "num_blocks", "mlp_layers"]
)
def test_sizes_below_one_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"^{option} is 0; expected at least 1$"):
        RMCConfig(**{option: 0}).build(5)


@pytest.mark.without_shape_checks
def test_an_unknown_gate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^gate is 'soft'; expected one of 'unit', 'memory', 'none'$"):
        RMCConfig(gate="soft").build(5)
