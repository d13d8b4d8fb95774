"""Wrong arguments are first-class cases: each gets a ValueError that says what was given and what is
expected."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from rims import RIM, RIMCell

WRONG_OPTIONS = [
    ({"num_active": 7}, "num_active is 7; expected at most num_rims, which is 6"),
    ({"hidden_size": 25}, "hidden_size (of all RIMs) is 25; expected a multiple of num_rims=6"),
    ({"num_rims": 0}, "num_rims is 0; expected at least 1"),
    ({"num_active": 0}, "num_active is 0; expected at least 1"),
    ({"input_size": 0}, "input_size is 0; expected at least 1"),
    ({"hidden_size": -6}, "hidden_size is -6; expected at least 1"),
    ({"input_heads": 3}, "input_heads is 3; expected a divisor of 16, or input_value_size"),
    ({"input_heads": 0}, "input_heads is 0; expected at least 1"),
    ({"input_key_size": 0}, "input_key_size is 0; expected at least 1"),
    ({"input_value_size": 0}, "input_value_size is 0; expected at least 1"),
    ({"comm_heads": 0}, "comm_heads is 0; expected at least 1"),
    ({"comm_key_size": 0}, "comm_key_size is 0; expected at least 1"),
    ({"comm_topk": 7}, "comm_topk is 7; expected 1 to num_rims, which is 6, or None"),
    ({"input_dropout": 1.0}, "input_dropout is 1.0; expected 0 <= input_dropout < 1"),
    ({"comm_dropout": -0.1}, "comm_dropout is -0.1; expected 0 <= comm_dropout < 1"),
    ({"input_attention": False}, "expected num_active = num_rims"),
    ({"input_attention": False, "num_active": 6, "inputs": "slots"}, "no slots"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS, ids=[str(o) for o, _ in WRONG_OPTIONS])
@pytest.mark.parametrize("layer", [RIM, RIMCell])
def test_wrong_options(layer, options, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        layer(**{"input_size": 5, "hidden_size": 24, **options})
    assert "\n" not in str(error.value)


WRONG_CHOICES = [
    ({"cell": "rnn"}, "cell is 'rnn'; expected one of 'lstm', 'gru'"),
    ({"variant": "v6"}, "variant is 'v6'; expected one of 'paper', 'official'"),
    ({"selection": "softmax"}, "selection is 'softmax'; expected one of 'null', 'competition'"),
    ({"inputs": "set"}, "inputs is 'set'; expected one of 'vector', 'slots', 'private'"),
    ({"num_rims": 6.0}, "num_rims is 6.0; expected an integer"),
]


@pytest.mark.without_shape_checks
@pytest.mark.parametrize(("options", "message"), WRONG_CHOICES, ids=[str(o) for o, _ in WRONG_CHOICES])
def test_wrong_choices(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        RIM(5, 24, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0; expected at least 1"),
        ({"dropout": 1.5}, "dropout is 1.5; expected 0 <= dropout < 1"),
    ],
)
def test_wrong_layer_options(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        RIM(5, 24, **options)


def test_an_unknown_option_is_a_type_error_as_everywhere() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'numrims'"):
        RIM(5, 24, numrims=6)


T3 = torch.zeros(1, 3, 24)
WRONG_CALLS = [
    ({"inputs": "slots"}, (4, 3, 5), {"mask": torch.ones(4, 2) > 0}, "torch.bool; expected bool [4, 3]"),
    ({"inputs": "slots"}, (4, 3, 7, 6), {}, "expected [T, B, slots, 5]"),
    ({"inputs": "private"}, (4, 3, 7, 5), {}, "expected [T, B, 6, 5]"),
    ({"cell": "gru"}, (4, 3, 5), {"hx": (T3, T3)}, "hx is tuple; expected the tensor h0"),
    ({}, (4, 3, 6), {}, "x has shape (4, 3, 6); expected [T, B, 5] for inputs=\"vector\""),
    ({}, (4, 3, 2, 5), {}, "x has shape (4, 3, 2, 5); expected 3 dimensions"),
    ({}, (5,), {}, "x has shape (5,); expected 3 dimensions"),
    ({}, (0, 3, 5), {}, "x has shape (0, 3, 5); expected at least one time step"),
    ({}, (4, 3, 5), {"mask": torch.ones(4, 3) > 0}, "expected none for inputs=\"vector\""),
    ({}, (4, 3, 5), {"hx": T3}, "hx is a tensor; expected a pair (h0, c0)"),
    ({}, (4, 3, 5), {"hx": (T3, T3[:, :2])}, "c0 has shape (1, 2, 24); expected [1, 3, 24]"),
    ({"num_layers": 2}, (4, 3, 5), {"hx": (T3, T3)}, "h0 has shape (1, 3, 24); expected [2, 3, 24]"),
    ({}, (4, 3, 5), {"reset": torch.zeros(3, 4) > 0}, "shape (3, 4), torch.bool; expected bool [4, 3]"),
    ({}, (4, 3, 5), {"reset": torch.zeros(4, 3)}, "shape (4, 3), torch.float32; expected bool [4, 3]"),
    ({"batch_first": True}, (3, 4, 6), {}, "x has shape (3, 4, 6); expected [B, T, 5]"),
    ({"batch_first": True}, (3, 0, 5), {}, "x has shape (3, 0, 5); expected at least one time step"),
    ({"batch_first": True}, (3, 4, 5), {"reset": torch.zeros(4, 3) > 0}, "bool; expected bool [3, 4]"),
    ({}, (4, 6), {}, "x has shape (4, 6); expected [T, 5]"),
    ({}, (4, 5), {"reset": torch.zeros(4, 1) > 0}, "reset has shape (4, 1), torch.bool; expected bool [4]"),
    ({}, (4, 5), {"hx": (T3, T3)}, "h0 has shape (1, 3, 24); expected [1, 24]"),
    ({}, (4, 3, 5), {"disabled": [6]}, "disabled names RIM 6; expected 0 to 5"),
    ({}, (4, 3, 5), {"disabled": range(6)}, "disabled names all 6 RIMs; expected at least one to be left"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "shape", "arguments", "message"), WRONG_CALLS, ids=[m for *_, m in WRONG_CALLS]
)
def test_wrong_calls(options, shape, arguments, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        RIM(5, 24, **options)(torch.zeros(shape), **arguments)
    assert "\n" not in str(error.value)


def test_wrong_dtype() -> None:
    with pytest.raises(ValueError, match=r"x has dtype torch.float64; expected the weights' torch.float32"):
        RIM(5, 24)(torch.zeros(4, 3, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x has dtype torch.int64"), torch.autocast("cpu", torch.bfloat16):
        RIM(5, 24)(torch.zeros(4, 3, 5, dtype=torch.long))


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 3])
def test_wrong_devices_and_dtypes(steps: int) -> None:
    """Compiled passes read memory by address: they would end the process, or take doubles for floats."""
    rim, x, h = RIM(5, 24), torch.zeros(steps, 2, 5), torch.zeros(1, 2, 24)
    for call, message in (
        (lambda: RIM(5, 24, device="meta")(x), "x is on device cpu; expected the weights', meta"),
        (lambda: rim(x, (h.to("meta"), h)), "h0 is on device meta; expected the weights', cpu"),
        (lambda: rim(x, (h, h.to("meta"))), "c0 is on device meta; expected the weights', cpu"),
        (lambda: rim(x, (h, h.double())), "c0 has dtype torch.float64; expected the weights' torch.float32"),
        (
            lambda: rim(x, reset=torch.zeros(steps, 2, dtype=torch.bool, device="meta")),
            "reset is on device meta; expected the weights', cpu",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    rim.first.communication.double()
    with pytest.raises(RuntimeError):  # torch's own
        rim(x)
    rim.first.communication.to("meta", torch.float32)
    with pytest.raises((RuntimeError, NotImplementedError)):
        rim(x)


@pytest.mark.without_shape_checks
@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 5)])
def test_half_a_state(shape) -> None:
    with pytest.raises(ValueError, match=r"hx is \(Tensor, NoneType\); expected a pair \(h0, c0\)"):
        RIM(5, 24)(torch.zeros(shape), (T3, None))
    with pytest.raises(ValueError, match=r"hx is \(Tensor\); expected a pair \(h0, c0\)"):
        RIM(5, 24)(torch.zeros(shape), [T3])


@pytest.mark.without_shape_checks
def test_disabled_is_indices() -> None:
    rim, x = RIM(5, 24), torch.randn(3, 2, 5)
    wanted = rim(x, disabled=[1, 4])[0]
    for indices in (torch.tensor([1, 4]), np.array([1, 4]), {1, 4}, (4, 1, 1)):
        assert torch.equal(rim(x, disabled=indices)[0], wanted)
    for mask in ([False, True, False], torch.tensor([False, True, False])):
        with pytest.raises(ValueError, match="names RIM False; expected indices of RIMs, not a mask"):
            rim(x, disabled=mask)
    with pytest.raises(ValueError, match=r"disabled is 1; expected the indices of RIMs, as \[1\]"):
        rim(x, disabled=1)


def test_wrong_cell_calls() -> None:
    cell = RIMCell(5, 24)
    with pytest.raises(ValueError, match=r"x has shape \(3, 6\); expected \[B, 5\]"):
        cell(torch.zeros(3, 6))
    with pytest.raises(ValueError, match=r"h has shape \(2, 24\); expected \[3, 24\]"):
        cell(torch.zeros(3, 5), (torch.zeros(2, 24), torch.zeros(3, 24)))
    with pytest.raises(ValueError, match=r"hx is a tensor; expected a pair \(h, c\)"):
        cell(torch.zeros(3, 5), torch.zeros(3, 24))
    with pytest.raises(ValueError, match="hx is tuple; expected the tensor h"):
        RIMCell(5, 24, cell="gru")(torch.zeros(3, 5), (torch.zeros(3, 24), torch.zeros(3, 24)))


def test_positional_num_layers_as_in_nn_lstm_is_refused_not_misread() -> None:
    """nn.LSTM(10, 20, 2) means two layers; here the third argument is num_rims."""
    with pytest.raises(ValueError, match="num_active is 4; expected at most num_rims, which is 2"):
        RIM(10, 20, 2)
