"""The Neural Turing Machine: recorded numbers, a NumPy loop, finite differences, known faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from rims.cores import NTMConfig, NTMCore
from rims.cores.ntm import address, write

INPUT = 3


def small(**options: object) -> NTMCore:
    sizes = {"hidden_size": 6, "output_size": 4, "memory_slots": 5, "memory_width": 3}
    return NTMConfig(**{**sizes, **options}).build(INPUT).double()


def test_addressing_reading_and_writing_equal_the_recording(pytestconfig: pytest.Config) -> None:
    with np.load(pytestconfig.getoption("--golden-dir") / "ntm_addressing.npz") as file:
        golden = {name: torch.from_numpy(array) for name, array in file.items()}
    memory, weights = golden["memory0"].mT, golden["weighting0"][:, None]
    for t in range(len(golden["read"])):
        told = [golden[name][t][:, None] for name in ("key", "strength", "gate", "shift", "sharpening")]
        weights = address(memory, weights, *told)
        read = memory @ weights.mT
        memory = write(memory, weights, golden["erase"][t][:, None], golden["add"][t][:, None])
        for found, name in ((weights[:, 0], "weighting"), (read[..., 0], "read"), (memory.mT, "memory")):
            torch.testing.assert_close(found, golden[name][t], rtol=0, atol=2e-6)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def loop(core: NTMCore, x: np.ndarray, reset: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The equations of the paper for one row, ``x [T, I]``; its output and memory ``[N, W]`` at each step."""
    p = {name: tensor.numpy(force=True) for name, tensor in core.state_dict().items()}
    R, (K, slots), taps = core.num_reads, p["initial_logits"].shape, core.shapes[-1][1]
    outputs, memories = [], []
    for t in range(len(x)):
        if t == 0 or reset[t]:
            h, c = p["initial_h"], p["initial_c"]
            reads = p["initial_reads"].reshape(R, -1)
            weights = [softmax(logits) for logits in p["initial_logits"]]
            memory = np.full((slots, reads.shape[1]), 1e-6)
        gates = p["input_gates.weight"] @ x[t] + p["input_gates.bias"]
        gates = gates + p["state_gates.weight"] @ np.concatenate([*reads, h])
        i, f, candidate, o = gates.reshape(4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(candidate)
        h = sigmoid(o) * np.tanh(c)

        told = np.clip(p["heads.weight"] @ h + p["heads.bias"], -core.clip, core.clip)
        ends = np.cumsum([a * b for a, b in core.shapes])[:-1]
        keys, adds, erases, gates, strengths, sharpenings, shifts = (
            part.reshape(shape) for part, shape in zip(np.split(told, ends), core.shapes)
        )
        for k in range(K):
            cosines = [
                keys[k] @ slot / np.sqrt((keys[k] @ keys[k] + 1e-12) * (slot @ slot + 1e-12))
                for slot in memory
            ]
            content = softmax(np.log1p(np.exp(strengths[k])) * np.array(cosines))
            gated = sigmoid(gates[k]) * content + (1 - sigmoid(gates[k])) * weights[k]
            shifted = np.zeros(slots)
            for n in range(slots):
                for tap, s in enumerate(softmax(shifts[k])):  # tap 0: one slot on (or more)
                    shifted[n] += s * gated[(n - taps // 2 + tap) % slots]
            sharp = shifted ** (1 + np.log1p(np.exp(sharpenings[k])))
            weights[k] = sharp / sharp.sum()
        reads = [weights[k] @ memory for k in range(R)]
        for k in range(R, K):
            memory = memory * (1 - np.outer(weights[k], sigmoid(erases[k - R])))
        for k in range(R, K):
            memory = memory + np.outer(weights[k], adds[k - R])
        outputs.append(p["out.weight"] @ np.concatenate([h, *reads]) + p["out.bias"])
        memories.append(memory)
    return np.stack(outputs), memories


@pytest.mark.parametrize(
    "options",
    [{}, {"num_reads": 2, "num_writes": 3}, {"shift_taps": 5}, {"clip": 0.1}],
    ids=["default", "heads", "shift", "clip"],
)
def test_equals_a_loop_over_the_equations(options: dict[str, object]) -> None:
    core = small(**options)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.mul_(2)  # far from where everything is nearly linear
    x, reset = torch.randn(7, 4, INPUT, dtype=torch.float64), torch.rand(7, 4) < 0.2
    output, state = core(x, reset=reset)
    for row in range(4):
        expected, memories = loop(core, x[:, row].numpy(), reset[:, row].numpy())
        np.testing.assert_allclose(output[:, row].detach(), expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(state.memory[row].detach().T, memories[-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"num_reads": 2, "num_writes": 2}], ids=["default", "heads"])
def test_gradients_equal_finite_differences(options: dict[str, object]) -> None:
    core = small(hidden_size=3, output_size=2, memory_slots=3, memory_width=2, **options)
    names, parameters = zip(*core.named_parameters())
    reset = torch.tensor([[False, False], [False, False], [True, False]])

    def run(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        output, state = functional_call(core, dict(zip(names, parameters)), (x, None, reset))
        return output, *state

    x = torch.randn(3, 2, INPUT, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


def test_a_head_moves_on_by_the_first_tap_and_round_the_circle() -> None:
    memory, key = torch.zeros(1, 2, 4), torch.ones(1, 1, 2)
    here = torch.tensor([[[0.0, 0.0, 0.0, 1.0]]])
    for tap, there in ((0, 0), (1, 3), (2, 2)):
        shift = torch.eye(3)[tap].view(1, 1, 3)
        told = (torch.ones(1, 1, 1), torch.zeros(1, 1, 1), shift, torch.ones(1, 1, 1))
        moved = address(memory, here, key, *told)
        assert torch.equal(moved[0, 0].round(decimals=6), torch.eye(4)[there])


def test_all_heads_erase_before_any_adds() -> None:
    """Two heads on one slot that holds 1: both erase everything, then 2 and 3 are added."""
    here = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    memory = write(torch.ones(1, 1, 2), here, torch.ones(1, 2, 1), torch.tensor([[[2.0], [3.0]]]))
    assert memory.tolist() == [[[5.0, 1.0]]]


def test_a_fresh_machine_tells_its_slots_apart() -> None:
    """Weights start at a distribution, and not at an equal one, from which no slot could ever differ."""
    core = NTMConfig().build(INPUT)
    state = core.initial_state(2)
    assert state.weights.shape == (2, 2, 128)
    torch.testing.assert_close(state.weights.sum(-1), torch.ones(2, 2))
    assert (state.weights > 0).all()
    assert (state.memory == 1e-6).all()
    assert state.reads.any()
    _, state = core(torch.randn(3, 2, INPUT))
    assert (state.memory.std(-1) > 1e-3 * state.memory.abs().mean(-1)).all()


def test_it_starts_by_remembering() -> None:
    """Forget biases start at 1, the others near 0; the controller at 0, reads and logits at random."""
    core = NTMConfig().build(INPUT)
    biases = core.input_gates.bias.view(4, 100)
    assert (biases[1] == 1).all()
    assert (biases[[0, 2, 3]].abs() < INPUT**-0.5).all()
    state = core.initial_state(1)
    assert not state.h.any()
    assert not state.c.any()
    assert core.initial_logits.std().item() == pytest.approx(0.2, rel=0.2)
    assert core.initial_reads.std().item() == pytest.approx(1, rel=0.6)


def test_sharpening_of_spread_weights_does_not_vanish() -> None:
    """(1 / 128)^21 is no float32: normalising the powers themselves would divide zero by zero."""
    spread = torch.full((1, 1, 128), 1 / 128)
    told = [torch.tensor(v).view(1, 1, -1) for v in ([20.0], [0.0], [0.0, 1.0, 0.0], [21.0])]
    sharp = address(torch.full((1, 3, 128), 1e-6), spread, torch.ones(1, 1, 3), *told)
    torch.testing.assert_close(sharp, spread)


def test_extreme_heads_have_finite_gradients() -> None:
    core = NTMConfig(memory_slots=16).build(INPUT)
    with torch.no_grad():
        core.heads.weight.mul_(1e4)
    x = torch.randn(20, 4, INPUT)
    output, _ = core(x)
    output.square().sum().backward()
    assert output.isfinite().all()
    assert all(p.grad.isfinite().all() for p in core.parameters())


def test_blank_vectors_and_weights_of_zero_have_finite_gradients() -> None:
    weights = torch.eye(5)[:1, None]
    told = [torch.tensor(v).view(1, 1, -1) for v in ([0.0] * 3, [2.0], [0.0], [0.0, 1.0, 0.0], [3.0])]
    inputs = [part.requires_grad_() for part in (torch.zeros(1, 3, 5), weights, *told)]
    address(*inputs).square().sum().backward()
    assert all(part.grad.isfinite().all() for part in inputs)


def test_sizes_by_hand() -> None:
    inputs, H, Y, N, W = 8, 100, 100, 128, 20
    core = NTMConfig().build(inputs)
    heads = 2 * W + 2 * W + 2 * (3 + 3)  # keys, erase and add; strength, gate, sharpening and taps
    matrices = 4 * H * (inputs + W + H) + heads * H + Y * (H + W)
    assert core.num_parameters == matrices + 4 * H + heads + Y + 2 * H + W + 2 * N
    assert core.flops_per_step == 2 * (matrices + 2 * N * W + N * W)  # both heads look, one reads
    assert core.state_size == 2 * H + W + 2 * N + N * W
    assert NTMConfig(memory_slots=40, hidden_size=150).build(inputs).state_size == 1200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0; expected at least 1"),
        ({"num_writes": 0}, "num_writes is 0; expected at least 1"),
        ({"shift_taps": 4}, "shift_taps is 4; expected an odd number from 3 to memory_slots, which is 128"),
        ({"shift_taps": 1}, "shift_taps is 1; expected an odd number from 3"),
        ({"memory_slots": 2}, "shift_taps is 3; expected an odd number from 3 to memory_slots, which is 2"),
        ({"clip": 0.0}, "clip is 0.0; expected above 0"),
    ],
)
def test_config_errors_name_the_option(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NTMConfig(**options).build(INPUT)
