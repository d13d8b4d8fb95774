"""What shares a row, what it is called, and what is taken from the folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rims.cores import CORES, GRUConfig, LSTMConfig, RIMConfig
from rims.errors import UserError
from rims.report.curves import by_condition
from rims.report.gather import gather
from rims.report.labels import COLOURS, display_name
from rims.tasks import Copying

Make = Callable[..., Path]


def test_runs_that_differ_in_the_seed_alone_share_a_row(make: Make) -> None:
    paths = [make("b", seed=1), make("a", seed=0), make("c", LSTMConfig(6)), make("d", learning_rate=0.5)]
    (section,) = gather(paths)
    assert [[result.name for result in group.results] for group in section.groups] == [
        ["a", "b"],
        ["c"],
        ["d"],
    ]
    assert [g.label for g in section.groups] == ["GRU learning_rate=0.001", "LSTM", "GRU learning_rate=0.5"]
    assert len({group.colour for group in section.groups}) == 3


def test_one_seed_twice_is_not_two_samples(make: Make) -> None:
    (section,) = gather([make("a"), make("b")])
    assert [group.label for group in section.groups] == ["GRU a", "GRU b"]


def test_a_folder_given_twice_is_one_run(make: Make) -> None:
    path = make("a")
    (section,) = gather([path, path.parent / "." / path.name])
    assert len(section.results) == 1


def test_tasks_with_other_chance_levels_are_kept_apart(make: Make, task: Copying) -> None:
    sections = gather([make("a"), make("b", task=replace(task, symbols=4))])
    assert [section.chance["recall_accuracy"] for section in sections] == [1 / 8, 1 / 4]


def test_the_mean_is_over_the_seeds_that_are_evaluated(make: Make) -> None:
    (section,) = gather([make("a", seed=0, accuracy=0.5), make("b", seed=1, accuracy=None)])
    estimate = section.groups[0].metric("recall_accuracy", 4)
    assert estimate is not None
    assert (estimate.mean, estimate.half_width, estimate.count) == (0.5, None, 1)


def test_curves_are_averaged_where_every_seed_has_them(make: Make) -> None:
    short = make("b", seed=1)
    lines = (short / "metrics.jsonl").read_text().splitlines(keepends=True)
    (short / "metrics.jsonl").write_text("".join(lines[:4]))
    (section,) = gather([make("a", seed=0), short])
    assert section.groups[0].curve("validation", "recall_accuracy") == ([250, 500], [[0.25] * 2, [0.5] * 2])


def test_without_a_summary_the_last_measurement_tells_how_far_it_is(make: Make) -> None:
    (section,) = gather([make("a", summary=False)])
    assert (section.results[0].updates, section.results[0].seconds) == (1000, 100.0)
    assert section.groups[0].summary("parameters") is None


def test_the_commit_is_the_evaluations_and_else_the_last_starts(make: Make) -> None:
    (section,) = gather([make("a"), make("b", GRUConfig(8), accuracy=None)])
    assert [group.commits for group in section.groups] == [["0123456"], ["fedcba9+"]]


def test_missing_and_damaged_folders_are_named(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected at least one"):
        gather([])
    with pytest.raises(UserError, match="nowhere is no run folder"):
        gather([tmp_path / "nowhere"])
    path = make("a")
    (path / "evaluation.json").write_text('{"conditions": [{"condition": 4}]}')
    with pytest.raises(UserError, match=r"evaluation.json is damaged: KeyError 'metrics'"):
        gather([path])


def test_rows_of_a_large_grid_are_called_by_their_arms_and_fit_a_plot(make: Make) -> None:
    names = [f"arm-{size}" for size in range(2, 22)]
    variants = ("paper", "official") * 10
    paths = [
        make(f"{name}-{seed}", RIMConfig(6 * size, selection="competition", variant=variant), seed)
        for size, (name, variant) in enumerate(zip(names, variants), 1)
        for seed in (0, 1)
    ]
    (section,) = gather(paths)
    assert [group.label for group in section.groups] == names
    colours = [group.colour for group in section.groups]
    assert len(set(colours[:17])) == 17  # ten cores and seven shades
    figure = by_condition(section, "recall_accuracy")
    FigureCanvasAgg(figure).draw()
    plot, legend = figure.axes[0].get_window_extent(), figure.legends[0].get_window_extent()
    assert legend.x1 < figure.bbox.x1
    assert plot.y1 < legend.y0
    assert plot.height > 0.8 * figure.dpi
    # In a small one the core says what it is.
    (section,) = gather([make("x-0", GRUConfig(6)), make("y-0", LSTMConfig(6)), make("z-0", LSTMConfig(7))])
    assert [g.label for g in section.groups] == ["GRU", "LSTM hidden_size=6", "LSTM hidden_size=7"]


def test_every_core_has_a_colour_of_its_own_and_its_papers_spelling() -> None:
    assert set(COLOURS) == set(CORES)
    assert len(set(COLOURS.values())) == len(COLOURS)
    names = {"rim": "RIM", "transformer": "Transformer", "entnet": "EntNet", "slstm": "sLSTM"}
    assert {core: display_name(core) for core in names} == names
