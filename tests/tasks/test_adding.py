"""The adding task against loops over the definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rims.tasks import TASKS, Adding, Features


@given(
    st.integers(1, 7),
    st.integers(0, 40),
    st.none() | st.integers(0, 40),
    st.integers(1, 9),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=100)
def test_a_batch_is_what_the_definition_says(addends, beyond, condition, batch_size, seed):
    condition = None if condition is None else addends + condition
    task = Adding(length=addends + beyond, addends=addends, test_lengths=(addends,))
    inputs, targets, _ = task.batch(batch_size, torch.Generator().manual_seed(seed), condition)
    length = condition or task.length
    assert inputs.shape == (length, batch_size, 3)
    assert targets.shape == (batch_size,)
    parts = list(task.phases(condition).values())
    assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
    assert parts[-1][1] == length
    assert {stop - start for start, stop in parts} <= {length // task.addends, -(-length // task.addends)}
    for row in range(batch_size):
        total, marked = 0.0, []
        for step in range(length):
            number, *marks = inputs[step, row].tolist()
            assert 0 <= number < 1
            assert marks in ([0, 0], [1, 0], [0, 1])
            if marks != [0, 0]:
                total += number
                marked.append((step, marks.index(1)))
        assert targets[row] == pytest.approx(total, rel=1e-5)
        assert len(marked) == task.addends
        for rank, ((step, channel), (start, stop)) in enumerate(zip(marked, parts)):
            assert start <= step < stop
            assert channel == rank % 2


def test_two_addends_are_marked_in_a_half_each():
    inputs = Adding().batch(500, torch.Generator().manual_seed(0), 200).inputs
    first, second = inputs[..., 1], inputs[..., 2]
    assert (first[:100].sum(0) == 1).all()
    assert (second[100:].sum(0) == 1).all()
    assert not first[100:].any()
    assert not second[:100].any()
    # Every step of a half is chosen now and then, and none often.
    assert first[:100].sum(1).max() < 20
    assert (first[:100].sum(1) > 0).sum() > 90


def test_the_error_is_that_of_the_last_step_over_the_batch():
    task = Adding(length=6)
    batch = task.batch(5, torch.Generator().manual_seed(0))
    outputs = torch.randn(6, 5, 1)
    expected = sum((float(outputs[-1, row, 0]) - float(batch.targets[row])) ** 2 for row in range(5)) / 5
    assert float(task.loss(outputs, batch)) == pytest.approx(expected, rel=1e-5)
    assert float(task.metrics(outputs, batch)["mean_squared_error"]) == pytest.approx(expected, rel=1e-5)
    outputs[-1, :, 0] = batch.targets
    assert float(task.loss(outputs, batch)) == 0


@pytest.mark.parametrize("addends", [1, 2, 5])
def test_the_mean_scores_chance(addends):
    task = Adding(addends=addends)
    batch = task.batch(40_000, torch.Generator().manual_seed(0), 10)
    answer = torch.full((10, 40_000, 1), addends / 2)
    measured = float(task.metrics(answer, batch)["mean_squared_error"])
    (chance,) = task.chance().values()
    assert chance == pytest.approx(addends / 12)
    # The variance of a squared error is at most that of a normal's, 2 chance^2.
    assert measured == pytest.approx(chance, abs=5 * chance * math.sqrt(2 / 40_000))


def test_the_generator_decides_the_sequences():
    one, two, other = (Adding().batch(3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.inputs, two.inputs)
    assert torch.equal(one.targets, two.targets)
    assert not torch.equal(one.inputs, other.inputs)


def test_a_low_precision_run_has_the_same_sequences():
    expected = Adding().batch(3, torch.Generator().manual_seed(1))
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = Adding().batch(3, torch.Generator().manual_seed(1))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.inputs, expected.inputs)
    assert torch.equal(found.targets, expected.targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"addends": 0}, "addends is 0; expected at least 1"),
        ({"length": 1}, "length is 1; expected at least addends, 2"),
        ({"addends": 51}, "length is 50; expected at least addends, 51"),
        ({"test_lengths": (50, 1)}, "length is 1; expected at least addends, 2"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Adding(**options)
    with pytest.raises(ValueError, match="length is -1; expected at least addends, 2"):
        Adding().batch(2, torch.Generator(), -1)


def test_registered():
    task = TASKS["adding"]()
    assert (task.input, task.output_size) == (Features(3), 1)
    assert (task.training_condition, task.test_conditions) == (50, (50, 200))
    assert list(task.phases()) == ["addend 1", "addend 2"]
