"""The Core contract, for every registered core.

A new core joins by being registered, and by a small size here.
"""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch

from rims.cores import CORES, Core, CoreConfig, RIMCore
from rims.cores.base import map_state, reset_state, tensors

INPUT = 5
SMALL: dict[str, list[CoreConfig]] = {
    "rim": [
        CORES["rim"](hidden_size=24, num_active=3, comm_key_size=4, input_key_size=8, **options)
        for options in (
            {},
            {"cell": "gru"},
            {"variant": "official"},
            {"selection": "competition", "input_heads": 2},
            {"inputs": "slots"},
            {"inputs": "private"},
        )
    ],
    "lstm": [CORES["lstm"](hidden_size=7)],
    "gru": [CORES["gru"](hidden_size=7)],
    "feedforward": [CORES["feedforward"](hidden_size=7)],
    "slstm": [
        CORES["slstm"](head_size=3, **options)
        for options in ({"num_heads": 2}, {"num_heads": 1}, {"num_heads": 3, "forget_gate": "exp"})
    ],
    "mingru": [
        CORES["mingru"](hidden_size=7, **options)
        for options in ({}, {"num_layers": 1}, {"num_layers": 2, "candidate": "positive"})
    ],
    "rmc": [
        CORES["rmc"](num_slots=3, num_heads=2, head_size=4, **options)
        for options in (
            {},
            {"gate": "memory", "key_size": 3, "num_blocks": 2},
            {"gate": "none", "mlp_layers": 3},
        )
    ],
    "entnet": [CORES["entnet"](num_slots=3, slot_size=4), CORES["entnet"](num_slots=1, slot_size=7)],
    "transformer": [
        CORES["transformer"](num_layers=2, num_heads=2, head_pairs=2, window=window, positions=positions)
        for window, positions in (
            (16, "rotary"),
            (3, "rotary"),
            (4, "sinusoidal"),
            (16, "sinusoidal"),
            (2, "none"),
        )
    ],
    "ntm": [
        CORES["ntm"](hidden_size=7, output_size=6, memory_slots=5, memory_width=3, **options)
        for options in ({}, {"num_reads": 2, "num_writes": 2}, {"shift_taps": 5, "clip": 1.0})
    ],
    "dnc": [
        CORES["dnc"](hidden_size=7, output_size=6, memory_slots=5, memory_width=3, **options)
        for options in ({}, {"num_reads": 1, "num_writes": 2}, {"strength": "oneplus", "num_reads": 2})
    ],
}
CONFIGS = [config for name in CORES for config in SMALL[name]]


@pytest.fixture(params=CONFIGS, ids=[f"{c.name}-{i}" for i, c in enumerate(CONFIGS)])
def config(request: pytest.FixtureRequest) -> CoreConfig:
    return request.param


@pytest.fixture
def core(config: CoreConfig) -> Core:
    return config.build(INPUT).double()


def inputs(core: Core, steps: int = 9, batch: int = 4) -> torch.Tensor:
    several = {"vector": (), "slots": (7,), "private": (core.num_inputs,)}[core.inputs]
    return torch.randn(steps, batch, *several, INPUT, dtype=torch.float64)


def assert_same(state, other) -> None:
    assert type(state) is type(other)
    for a, b in zip(tensors(state), tensors(other)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_shapes_and_a_state_of_tensors_with_the_batch_first(core: Core) -> None:
    output, state = core(inputs(core))
    assert output.shape == (9, 4, core.output_size)
    for before, after in zip(tensors(core.initial_state(4)), tensors(state)):
        assert isinstance(after, torch.Tensor)
        assert before.shape == after.shape
        assert before.dtype == after.dtype == torch.float64
        assert after.shape[0] == 4


def test_no_state_is_the_initial_state(core: Core) -> None:
    x = inputs(core)
    torch.testing.assert_close(core(x)[0], core(x, core.initial_state(4))[0], rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [1, 4])
def test_steps_and_chunks_equal_the_sequence(core: Core, chunk: int) -> None:
    x, reset = inputs(core), torch.rand(9, 4) < 0.3
    whole, last = core(x, reset=reset)
    state, parts = core.initial_state(4), []
    for start in range(0, 9, chunk):
        output, state = core(x[start : start + chunk], state, reset[start : start + chunk])
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-9, atol=1e-9)
    assert_same(state, last)


def test_a_reset_equals_a_fresh_start_of_that_row_alone(core: Core) -> None:
    x = inputs(core)
    reset = torch.zeros(9, 4, dtype=torch.bool)
    reset[3, 1] = reset[0, 2] = True
    plain, _ = core(x)
    output, _ = core(x, reset=reset)
    torch.testing.assert_close(output[:, [0, 2, 3]], plain[:, [0, 2, 3]], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output[:3, 1], plain[:3, 1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output[3:, 1:2], core(x[3:, 1:2])[0], rtol=1e-9, atol=1e-9)


def test_a_reset_clears_nan_and_cuts_the_gradient(core: Core) -> None:
    x = inputs(core)
    broken = map_state(lambda t: torch.full_like(t, torch.nan).requires_grad_(), core.initial_state(4))
    reset = torch.zeros(9, 4, dtype=torch.bool)
    reset[0] = True
    output, _ = core(x, broken, reset)
    torch.testing.assert_close(output, core(x)[0], rtol=1e-9, atol=1e-9)
    output.sum().backward()
    for part in tensors(broken):
        assert part.grad is None or not part.grad.any()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_rows_are_independent_also_of_nan(config: CoreConfig, core: Core, broken: float) -> None:
    """Values and gradients of the others, bit for bit. But RIM's fast path multiplies active rows alone: how
    many there are, and with it the rounding, follows from all rows."""
    x = inputs(core).requires_grad_()
    clean, _ = core(x)
    torch.testing.assert_close(core(x[:, 2:3])[0], clean[:, 2:3], rtol=1e-9, atol=1e-9)
    y = x.detach().clone()
    y[4, 1] = broken
    output, _ = core(y.requires_grad_())
    assert output[4 : None if config.recurrent else 5, 1].isnan().any(-1).all()
    others, bound = [0, 2, 3], 1e-9 if isinstance(core, RIMCore) else 0.0
    torch.testing.assert_close(output[:, others], clean[:, others], rtol=bound, atol=bound)
    found, expected = (torch.autograd.grad(o[:, others].sum(), i)[0] for o, i in ((output, y), (clean, x)))
    torch.testing.assert_close(found[:, others], expected[:, others], rtol=bound, atol=bound)


def test_every_parameter_is_live_and_counted(core: Core) -> None:
    output, state = core(inputs(core, 12, 16))
    (output.square().sum() + sum(t.sum() for t in tensors(state))).backward()
    live = 0
    for name, p in core.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name
        live += p.numel()
    assert core.num_parameters == live


def test_any_size_is_possible_and_parameters_and_state_grow_with_it(config: CoreConfig) -> None:
    cores = [config.sized(size).build(INPUT).double() for size in (1, 2, 3, 7)]
    for smaller, larger in pairwise(cores):
        assert smaller.num_parameters < larger.num_parameters
        assert smaller.state_size < larger.state_size or not config.recurrent
    output, _ = cores[0](inputs(cores[0]))
    assert output.isfinite().all()
    value = getattr(config, config.size)
    assert [c for size in range(1, value + 1) if (c := config.sized(size)) == config], "cannot be sized back"


def test_sizes_need_no_memory(config: CoreConfig, core: Core) -> None:
    """On the meta device, where rims.cores.sizes tries many."""
    with torch.device("meta"):
        light = config.build(INPUT)
    assert (light.num_parameters, light.state_size) == (core.num_parameters, core.state_size)
    assert {p.device.type for p in light.parameters()} == {"meta"}


def test_state_size_is_what_a_row_carries(core: Core) -> None:
    _, state = core(inputs(core, 2, 1))
    assert core.state_size == sum(t.numel() for t in tensors(state))


def test_flops_are_counted_without_side_effects(core: Core) -> None:
    before = torch.get_rng_state()
    flops = core.flops_per_step
    assert torch.equal(before, torch.get_rng_state())
    # Each parameter of a matrix product costs two operations a step at least once; biases cost none.
    matrices = sum(p.numel() for p in core.parameters() if p.dim() > 1)
    assert flops >= matrices  # at least half of the weights take part; bias-like rows count in `matrices`
    assert flops == core.flops_per_step


def test_state_dict_round_trip(config: CoreConfig, core: Core) -> None:
    other = config.build(INPUT).double()
    other.load_state_dict(core.state_dict())
    x = inputs(core)
    assert torch.equal(core(x)[0], other(x)[0])


def test_to_moves_everything(config: CoreConfig) -> None:
    core = config.build(INPUT)
    output, state = core(inputs(core).float())
    assert output.dtype == torch.float32
    core.to(torch.float64)
    output, state = core(inputs(core))
    assert {t.dtype for t in (output, *tensors(state))} == {torch.float64}
    core.to("meta")
    assert all(t.device.type == "meta" for t in (*core.parameters(), *core.buffers()))


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu(core: Core) -> None:
    x, reset = inputs(core), torch.rand(9, 4) < 0.3
    expected, _ = core(x, reset=reset)
    core.cuda()
    assert core.initial_state(2) is not None
    torch.testing.assert_close(core(x.cuda(), reset=reset.cuda())[0].cpu(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.without_shape_checks
def test_wrong_inputs(core: Core) -> None:
    x = inputs(core)
    several = {"vector": "", "slots": "slots, ", "private": f"{core.num_inputs}, "}[core.inputs]
    expected = re.escape(f"; expected [T, B, {several}5]")
    for wrong in (torch.cat([x, x], dim=-1), x[0], x[..., None]):
        with pytest.raises(ValueError, match=re.escape(f"x has shape {tuple(wrong.shape)}") + expected):
            core(wrong)
    with pytest.raises(ValueError, match=r"x has shape \(0, 4, .*5\); expected at least one time step"):
        core(x[:0])
    with pytest.raises(ValueError, match=r"reset has shape \(4, 9\), torch.bool; expected bool \[9, 4\]"):
        core(x, reset=torch.zeros(4, 9, dtype=torch.bool))


@pytest.mark.without_shape_checks
def test_wrong_states(core: Core) -> None:
    """None is broadcast over the batch, nor taken for one of another kind."""
    x = inputs(core)
    _, state = core(x)
    first, name = (
        tensors(state)[0],
        "state" if isinstance(state, torch.Tensor) else f"state.{state._fields[0]}",
    )
    for wrong in (map_state(lambda part: part[:1], state), map_state(lambda part: part[..., None], state)):
        shapes = [tuple(part.shape) for part in (tensors(wrong)[0], first)]
        with pytest.raises(
            ValueError, match="^" + re.escape("{} has shape {}; expected {}".format(name, *shapes))
        ):
            core(x, wrong)
    kind = "Tensor" if isinstance(state, torch.Tensor) else type(state).__name__
    with pytest.raises(ValueError, match=f"^state is a tuple; expected a {kind}$"):
        core(x, tensors(state))


@pytest.mark.parametrize("size", [0, -1])
def test_wrong_input_sizes(config: CoreConfig, size: int) -> None:
    with pytest.raises(ValueError, match=f"^input_size is {size}; expected at least 1$"):
        config.build(size)


@pytest.mark.without_shape_checks
def test_each_rim_has_its_private_input_and_no_more() -> None:
    core = CORES["rim"](hidden_size=24, inputs="private").build(INPUT)
    with pytest.raises(ValueError, match=r"x has shape \(2, 3, 5, 5\); expected \[T, B, 6, 5\]"):
        core(torch.zeros(2, 3, 5, INPUT))


def test_flops_count_as_many_slots_as_a_model_has() -> None:
    core = CORES["rim"](hidden_size=24, inputs="slots", input_key_size=8, input_value_size=10).build(INPUT)
    core.num_inputs = 2
    two = core.flops_per_step
    core.num_inputs = 5
    # A slot's key and value, and for each of six RIMs a score and a weighted value.
    assert core.flops_per_step - two == 3 * 2 * (INPUT * (8 + 10) + 6 * (8 + 10))


def test_reset_state_keeps_the_kind_of_state(core: Core) -> None:
    _, state = core(inputs(core))
    mixed = reset_state(state, core.initial_state(4), torch.tensor([True, False, False, True]))
    for part, old, fresh in zip(tensors(mixed), tensors(state), tensors(core.initial_state(4))):
        assert torch.equal(part[[1, 2]], old[[1, 2]])
        assert torch.equal(part[[0, 3]], fresh[[0, 3]])
    assert type(mixed) is type(state)
