"""Conditions as people read them, kinds of conditions, and references beside the cores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from rims.cores import GRUConfig, LSTMConfig
from rims.report import curves, print_table, words, write_report
from rims.report.gather import gather
from rims.tasks import TASKS, Copying, register

from .test_page import Page

Make = Callable[..., Path]


@pytest.fixture
def kinds() -> Iterator[Copying]:
    """A task whose conditions 4, 678 and 40 are kinds; registered for one test."""

    @register
    @dataclass
    class Kinds(Copying):
        name: ClassVar[str] = "kinds"
        condition_name: ClassVar[str] = "balls"
        categorical: ClassVar[bool] = True

        def label(self, condition: int) -> str:
            return {4: "4", 678: "6-8", 40: "4, curtain"}[condition]

    yield Kinds(length=3, delay=4, test_delays=(4, 678, 40))
    del TASKS["kinds"]


@pytest.fixture
def runs(make: Make, kinds: Copying) -> list[Path]:
    """Two seeds of a GRU and an LSTM; the references stand in one evaluation alone."""
    paths = [
        make("a", GRUConfig(6), 0, 0.75, task=kinds),
        make("b", GRUConfig(6), 1, 0.85, task=kinds),
        make("c", LSTMConfig(6), 0, 0.95, task=kinds),
    ]
    file = paths[1] / "evaluation.json"
    evaluation = json.loads(file.read_text())
    for row, score in zip(evaluation["conditions"], (0.3, 0.2, 0.1)):
        row["references"] = {"last frame": {"recall_accuracy": score}}
    file.write_text(json.dumps(evaluation))
    return paths


def test_the_table_has_labels_in_the_tasks_order_and_references(runs: list[Path]) -> None:
    page = Page(write_report(runs))
    table = page.tables[0]
    assert table[1][2:8] == ["balls4", "balls6-8", "balls4, curtain"] * 2
    assert table[2][:5] == ["GRU", "2", "80.0|± 63.5", "55.0|± 63.5", "55.0|± 63.5"]
    assert table[4][:5] == ["chance", "", "12.5", "12.5", "12.5"]
    assert table[5][:8] == ["last frame", "", "30.0", "20.0", "10.0", "–", "–", "–"]
    text = page.words.replace("\N{NO-BREAK SPACE}", " ")
    assert "Trained at balls 4, tested at 6-8: recall accuracy is 70.0 % for LSTM (1 seed)" in text


def test_the_terminal_says_the_same(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    print_table(runs)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["core", "seeds", "4", "6-8", "4,", "curtain"] in rows
    assert ["last", "frame", "30.0", "20.0", "10.0"] in rows


def test_untested_kinds_are_named_by_their_label(make: Make, kinds: Copying) -> None:
    path = make("a", task=kinds)
    text = json.loads((path / "evaluation.json").read_text())
    text["conditions"] = text["conditions"][:1]
    (path / "evaluation.json").write_text(json.dumps(text))
    (section,) = gather([path])
    assert "a is not evaluated at balls 6-8 and 4, curtain." in words.notes(section)


def test_kinds_stand_side_by_side_and_no_line_joins_them(runs: list[Path]) -> None:
    (section,) = gather(runs)
    axes = curves.by_condition(section, "recall_accuracy").axes[0]
    assert axes.get_xscale() == "linear"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["4\ntrained", "6-8", "4, curtain"]
    assert axes.get_xticks().tolist() == [0, 1, 2]
    joined = [line for line in axes.lines if line.get_linestyle() != "None"]
    # Chance and the training condition span the axes; references stay within their condition.
    assert all(max(line.get_xdata()) - min(line.get_xdata()) <= 1 for line in joined)
    heights = [float(line.get_ydata()[0]) for line in joined]
    assert [y for y in heights if y in (0.1, 0.2, 0.3)] == [0.3, 0.2, 0.1]
    points = {y for line in axes.lines if line.get_linestyle() == "None" for y in line.get_ydata()}
    assert {0.8, 0.95} <= {round(float(y), 6) for y in points}


@pytest.mark.parametrize(
    ("metric", "title", "unit", "score"),
    [
        ("f1", "F1", "", True),
        ("rollout_f1", "rollout F1", "", True),
        ("rollout_balanced_accuracy", "rollout balanced accuracy", "%", True),
        ("rollout_cross_entropy", "rollout cross-entropy", "nats", False),
        ("position_error", "position error", "pixels", False),
        ("mean_squared_error", "mean squared error", "", False),
    ],
)
def test_metrics_of_video_in_words(metric: str, title: str, unit: str, score: bool) -> None:
    assert (words.title(metric), words.unit(metric), words.is_score(metric)) == (title, unit, score)
    assert words.heading("f1") == "F1"
    assert words.heading(metric).startswith(title[0].upper())
