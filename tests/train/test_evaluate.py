"""Evaluation: fixed data, eval mode, results merged by condition."""

import pytest
import torch

from rims.errors import UserError
from rims.tasks import Digits
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
    inputs, targets = (torch.cat(parts, dim=1) for parts in zip(*(batch[:2] for batch in batches)))
    with torch.no_grad():
        outputs, _ = load_model(run)(inputs)
    accuracy = (outputs[-2:].argmax(-1) == targets[-2:]).float().mean()
    assert row["metrics"]["recall_accuracy"] == pytest.approx(float(accuracy))


@pytest.mark.parametrize(("wanted", "count"), [(None, 359), (100, 100), (5000, 359)])
def test_a_data_set_is_tested_on_every_image_once(config, folder, wanted, count):
    task = Digits(resolution=3, test_resolutions=(3, 4))
    run = train(config(task, updates=3), folder, progress=False)
    result = evaluate(run, sequences=wanted, accelerator="cpu")
    assert [(row["condition"], row["sequences"]) for row in result["conditions"]] == [(3, count), (4, count)]
    inputs, labels, _ = task.examples("test", torch.arange(count), 4)
    with torch.no_grad():
        outputs, _ = load_model(run)(inputs)
    hits = (outputs[-1].argmax(-1) == labels).float().mean()
    assert result["conditions"][1]["metrics"]["accuracy"] == pytest.approx(float(hits))


def test_generated_tasks_have_a_default(run, monkeypatch):
    monkeypatch.setattr("rims.train.data.TEST_SEQUENCES", 17)
    assert evaluate(run, [2], accelerator="cpu")["conditions"][0]["sequences"] == 17


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
