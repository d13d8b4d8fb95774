"""Evaluation: fixed data, eval mode, results merged by condition."""

import pytest
import torch

from rims.errors import UserError
from rims.train.checkpoint import load_model
from rims.train.data import held_out
from rims.train.evaluate import evaluate
from rims.train.fit import train


@pytest.fixture
def run(config, folder):
    return train(config(updates=10), folder, progress=False)


def test_it_is_deterministic_and_without_dropout(run):
    one = evaluate(run, sequences=300, accelerator="cpu")
    torch.rand(3)
    two = evaluate(run, sequences=300, accelerator="cpu")
    assert one == two == run.read_json("evaluation.json")
    assert [row["condition"] for row in one["conditions"]] == [2, 5]
    row = one["conditions"][1]
    assert (row["sequences"], row["update"], row["checkpoint"]) == (300, 10, "last")

    batches = list(held_out(run.config.task, "test", 5, 300))
    inputs, targets = (torch.cat(parts, dim=1) for parts in zip(*batches))
    with torch.no_grad():
        outputs, _ = load_model(run)(inputs)
    accuracy = (outputs[-2:].argmax(-1) == targets[-2:]).float().mean()
    assert row["metrics"]["recall_accuracy"] == pytest.approx(float(accuracy))


def test_conditions_merge(run):
    evaluate(run, [7], sequences=4, accelerator="cpu")
    evaluate(run, [3], sequences=4, checkpoint="best", accelerator="cpu")
    result = evaluate(run, [7], sequences=6, accelerator="cpu")
    found = [(row["condition"], row["sequences"], row["checkpoint"]) for row in result["conditions"]]
    assert found == [(3, 4, "best"), (7, 6, "last")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": [-1]}, "delay is -1"),
        ({"sequences": 0}, "sequences is 0; expected at least 1"),
        ({"accelerator": "abacus"}, "invalid accelerator name"),
    ],
)
def test_wrong_requests(run, options, message):
    with pytest.raises(UserError, match=message):
        evaluate(run, **options)
