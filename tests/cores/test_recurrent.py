"""The lstm and gru cores are torch.nn.LSTM and torch.nn.GRU, also across resets; the rim core is RIM."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rims import RIM
from rims.cores import CORES, LSTMCore, RIMConfig, RIMCore


@pytest.mark.parametrize(("name", "layer"), [("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_equal_to_torch(name: str, layer: type[nn.Module]) -> None:
    core, reference = CORES[name](hidden_size=7).build(5), layer(5, 7)
    (inner,) = core.children()
    inner.load_state_dict(reference.state_dict())
    x = torch.randn(6, 3, 5)
    torch.testing.assert_close(core(x)[0], reference(x)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "cell"), [("lstm", nn.LSTMCell), ("gru", nn.GRUCell)])
def test_resets_equal_a_loop_over_torch_cells(name: str, cell: type[nn.Module]) -> None:
    core, step = CORES[name](hidden_size=7).build(5), cell(5, 7)
    step.load_state_dict({k.removesuffix("_l0"): v for k, v in next(core.children()).state_dict().items()})
    x, reset = torch.randn(12, 3, 5), torch.rand(12, 3) < 0.3
    output, _ = core(x, reset=reset)
    state = tuple(torch.zeros(3, 7) for _ in range(2))
    for t in range(12):
        state = tuple(part * (~reset[t, :, None]) for part in state)
        state = step(x[t], state) if name == "lstm" else (step(x[t], state[0]), state[1])
        torch.testing.assert_close(output[t], state[0], rtol=0, atol=1e-6)


def test_parameters_and_flops_by_hand() -> None:
    lstm = LSTMCore(600, 600)
    assert lstm.num_parameters == 4 * 600 * (600 + 600 + 2)
    assert lstm.flops_per_step == 2 * 4 * 600 * (600 + 600)
    assert lstm.state_size == 1200
    gru = CORES["gru"](hidden_size=600).build(600)
    assert gru.flops_per_step == 2 * 3 * 600 * (600 + 600)
    assert gru.state_size == 600


def test_rim_flops_by_hand() -> None:
    """Every matrix once, the scores of both attentions, and what is heard, over H heads."""
    inputs, K, D, E, V, H, C = 600, 6, 100, 64, 400, 4, 16
    core = RIMConfig(variant="official", comm_key_size=C).build(inputs)
    reading = inputs * E + inputs * V + K * D * E + K * E
    moving = K * 4 * D * (V + D)
    talking = 3 * K * D * H * C + 2 * K * K * H * C + 2 * K * H * C * D
    assert core.flops_per_step == 2 * (reading + moving + talking)


def test_rim_core_is_the_layer_and_its_trace_is_the_layers() -> None:
    core = RIMConfig(hidden_size=24).build(5)
    x = torch.randn(6, 3, 5)
    y, (h, c), (trace,) = core.rim(x, return_trace=True)
    output, state, traced = core.trace(x)
    assert torch.equal(output, y)
    assert torch.equal(state.h, h[0])
    assert torch.equal(state.c, c[0])
    assert torch.equal(traced.active, trace.active)
    core.disabled = (2,)
    assert not core.trace(x)[2].active[..., 2].any()


def test_rim_core_takes_one_layer_in_time_order() -> None:
    for options in ({"num_layers": 2}, {"bidirectional": True}, {"batch_first": True}):
        with pytest.raises(ValueError, match="expected one layer, one direction, time first"):
            RIMCore(RIM(5, 24, **options))


def test_config_errors_name_the_option() -> None:
    with pytest.raises(ValueError, match="hidden_size is 0; expected at least 1"):
        CORES["lstm"](hidden_size=0).build(5)
    with pytest.raises(ValueError, match="num_active is 9; expected at most num_rims, which is 6"):
        RIMConfig(num_active=9).build(5)


def test_only_rims_of_the_plain_residual_are_told_of_a_steadier_option() -> None:
    assert RIMConfig(comm_tanh=False).steadier == "--core.comm-tanh True"
    assert RIMConfig().steadier == ""
    for bounded in ({"cell": "gru"}, {"variant": "official"}, {"communication": False}):
        assert RIMConfig(comm_tanh=False, **bounded).steadier == ""
