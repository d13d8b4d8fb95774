"""Reports on real runs of the tasks beside copying, tiny ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from rims.cores import GRUConfig, RIMConfig
from rims.report import print_table, words, write_report
from rims.report.gather import gather
from rims.tasks import Adding, Digits, Task
from rims.train.config import ModelOptions, RunConfig, TrainingOptions
from rims.train.evaluate import evaluate
from rims.train.fit import train
from rims.train.folder import Run

from .test_page import Page

RIM = RIMConfig(hidden_size=6, num_rims=3, num_active=2)


@pytest.mark.parametrize(
    ("task", "where", "unit", "chance"),
    [
        (Adding(length=4, test_lengths=(4, 6)), "length", "mean squared error", "0.167"),
        (Digits(resolution=2, test_resolutions=(2, 3)), "resolution", "accuracy, %", "10.0"),
    ],
)
def test_a_report_names_the_metric_its_chance_and_the_axis(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: Task, where: str, unit: str, chance: str
) -> None:
    options = TrainingOptions(updates=4, validate_every=2, accelerator="cpu", validate_shifted=True)
    run = train(RunConfig(task, RIM, ModelOptions(5), options), tmp_path / "run", progress=False)
    evaluate(run, sequences=20, accelerator="cpu")
    page = Page(write_report([run.path]))
    header = page.tables[0][0]
    assert unit in header
    assert "loss" not in header
    easy, hard = task.test_conditions
    assert f"{where}{easy}" in page.tables[0][1]
    assert page.tables[0][-1][:3] == ["chance", "", chance]
    assert f"Trained at {where} {easy}, tested at {hard}: {unit.partition(',')[0]} is " in page.words
    assert f"One sequence, {where} {hard}" in page.words
    traced = page.tables[1]
    classes = [f"class {label}" for label in range(10)] if isinstance(task, Digits) else []
    assert traced[0] == ["% of steps", *task.phases(easy), *classes, "all", "switches"]
    assert [row[0] for row in traced[1:]] == ["RIM 0", "RIM 1", "RIM 2"]
    print_table([run.path])
    assert f"{unit}, by {where}" in capsys.readouterr().out
    (section,) = gather([run.path])
    # The curves are those of the training condition, though others were validated too.
    assert section.results[0].curve("validation", "loss")[0] == [2, 4]


def test_the_smallest_error_and_the_largest_accuracy_come_first(tmp_path: Path) -> None:
    for task, metric, first in (
        (Adding(), "mean_squared_error", "GRU"),
        (Digits(), "accuracy", "RIM"),
    ):
        condition = task.test_conditions[-1]
        folders = []
        for core, value in ((RIM, 0.75), (GRUConfig(4), 0.00042)):
            run = Run.create(tmp_path / f"{task.name}-{core.name}", RunConfig(task, core))
            row = {"condition": condition, "sequences": 1, "metrics": {metric: value}}
            run.write_json("evaluation.json", {"commit": None, "conditions": [row]})
            folders.append(run.path)
        (section,) = gather(folders)
        sentence = words.headline(section)
        other = {"GRU": "RIM", "RIM": "GRU"}[first]
        assert sentence.index(f"for {first}") < sentence.index(f"for {other}")
        assert "0.00042" in sentence or task.name == "digits"


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0.594, "0.594"),
        (0.00023, "0.00023"),
        (0.0123, "0.012"),
        (1.2e-5, "1.2e-05"),
        (0.0, "0.000"),
        (12.3456, "12.3"),
    ],
)
def test_small_errors_keep_two_digits(number: float, written: str) -> None:
    assert words.value("mean_squared_error", number) == written
