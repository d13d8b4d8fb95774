"""Encoder, core and head together."""

from __future__ import annotations

import pytest
import torch

from rims.cores import LSTMConfig
from rims.models import SequenceModel
from rims.tasks import Copying

TASK = Copying(length=2, delay=3)


def test_the_model_is_encoder_core_and_head_and_carries_the_state() -> None:
    model = SequenceModel(TASK, LSTMConfig(hidden_size=7), 5).eval()
    tokens = torch.randint(0, 10, (9, 4))
    outputs, state = model(tokens)
    assert outputs.shape == (9, 4, 20)
    torch.testing.assert_close(outputs, model.head(model.core(model.encoder(tokens))[0]))
    first, middle = model(tokens[:4])
    second, last = model(tokens[4:], middle)
    torch.testing.assert_close(torch.cat([first, second]), outputs)
    torch.testing.assert_close(last.c, state.c)


def test_dropout_is_on_both_sides_of_the_core_in_training_alone() -> None:
    model = SequenceModel(TASK, LSTMConfig(hidden_size=7), 5, dropout=0.5)
    tokens = torch.randint(0, 10, (9, 4))
    assert (model.encode(tokens) == 0).any()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


def test_released_init_is_uniform_within_a_tenth() -> None:
    model = SequenceModel(TASK, LSTMConfig(hidden_size=50), 40, init="released")
    for weight in (model.encoder.weight, model.head.weight):
        assert 0.09 < weight.abs().max() <= 0.1
    assert not model.head.bias.any()
    assert SequenceModel(TASK, LSTMConfig(hidden_size=50), 40).encoder.weight.std() > 0.9


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 0}, "input_size is 0; expected at least 1"),
        ({"input_size": 5, "dropout": 1.0}, "dropout is 1.0; expected 0 <= dropout < 1"),
        ({"input_size": 5, "init": "xavier"}, "init is 'xavier'; expected 'torch' or 'released'"),
    ],
)
def test_wrong_options(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceModel(TASK, LSTMConfig(hidden_size=7), **options)
