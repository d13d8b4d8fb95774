"""The copying task against a construction one symbol at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rims.tasks import TASKS, Batch, Copying

options = st.fixed_dictionaries(
    {"length": st.integers(1, 12), "delay": st.integers(1, 40), "symbols": st.integers(2, 25)}
)


@given(options, st.integers(1, 9), st.integers(0, 2**32), st.none() | st.integers(1, 60))
@settings(deadline=None, max_examples=60)
def test_batch_is_what_the_definition_says(options, batch_size, seed, condition):
    task = Copying(**options)
    inputs, targets, _ = task.batch(batch_size, torch.Generator().manual_seed(seed), condition)
    delay = condition or task.delay
    assert inputs.shape == targets.shape == (2 * task.length + delay, batch_size)
    for row in range(batch_size):
        symbols = inputs[: task.length, row].tolist()
        assert all(1 <= symbol <= task.symbols for symbol in symbols)
        go = task.symbols + 1
        assert inputs[:, row].tolist() == [*symbols, *[0] * (delay - 1), go, *[0] * task.length]
        assert targets[:, row].tolist() == [0] * (task.length + delay) + symbols
    assert inputs.max() < task.input.vocabulary == task.output_size
    phases = task.phases(condition)
    assert phases["recall"] == (task.length + delay, len(inputs))
    assert phases["symbols"][1] == phases["delay"][0]
    assert phases["delay"][1] == phases["recall"][0]


@given(options, st.integers(1, 5), st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_metrics_equal_a_loop(options, batch_size, seed):
    task = Copying(**options)
    generator = torch.Generator().manual_seed(seed)
    batch = task.batch(batch_size, generator)
    outputs = torch.randn(*batch.inputs.shape, task.output_size, generator=generator)
    chances = outputs.softmax(-1)
    steps = len(batch.inputs)
    losses = [
        [-math.log(chances[t, b, batch.targets[t, b]]) for b in range(batch_size)] for t in range(steps)
    ]
    hits = [
        float(outputs[t, b].argmax() == batch.targets[t, b])
        for t in range(steps - task.length, steps)
        for b in range(batch_size)
    ]
    recall = [loss for row in losses[-task.length :] for loss in row]
    everything = [loss for row in losses for loss in row]
    metrics = task.metrics(outputs, batch)
    assert float(metrics["recall_cross_entropy"]) == pytest.approx(sum(recall) / len(recall), rel=1e-4)
    assert float(metrics["recall_accuracy"]) == pytest.approx(sum(hits) / len(hits))
    assert float(task.loss(outputs, batch)) == pytest.approx(sum(everything) / len(everything), rel=1e-4)


def test_a_uniform_guess_scores_chance():
    task = Copying()
    batch = task.batch(400, torch.Generator().manual_seed(0))
    outputs = torch.full((*batch.inputs.shape, task.output_size), -1e9)
    outputs[..., 1 : task.symbols + 1] = 0.0
    guess = outputs + 1e-3 * torch.rand(outputs.shape, generator=torch.Generator().manual_seed(1))
    chance = task.chance()
    assert chance["recall_cross_entropy"] == pytest.approx(2.0794, abs=1e-4)
    measured = task.metrics(outputs, batch)["recall_cross_entropy"]
    assert float(measured) == pytest.approx(chance["recall_cross_entropy"], rel=1e-5)
    assert float(task.metrics(guess, batch)["recall_accuracy"]) == pytest.approx(
        chance["recall_accuracy"], abs=0.02
    )


def test_a_perfect_answer_scores_perfectly():
    task = Copying(length=4, delay=3)
    batch = task.batch(7, torch.Generator().manual_seed(0))
    outputs = 100.0 * torch.nn.functional.one_hot(batch.targets, task.output_size).float()
    assert float(task.metrics(outputs, batch)["recall_accuracy"]) == 1.0
    assert float(task.metrics(outputs, batch)["recall_cross_entropy"]) < 1e-6


def test_symbols_are_uniform():
    task = Copying(symbols=5)
    batch = task.batch(4000, torch.Generator().manual_seed(0))
    share = torch.bincount(batch.inputs[: task.length].flatten(), minlength=7) / (task.length * 4000)
    torch.testing.assert_close(share[1:6], torch.full((5,), 0.2), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("field", "value"), [("length", 0), ("delay", 0), ("delay", -3), ("symbols", 1), ("test_delays", (50, 0))]
)
def test_wrong_options_are_named(field, value):
    with pytest.raises(ValueError, match="expected at least"):
        Copying(**{field: value})


def test_wrong_condition_is_named():
    with pytest.raises(ValueError, match="delay is -1; expected at least 1"):
        Copying().batch(2, torch.Generator(), -1)


def test_registered():
    assert TASKS["copying"] is Copying
    assert Batch._fields == ("inputs", "targets", "details")
