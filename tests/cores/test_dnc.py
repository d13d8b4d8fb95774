"""The Differentiable Neural Computer: recorded numbers, a NumPy loop, finite differences, known faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from rims.cores import DNCConfig, DNCCore
from rims.cores.dnc import DNCState, allocation, follow

INPUT = 3
NAMES = {
    "write_keys": "write key",
    "write_vectors": "value",
    "erase_vectors": "erase",
    "read_keys": "read key",
    "write_strengths": "write strength",
    "read_strengths": "read strength",
    "free_gate": "free gate",
    "allocation_gate": "allocation gate",
    "write_gate": "write gate",
    "read_mode": "modes",
}
"""The parts of ``interface``, in order, by their names in the recording."""


def small(**options: object) -> DNCCore:
    sizes = {"hidden_size": 6, "output_size": 4, "memory_slots": 5, "memory_width": 3, "num_reads": 2}
    return DNCConfig(**{**sizes, **options}).build(INPUT).double()


@pytest.mark.parametrize("writes", [1, 2])
def test_outputs_and_memory_equal_the_recording(writes: int, pytestconfig: pytest.Config) -> None:
    with np.load(pytestconfig.getoption("--golden-dir") / f"dnc_writes-{writes}.npz") as file:
        golden = {name.removeprefix("weight:"): torch.from_numpy(array) for name, array in file.items()}
    core = DNCCore(7, 8, 5, memory_slots=6, memory_width=4, num_reads=2, num_writes=writes)

    def ours(gates: Tensor) -> Tensor:
        """The recorded order of the gates' columns is i, j, f, o; ours is i, f, j, o."""
        return gates.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].flatten(-2).t()

    golden["lstm/b_gates"][16:24] += 1  # which the recorded code adds at each step
    weight = ours(golden["lstm/w_gates"])
    access = [[golden[f"memory_access/{name}/{part}"] for name in NAMES] for part in ("w", "b")]
    core.load_state_dict(
        {
            "input_gates.weight": weight[:, :7],
            "input_gates.bias": ours(golden["lstm/b_gates"][None])[:, 0],
            "state_gates.weight": weight[:, 7:],
            "interface.weight": torch.cat(access[0], 1).t(),
            "interface.bias": torch.cat(access[1]),
            "out.weight": golden["output_linear/w"].t(),
            "out.bias": golden["output_linear/b"],
        }
    )
    output, state = core(golden["inputs"])
    torch.testing.assert_close(output, golden["outputs"], rtol=0, atol=2e-6)
    torch.testing.assert_close(state.memory, golden["final_memory"], rtol=0, atol=2e-6)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def allocate(usage: np.ndarray) -> np.ndarray:
    """The paper's free list, slot by slot, with the released code's epsilon."""
    free = 1 - (1e-6 + (1 - 1e-6) * usage)
    weights, in_use = np.zeros_like(usage), 1.0
    for slot in sorted(range(len(usage)), key=lambda n: -free[n]):  # stable
        weights[slot] = free[slot] * in_use
        in_use *= 1 - free[slot]
    return weights


def look_up(memory: np.ndarray, key: np.ndarray, strength: float) -> np.ndarray:
    def length(v: np.ndarray) -> float:
        return np.sqrt(v @ v + 1e-6)

    cosines = [key @ slot / (length(key) * length(slot) + 1e-6) for slot in memory]
    return softmax(strength * np.array(cosines))


def loop(core: DNCCore, x: np.ndarray, reset: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The equations for one row, ``x [T, I]``: its outputs, and what it carries after the last step."""
    p = {name: tensor.numpy(force=True) for name, tensor in core.state_dict().items()}
    H, N, W, R, K = core.hidden_size, core.memory_slots, core.memory_width, core.num_reads, core.num_writes
    floor = 1.0 if core.strength == "oneplus" else 0.0
    outputs = []
    for t in range(len(x)):
        if t == 0 or reset[t]:
            h, c, reads, memory, usage = (
                np.zeros(H),
                np.zeros(H),
                np.zeros((R, W)),
                np.zeros((N, W)),
                np.zeros(N),
            )
            link, precedence = np.zeros((K, N, N)), np.zeros((K, N))
            read_weights, write_weights = np.zeros((R, N)), np.zeros((K, N))
        gates = p["input_gates.weight"] @ x[t] + p["input_gates.bias"]
        gates = gates + p["state_gates.weight"] @ np.concatenate([*reads, h])
        i, f, g, o = gates.reshape(4, H)
        c = np.clip(sigmoid(f) * c + sigmoid(i) * np.tanh(g), -core.clip, core.clip)
        h = sigmoid(o) * np.tanh(c)

        told = p["interface.weight"] @ h + p["interface.bias"]
        ends = np.cumsum([a * b for a, b in core.shapes])[:-1]
        part = {
            name: piece.reshape(shape)
            for name, piece, shape in zip(NAMES.values(), np.split(told, ends), core.shapes)
        }
        for n in range(N):
            untouched = kept = 1.0
            for k in range(K):
                untouched *= 1 - write_weights[k, n]
            for r in range(R):
                kept *= 1 - sigmoid(part["free gate"][r, 0]) * read_weights[r, n]
            usage[n] = (usage[n] + (1 - usage[n]) * (1 - untouched)) * kept

        taken = usage.copy()
        for k in range(K):
            to_free, write_gate = sigmoid(part["allocation gate"][k, 0]), sigmoid(part["write gate"][k, 0])
            strength = floor + np.log1p(np.exp(part["write strength"][k, 0]))
            free = allocate(taken)
            found = look_up(memory, part["write key"][k], strength)
            write_weights[k] = write_gate * (to_free * free + (1 - to_free) * found)
            taken = taken + (1 - taken) * to_free * write_gate * free
        for k in range(K):
            memory = memory * (1 - np.outer(write_weights[k], sigmoid(part["erase"][k])))
        for k in range(K):
            memory = memory + np.outer(write_weights[k], part["value"][k])

        for k in range(K):
            w = write_weights[k]
            for a in range(N):
                for b in range(N):
                    link[k, a, b] = (1 - w[a] - w[b]) * link[k, a, b] + w[a] * precedence[k, b]
                link[k, a, a] = 0
            precedence[k] = (1 - w.sum()) * precedence[k] + w

        for r in range(R):
            modes = softmax(part["modes"][r])
            strength = floor + np.log1p(np.exp(part["read strength"][r, 0]))
            new = modes[-1] * look_up(memory, part["read key"][r], strength)
            for k in range(K):
                new = new + modes[k] * link[k].T @ read_weights[r] + modes[K + k] * link[k] @ read_weights[r]
            read_weights[r] = new
        reads = read_weights @ memory
        outputs.append(p["out.weight"] @ np.concatenate([h, *reads]) + p["out.bias"])
    last = DNCState(h, c, reads.flatten(), memory, usage, link, precedence, read_weights, write_weights)
    return np.clip(np.stack(outputs), -core.clip, core.clip), last._asdict()


@pytest.mark.parametrize(
    "options",
    [{}, {"num_writes": 3}, {"strength": "oneplus", "num_reads": 1}, {"clip": 1.0}],
    ids=["default", "writes", "oneplus", "clip"],
)
def test_equals_a_loop_over_the_equations(options: dict[str, object]) -> None:
    core = small(**options)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.mul_(3).add_(0.3 * torch.randn_like(parameter))  # gates far from 1/2, biases not zero
    x, reset = 2 * torch.randn(9, 4, INPUT, dtype=torch.float64), torch.rand(9, 4) < 0.2
    output, state = core(x, reset=reset)
    for row in range(4):
        expected, last = loop(core, x[:, row].numpy(), reset[:, row].numpy())
        np.testing.assert_allclose(output[:, row].detach(), expected, rtol=0, atol=1e-9)
        for name, wanted in last.items():
            found = getattr(state, name)[row].detach()
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9, err_msg=name)
    assert (output.abs() == core.clip).any() == ("clip" in options)
    assert (state.c.abs() == core.clip).any() == ("clip" in options)


def test_allocation_equals_the_free_list_slot_by_slot() -> None:
    """Also with ties, in any number: they are frequent, since all slots start unused."""
    usage = torch.randint(0, 4, (50, 40), dtype=torch.float64) / 3 * (1 - 1e-3)
    usage[:10] = torch.rand(10, 40, dtype=torch.float64)
    for found, row in zip(allocation(usage), usage):
        np.testing.assert_allclose(found, allocate(row.numpy()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("slots", [2, 16, 64])
def test_unused_slots_are_given_in_their_order(slots: int) -> None:
    given = allocation(torch.zeros(3, slots))
    assert (given[:, 0] > 0.999).all()
    assert (given[:, 1:] < 1e-5).all()


def test_a_full_memory_gives_nothing_and_its_gradient_is_finite() -> None:
    usage = torch.ones(1, 64, requires_grad=True)
    given = allocation(usage)
    assert not given.any()
    given.sum().backward()
    assert usage.grad.isfinite().all()


def test_links_lead_from_what_was_written_before() -> None:
    """Slots 2, 0, 1 are written in turn: each links to the one before, the first to none."""
    link, precedence = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3)
    written = torch.eye(3)
    expected = torch.zeros(3, 3)
    for slot, before in ((2, None), (0, 2), (1, 0)):
        link, precedence = follow(link, precedence, written[slot].view(1, 1, 3))
        if before is not None:
            expected[slot, before] = 1
        assert torch.equal(link[0, 0], expected)
        assert torch.equal(precedence[0, 0], written[slot])


def told(core: DNCCore, **values: float | list[float]) -> None:
    """Make the interface constant: 0, or what is given by name (spaces as _)."""
    with torch.no_grad():
        core.interface.weight.zero_()
        core.interface.bias.zero_()
        parts = core.interface.bias.split([a * b for a, b in core.shapes])
        for part, name in zip(parts, NAMES.values()):
            part.copy_(torch.tensor(values.pop(name.replace(" ", "_"), 0.0)).expand(len(part)))
    assert not values


ON, OFF = 100.0, -100.0


def test_a_write_looks_at_the_old_memory_and_a_read_at_the_new() -> None:
    """The first step writes 5, far beyond the range of a tanh, to the first free slot and finds it there at
    once. A second step that writes by content finds it too; a first one would have written everywhere."""
    core = small(num_reads=1)
    key = {"write_key": 5.0, "read_key": 5.0, "write_strength": ON, "read_strength": ON}
    common = {**key, "value": 5.0, "erase": OFF, "write_gate": ON, "modes": [OFF, OFF, ON]}
    x = torch.zeros(1, 1, INPUT, dtype=torch.float64)
    told(core, allocation_gate=ON, **common)
    _, state = core(x)
    torch.testing.assert_close(state.memory[0, 0], torch.full((3,), 5.0).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(state.reads[0], state.memory[0, 0], rtol=0, atol=1e-3)
    told(core, allocation_gate=OFF, **common)
    _, state = core(x, state)
    torch.testing.assert_close(state.memory[0, 0], torch.full((3,), 10.0).double(), rtol=0, atol=1e-2)
    _, state = core(x)
    torch.testing.assert_close(state.write_weights, torch.full((1, 1, 5), 0.2).double())


def test_what_was_read_and_freed_is_given_again() -> None:
    core = small(num_reads=1)
    common = {"allocation_gate": ON, "write_gate": ON, "value": 1.0, "read_key": 1.0, "read_strength": ON}
    x = torch.zeros(1, 1, INPUT, dtype=torch.float64)
    told(core, free_gate=OFF, modes=[OFF, OFF, ON], **common)
    _, first = core(x)  # slot 0 is written and read
    assert first.write_weights.argmax() == first.read_weights.argmax() == 0
    for free in (OFF, ON):
        told(core, free_gate=free, **common)
        _, state = core(x, first)
        assert (state.write_weights.argmax() == 0) == (free == ON)


def test_stored_in_order_is_read_forward_and_backward() -> None:
    core = small(num_reads=1)
    writing = {
        "allocation_gate": ON,
        "write_gate": ON,
        "read_key": 1.0,
        "read_strength": ON,
        "free_gate": OFF,
    }
    x, state = torch.zeros(1, 1, INPUT, dtype=torch.float64), None
    written = []
    for value in (1.0, -1.0, -1.0):  # the read key finds the first
        told(core, value=value, modes=[OFF, OFF, ON], **writing)
        _, state = core(x, state)
        written.append(state.write_weights.argmax().item())
    assert len(set(written)) == 3
    visited = [state.read_weights.argmax().item()]
    for mode in (1, 1, 0):
        told(core, write_gate=OFF, free_gate=OFF, modes=[ON if m == mode else OFF for m in range(3)])
        _, state = core(x, state)
        visited.append(state.read_weights.argmax().item())
    assert visited == [*written, written[1]]


def test_no_gradient_flows_from_usage_into_the_last_write() -> None:
    """Of the whole state the last write acts on usage alone: it must change the step, and learn nothing."""
    core = small(num_writes=2)
    _, state = core(torch.randn(3, 2, INPUT, dtype=torch.float64))
    state = DNCState(*(part.detach().requires_grad_() for part in state))
    x = torch.randn(1, 2, INPUT, dtype=torch.float64)
    output, after = core(x, state)
    (output.sum() + sum(part.square().sum() for part in after)).backward()
    for name, part in state._asdict().items():
        assert (part.grad is None or not part.grad.any()) == (name == "write_weights"), name
    _, other = core(x, state._replace(write_weights=state.write_weights.detach() * 0.5))
    assert not torch.equal(other.usage, after.usage)


@pytest.mark.parametrize("options", [{}, {"num_writes": 2, "strength": "oneplus"}], ids=["default", "writes"])
def test_gradients_equal_finite_differences(options: dict[str, object]) -> None:
    """Where the released code stops the gradient, a finite difference must not see the change: the writes
    that usage is computed from are recorded, and put into the state before each step."""
    core = small(hidden_size=3, output_size=2, memory_slots=3, memory_width=2, **options)
    names, parameters = zip(*core.named_parameters())
    x = torch.randn(3, 2, INPUT, dtype=torch.float64, requires_grad=True)
    writes = []

    def run(x: Tensor, *parameters: Tensor, held: bool = True) -> tuple[Tensor, ...]:
        state, outputs = core.initial_state(2), []
        for t in range(3):
            state = state._replace(write_weights=writes[t]) if held else state
            if not held:
                writes.append(state.write_weights.detach())
            output, state = functional_call(core, dict(zip(names, parameters)), (x[t : t + 1], state))
            outputs.append(output)
        return torch.cat(outputs), *state

    free = run(x, *parameters, held=False)
    torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)
    weights = [torch.randn_like(part) for part in free]
    got, expected = (
        torch.autograd.grad(sum((w * part).sum() for w, part in zip(weights, parts)), (x, *parameters))
        for parts in (core(x)[:1] + tuple(core(x)[1]), run(x, *parameters))
    )
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_initial_weights_are_those_of_the_released_code() -> None:
    """Normal of deviation 1 / sqrt(fan-in), cut at two deviations; biases 0, but 1 for the forget gate."""
    core = DNCCore(40)
    for layer, fan_in in (
        (core.input_gates, 40 + 64 + 256),
        (core.state_gates, 40 + 64 + 256),
        (core.interface, 256),
        (core.out, 256 + 64),
    ):
        scaled = layer.weight.detach() * fan_in**0.5
        assert scaled.abs().max() <= 2 + 1e-5
        assert 0.86 < scaled.std() < 0.9  # 0.88: a normal distribution cut at 2
    assert (core.input_gates.bias.view(4, 256) == torch.tensor([[0.0], [1.0], [0.0], [0.0]])).all()
    assert not core.interface.bias.any()
    assert not core.out.bias.any()


def test_sizes_by_hand() -> None:
    inputs, H, Y, N, W, R = 8, 256, 100, 16, 16, 4
    core = DNCConfig().build(inputs)
    interface = 3 * W + R * W + 1 + R + R + 2 + R * 3
    matrices = 4 * H * (inputs + R * W + H) + interface * H + Y * (H + R * W)
    assert core.num_parameters == matrices + 4 * H + interface + Y
    memory = (1 + R) * N * W + N * W + R * N * W  # look-ups, write, read
    assert core.flops_per_step == 2 * (matrices + memory + 2 * R * N * N)
    assert core.state_size == 2 * H + R * W + N * W + N + N * N + N + R * N + N == 1200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0; expected at least 1"),
        ({"memory_slots": 1}, "memory_slots is 1; expected at least 2"),
        ({"num_reads": 0}, "num_reads is 0; expected at least 1"),
        ({"strength": "relu"}, "strength is 'relu'; expected 'softplus' or 'oneplus'"),
        ({"clip": 0.5}, "clip is 0.5; expected at least 1"),
    ],
)
@pytest.mark.without_shape_checks
def test_config_errors_name_the_option(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DNCConfig(**options).build(INPUT)
