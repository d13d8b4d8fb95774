"""The digits of scikit-learn, from the package itself."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from rims.errors import UserError
from rims.tasks import TASKS, DatasetTask, Digits, Tokens, digits


def test_the_splits_hold_every_digit_once():
    task = Digits()
    data = load_digits()
    original = sorted(
        (label, *(image >= 8).astype(int).flatten()) for image, label in zip(data.images, data.target)
    )
    found = []
    for split in ("training", "validation", "test"):
        inputs, labels, _ = task.examples(split, torch.arange(task.size(split)))
        assert inputs.shape == (64, task.size(split))
        found += [(label, *row) for label, row in zip(labels.tolist(), inputs.T.tolist())]
    assert sorted(found) == original
    assert [task.size(split) for split in ("training", "validation", "test")] == [1151, 287, 359]


@pytest.mark.parametrize("split", ["training", "validation", "test"])
def test_every_class_is_in_every_split(split):
    labels = Digits().splits()[split].labels
    assert (torch.bincount(labels, minlength=10) / len(labels) - 0.1).abs().max() < 0.05


def test_an_example_does_not_depend_on_its_company():
    task = Digits()
    inputs, labels, _ = task.examples("test", torch.arange(20), 11)
    assert inputs.shape == (121, 20)
    for index in (0, 7, 19):
        one = task.examples("test", torch.tensor([index]), 11)
        assert torch.equal(one.inputs[:, 0], inputs[:, index])
        assert one.targets == labels[index]


def test_a_batch_is_of_training_digits():
    task = Digits()
    training, labels, _ = task.examples("training", torch.arange(task.size("training")))
    known = {(label, *row) for label, row in zip(labels.tolist(), training.T.tolist())}
    inputs, labels, _ = task.batch(50, torch.Generator().manual_seed(0))
    assert {(label, *row) for label, row in zip(labels.tolist(), inputs.T.tolist())} <= known


def test_loss_and_metrics_are_those_of_the_last_step():
    task = Digits(resolution=2)
    batch = task.examples("test", torch.arange(7))
    outputs = torch.randn(4, 7, 10)
    metrics = task.metrics(outputs, batch)
    last = outputs[-1].double().numpy()
    chances = np.exp(last) / np.exp(last).sum(1, keepdims=True)
    losses = [-math.log(chances[row, label]) for row, label in enumerate(batch.targets.tolist())]
    hits = [int(last[row].argmax() == label) for row, label in enumerate(batch.targets.tolist())]
    assert float(metrics["cross_entropy"]) == pytest.approx(sum(losses) / 7, rel=1e-5)
    assert float(task.loss(outputs, batch)) == pytest.approx(sum(losses) / 7, rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(sum(hits) / 7)
    uniform = task.metrics(torch.zeros(4, 7, 10), batch)
    assert float(uniform["cross_entropy"]) == pytest.approx(task.chance()["cross_entropy"])
    assert task.chance()["accuracy"] == 0.1


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    digits._load.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"come with scikit-learn: pip install 'rims\[train\]'"):
        Digits().prepare()


def test_other_digits_are_refused(monkeypatch):
    digits._load.cache_clear()
    monkeypatch.setattr(digits, "MD5", "0" * 32)
    with pytest.raises(UserError, match="not those that this version of rims knows"):
        Digits().prepare()


def test_wrong_resolutions_are_named():
    for options in ({"resolution": 0}, {"test_resolutions": (8, 0)}):
        with pytest.raises(ValueError, match="resolution is 0; expected at least 1"):
            Digits(**options)
    with pytest.raises(ValueError, match="resolution is -2; expected at least 1"):
        Digits().examples("test", torch.arange(2), -2)


def test_registered():
    task = TASKS["digits"]()
    assert isinstance(task, DatasetTask)
    assert (task.input, task.output_size, task.condition_name) == (Tokens(2), 10, "resolution")
    assert (task.training_condition, task.test_conditions) == (8, (8, 9, 11, 14, 16))
    # To 8 as sequential MNIST's are to 14.
    assert task.test_conditions == tuple(round(8 * side / 14) for side in TASKS["smnist"]().test_conditions)
    assert task.phases() == {}
