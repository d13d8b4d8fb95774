"""The demo is fair, and ends in a table and a page of what it measured."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from rims.experiments.demo import INPUT_SIZE, arms, run_demo


def test_all_arms_have_one_task_one_budget_and_fair_sizes() -> None:
    configs = arms(updates=10, seed=3)
    rim, lstm, matched = configs["rim"], configs["lstm"], configs["lstm-parameters"]
    budgets = [(asdict(c.task), asdict(c.model), asdict(c.training)) for c in configs.values()]
    assert budgets[0] == budgets[1] == budgets[2]
    assert rim.core.hidden_size == lstm.core.hidden_size
    parameters = {name: c.core.build(INPUT_SIZE).num_parameters for name, c in configs.items()}
    assert parameters["lstm-parameters"] == pytest.approx(parameters["rim"], rel=0.01)
    assert rim.task.test_conditions == (20, 80, 200)
    assert matched.training.seed == 3


@pytest.mark.slow
def test_the_demo_prints_what_it_measured(tmp_path: Path, capsys) -> None:
    page = run_demo(tmp_path, updates=2, seed=0, test_sequences=32)
    printed = capsys.readouterr().out
    assert page == tmp_path / "report.html"
    for name in ("rim", "lstm", "lstm-parameters"):
        rows = json.loads((tmp_path / name / "evaluation.json").read_text())["conditions"]
        assert [row["condition"] for row in rows] == [20, 80, 200]
        for row in rows:
            assert f"{100 * row['metrics']['recall_accuracy']:.1f}" in printed
