"""Encoder, core and head together."""

from __future__ import annotations

import pytest
import torch

from rims.cores import LSTMConfig, RIMConfig
from rims.models import SequenceModel
from rims.tasks import Adding, Copying, SequentialCIFAR
from tests.tasks.moving import Moving

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


@pytest.mark.parametrize(
    ("size", "widths"), [(9, [3, 3, 3]), (10, [4, 3, 3]), (11, [4, 4, 3]), (3, [1, 1, 1])]
)
def test_each_channel_has_its_embedding_and_the_widths_sum_to_the_input_size(size, widths) -> None:
    model = SequenceModel(SequentialCIFAR(), LSTMConfig(hidden_size=7), size).eval()
    tokens = torch.randint(0, 256, (4, 2, 3))
    x = model.encode(tokens)
    assert x.shape == (4, 2, size)
    tables = [embedding.weight for embedding in model.encoder.channels]
    assert [tuple(table.shape) for table in tables] == [(256, width) for width in widths]
    for t in range(4):
        for b in range(2):
            parts = [table[tokens[t, b, channel]] for channel, table in enumerate(tables)]
            assert torch.equal(x[t, b], torch.cat(parts))
    assert model(tokens)[0].shape == (4, 2, 10)


def test_numbers_are_projected() -> None:
    model = SequenceModel(Adding(), LSTMConfig(hidden_size=7), 5).eval()
    x = torch.rand(6, 2, 3)
    torch.testing.assert_close(model.encode(x), x @ model.encoder.weight.T + model.encoder.bias)
    assert model(x)[0].shape == (6, 2, 1)


@pytest.mark.parametrize("task", [TASK, Adding(), SequentialCIFAR()])
def test_released_init_reaches_every_encoder(task) -> None:
    model = SequenceModel(task, LSTMConfig(hidden_size=50), 40, init="released")
    for name, weight in model.encoder.named_parameters():
        if name != "bias":
            assert 0.09 < weight.abs().max() <= 0.1


def test_released_init_is_uniform_within_a_tenth() -> None:
    model = SequenceModel(TASK, LSTMConfig(hidden_size=50), 40, init="released")
    for weight in (model.encoder.weight, model.head.weight):
        assert 0.09 < weight.abs().max() <= 0.1
    assert not model.head.bias.any()
    assert SequenceModel(TASK, LSTMConfig(hidden_size=50), 40).encoder.weight.std() > 0.9


@pytest.mark.without_shape_checks
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 0}, "input_size is 0; expected at least 1"),
        ({"input_size": 5, "dropout": 1.0}, "dropout is 1.0; expected 0 <= dropout < 1"),
        ({"input_size": 5, "init": "xavier"}, "init is 'xavier'; expected 'torch' or 'released'"),
        ({"input_size": 5, "hidden": 0}, "hidden is 0; expected at least 1"),
    ],
)
def test_wrong_options(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceModel(TASK, LSTMConfig(hidden_size=7), **options)


@pytest.mark.without_shape_checks
def test_fewer_numbers_than_channels() -> None:
    with pytest.raises(ValueError, match="input_size is 2; expected at least 3, one number for each channel"):
        SequenceModel(SequentialCIFAR(), LSTMConfig(hidden_size=7), 2)


@pytest.mark.parametrize("inputs", ["slots", "private"])
@pytest.mark.parametrize("task", [TASK, Adding()])
def test_slots_and_private_inputs_need_frames(task, inputs) -> None:
    message = f"core rim has inputs='{inputs}'; expected 'vector': the input of {task.name} is not frames"
    with pytest.raises(ValueError, match=message):
        SequenceModel(task, RIMConfig(24, inputs=inputs), 5)


@pytest.mark.parametrize(("inputs", "between"), [("vector", ()), ("slots", (9,)), ("private", (4,))])
def test_frames_are_encoded_as_the_core_reads_them(inputs, between) -> None:
    core = RIMConfig(24, num_rims=4, num_active=2, inputs=inputs)
    model = SequenceModel(Moving(side=24), core, 5, channels=(2, 3, 4), hidden=6).double()
    frames = torch.randint(0, 256, (7, 3, 1, 24, 24)).byte()
    x = model.encode(frames)
    assert x.shape == (7, 3, *between, 5)
    outputs, _ = model(frames)
    assert outputs.shape == frames.shape
    torch.testing.assert_close(outputs, model.head(model.core(x)[0]))
    outputs.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    state, parts = None, []
    for frame in frames.split(1):
        part, state = model(frame, state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts), outputs)
