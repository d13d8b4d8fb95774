"""The official variant equals arrays recorded from the released code, in values and every recorded gradient.

``pytest tests/nn/test_golden.py --golden-dir FOLDER`` checks other recordings of the same form, at any sizes.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from rims import RIM

BOUND = 1e-9


def weights_of(rim: RIM) -> dict[str, torch.nn.Parameter]:
    """The layer's parameters under the names of the recording."""
    cell = rim.first
    attention, dynamics, communication = cell.input_attention, cell.dynamics, cell.communication
    return {
        "input_key": attention.key,
        "input_value": attention.value,
        "input_query": attention.query,
        "weight_ih": dynamics.weight_ih,
        "weight_hh": dynamics.weight_hh,
        "bias_ih": dynamics.bias_ih,
        "bias_hh": dynamics.bias_hh,
        "comm_query": communication.query,
        "comm_key": communication.key,
        "comm_value": communication.value,
        "comm_out_weight": communication.out.weight,
        "comm_out_bias": communication.out.bias,
        "comm_gate_weight": communication.gate.weight,
        "comm_gate_bias": communication.gate.bias,
    }


def load(path: Path) -> tuple[RIM, dict[str, np.ndarray]]:
    with np.load(path) as file:
        golden = dict(file)
    sizes = {k: int(golden[k]) for k in ("E", "K", "d", "kA", "input_heads", "comm_heads")}
    rim = RIM(
        sizes["E"],
        sizes["K"] * sizes["d"],
        sizes["K"],
        sizes["kA"],
        cell=str(golden["cell"]).lower(),
        variant="official",
        input_heads=sizes["input_heads"],
        input_key_size=golden["input_key"].shape[1] // sizes["input_heads"],
        input_value_size=golden["input_value"].shape[1] // sizes["input_heads"],
        comm_heads=sizes["comm_heads"],
        comm_key_size=golden["comm_key"].shape[2] // sizes["comm_heads"],
        comm_value_size=golden["comm_value"].shape[2] // sizes["comm_heads"],
        dtype=torch.float64,
    )
    with torch.no_grad():
        for name, parameter in weights_of(rim).items():
            assert parameter.shape == golden[name].shape
            parameter.copy_(torch.from_numpy(golden[name]))
    return rim, golden


def test_golden_official_values_active_sets_and_gradients(golden_official: Path) -> None:
    rim, golden = load(golden_official)
    leaves = {k: torch.from_numpy(golden[k]).requires_grad_() for k in ("x", "h0", "c0")}
    lstm = rim.mode == "LSTM"
    hx = (leaves["h0"][None], leaves["c0"][None]) if lstm else leaves["h0"][None]

    y, last, traces = rim(leaves["x"], hx, return_trace=True)

    np.testing.assert_allclose(y.detach().numpy(), golden["h"], rtol=0, atol=BOUND)
    np.testing.assert_array_equal(traces[0].active.numpy(), golden["active"].astype(bool))
    if lstm:
        np.testing.assert_allclose(last[1][0].detach().numpy(), golden["c"][-1], rtol=0, atol=BOUND)

    (y * torch.from_numpy(golden["cotangent_h"])).sum().backward()
    tensors = {**leaves, **weights_of(rim)}
    recorded = [k for k in golden if k.startswith("grad_")]
    assert len(recorded) >= 11
    for name in recorded:
        gradient = tensors[name.removeprefix("grad_")].grad
        assert gradient is not None, name
        np.testing.assert_allclose(gradient.numpy(), golden[name], rtol=0, atol=BOUND, err_msg=name)


def test_golden_cell_state_at_every_step(golden_official: Path) -> None:
    rim, golden = load(golden_official)
    if rim.mode != "LSTM":
        pytest.skip("a GRU has no cell state")
    h, c = torch.from_numpy(golden["h0"]), torch.from_numpy(golden["c0"])
    for t, x in enumerate(torch.from_numpy(golden["x"])):
        h, c = rim.first(x, (h, c))
        np.testing.assert_allclose(h.detach().numpy(), golden["h"][t], rtol=0, atol=BOUND)
        np.testing.assert_allclose(c.detach().numpy(), golden["c"][t], rtol=0, atol=BOUND)
