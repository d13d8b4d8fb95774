"""What a report shows of models of video: the numbers of the rollout itself, in pictures that stand alone."""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rims.cores import GRUConfig, RIMConfig
from rims.report import film, screening, video, write_report
from rims.report.gather import gather
from rims.report.page import Plots
from rims.tasks import TASKS, register
from rims.tasks.video import as_floats, roll_out
from rims.train.checkpoint import load_model
from rims.train.config import ModelOptions, RunConfig, TrainingOptions
from rims.train.data import unseen
from rims.train.evaluate import evaluate
from rims.train.fit import train

from ..tasks.moving import Moving
from .test_page import Page

MODEL = ModelOptions(input_size=8, channels=(2, 2, 4), hidden=8)
CORES = {
    "a": RIMConfig(hidden_size=12, num_rims=3, num_active=2),
    "places": RIMConfig(hidden_size=12, num_rims=3, num_active=2, inputs="slots"),
    "strips": RIMConfig(hidden_size=12, num_rims=4, num_active=2, inputs="private"),
    "gru": GRUConfig(hidden_size=6),
}


@pytest.fixture(scope="module")
def task() -> Iterator[Moving]:
    """Registered while the runs of this file are read."""
    register(Moving)
    yield Moving()
    del TASKS["moving"]


@pytest.fixture(scope="module")
def runs(task: Moving, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of two updates, three kinds of RIMs and a GRU."""
    folder = tmp_path_factory.mktemp("video")
    torch.manual_seed(0)
    found = {}
    for name, core in CORES.items():
        options = TrainingOptions(updates=2, batch_size=2, validation_sequences=2, accelerator="cpu")
        run = train(RunConfig(task, core, MODEL, options), folder / name, progress=False)
        evaluate(run, sequences=4, accelerator="cpu")
        found[name] = run.path
    return found


@pytest.fixture(scope="module")
def seen(runs: dict[str, Path]) -> video.Video:
    (section,) = gather(runs.values())
    return video.observe(section)


@pytest.fixture(scope="module")
def report(runs: dict[str, Path]) -> Path:
    return write_report([runs[name] for name in ("places", "strips", "gru")])


def test_what_is_shown_is_the_rollout_of_the_checkpoint(seen, runs, task) -> None:
    assert [scene.condition for scene in seen.scenes] == [1, 2]
    assert not seen.missing
    for scene in seen.scenes:
        batch = unseen(task, video.SEQUENCES, video.SEED, scene.condition)
        frames = as_floats(torch.cat([batch.inputs, batch.targets[-1:]]))
        assert torch.equal(scene.truth, frames[:7, :3])
        assert [run.result.run.path for run in scene.runs] == list(runs.values())
        for run in scene.runs:
            model = load_model(run.result.run)
            _, logits = roll_out(model, batch.inputs[:3, :3], 4)
            torch.testing.assert_close(run.predicted, logits.sigmoid())
            assert run.curves["model"]["f1"].shape == (6,)


def test_the_raster_is_of_the_frames_that_went_in(seen) -> None:
    """Traced one step at a time, through the model's own state."""
    for run in seen.scenes[1].runs:
        if run.result.name == "gru":
            assert run.active is None
            continue
        model, truth = load_model(run.result.run), seen.scenes[1].truth
        state, frame, active = None, truth[:1], []
        for t in range(6):
            with torch.no_grad():
                output, state, trace = model.core.trace(model.encode(frame), state)
                predicted = model.head(output).sigmoid()
            active.append(trace.active[0, 0])
            frame = truth[t + 1 : t + 2] if t < 2 else predicted
        assert torch.equal(run.active, torch.stack(active))


def test_attention_is_over_places_of_active_rims(seen) -> None:
    for scene in seen.scenes:
        by_name = {run.result.name: run for run in scene.runs}
        assert by_name["a"].attention is None
        run = by_name["places"]
        assert run.attention.shape == (6, 3, 2, 2)
        assert run.mean_attention.shape == (3, 2, 2)
        looked = run.attention.sum((-2, -1))
        assert (looked[~run.active] == 0).all()
        assert ((looked[run.active] > 0) & (looked[run.active] < 1)).all()


def test_attention_to_strips_lies_on_the_strip_alone(seen) -> None:
    (run,) = (run for run in seen.scenes[0].runs if run.result.name == "strips")
    assert run.attention.shape == (6, 4, 16, 1)
    looked = run.attention[..., 0]
    for rim, rows in enumerate(looked.unbind(1)):  # four strips of four rows
        own = rows[:, 4 * rim : 4 * rim + 4]
        assert (own == own[:, :1]).all()
        assert float(rows.sum()) == pytest.approx(float(own.sum()))
        active = run.active[:, rim]
        assert ((own[active] > 0) & (own[active] < 1)).all()
        assert not own[~active].any()


def test_strips_are_those_that_the_rims_see(seen, task) -> None:
    (run,) = (run for run in seen.scenes[0].runs if run.result.name == "strips")
    batch = unseen(task, video.SEQUENCES, video.SEED, 1)
    model = load_model(run.result.run)
    fed, _ = roll_out(model, batch.inputs[:3], 4)
    with torch.no_grad():
        _, _, trace = model.core.trace(model.encode(fed))
    varied = 0
    for t in range(6):
        for k in range(4):
            bright = batch.inputs[t, :, 0, 4 * k : 4 * k + 4].double().mean((1, 2)).numpy()
            active = trace.active[t, :, k].numpy().astype(float)
            if 0 < active.mean() < 1 and np.ptp(bright) > 0:
                varied += 1
                expected = np.corrcoef(active, bright)[0, 1]
                assert run.correlation[t, k].item() == pytest.approx(expected, abs=1e-5)
            else:
                assert run.correlation[t, k].isnan()
    assert varied > 4


def test_activity_that_never_changes_has_no_empty_plot(seen) -> None:
    scene = seen.scenes[0]
    (run,) = (run for run in scene.runs if run.result.name == "strips")
    shown = screening._rims(run, scene, "discs 1", Plots())
    assert [plot["title"] for plot in shown][1:] == ["Active where the strip is bright, discs 1"]
    still = replace(run, correlation=torch.full_like(run.correlation, torch.nan))
    (raster,) = screening._rims(still, scene, "discs 1", Plots())
    assert "the same in all sequences" in raster["note"]


def test_damage_is_that_of_the_model_without_the_rim(seen, runs, task) -> None:
    assert [damage.result.name for damage in seen.damage] == ["a", "places", "strips"]
    damage = seen.damage[0]
    model = load_model(damage.result.run)
    batch = unseen(task, video.SEQUENCES, video.SEED, 1)
    assert list(damage.metrics) == list(damage.predicted) == [None, 0, 1, 2]
    for rim, metrics in damage.metrics.items():
        model.core.disabled = () if rim is None else (rim,)
        with torch.no_grad():
            expected = task.measure(model, batch)
        assert metrics == pytest.approx({name: float(value) for name, value in expected.items()})
        _, logits = roll_out(model, batch.inputs[:3, :1], 4)
        torch.testing.assert_close(damage.predicted[rim], logits[:, 0].sigmoid())


def test_the_page_has_every_picture_and_needs_nothing_else(report, runs) -> None:
    text = report.read_text()
    page = Page(report)
    assert "script" not in page.seen
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) == 2
    for source in sources:
        assert source.startswith("data:image/png;base64,")
        image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert image.n_frames == 7
    assert not re.search(r'(href|src)="(?!#|data:image/png;base64,)', text)
    labels = re.findall(r'aria-label="([^"]*)"', text)
    for at in ("discs 1", "discs 2"):
        for title in ("Truth and predictions", "Position error over frames"):
            assert labels.count(f"{title}, {at}") == 1
        assert labels.count(f"Where RIMs look, {at}") == 2
        assert labels.count(f"Who is active in the first sequence, {at}") == 2
        assert labels.count(f"Active where the strip is bright, {at}") == 1
    assert labels.count("With one RIM removed, discs 1") == 2
    damaged = [table for table in page.tables if table[0][0] == "discs 1"]
    assert [row[0] for row in damaged[0]] == [
        "discs 1",
        "intact",
        "without RIM 0",
        "without RIM 1",
        "without RIM 2",
    ]
    assert {"last frame", "constant velocity"} <= {row[0] for row in page.tables[0]}
    assert "unreliable beyond some ten frames" in page.words


def test_runs_that_cannot_be_shown_are_named(runs, task, seen, tmp_path) -> None:
    from rims.train.folder import Run

    other = Run.create(tmp_path / "other", RunConfig(Moving(side=24), GRUConfig(6), MODEL))
    empty = Run.create(tmp_path / "empty", RunConfig(task, GRUConfig(9), MODEL))
    damaged = Run.create(tmp_path / "damaged", RunConfig(task, GRUConfig(7), MODEL))
    damaged.last_checkpoint.write_bytes(b"no checkpoint")
    (section,) = gather([runs["gru"], other.path, empty.path, damaged.path])
    found = video.observe(section)
    assert [run.result.name for run in found.scenes[0].runs] == ["gru"]
    assert len(found.missing) == 3
    assert "has other frames than GRU" in found.missing[0]
    assert f"has no checkpoint yet: rims resume {empty.path}" in found.missing[1]
    assert "damaged or is no checkpoint of rims" in found.missing[2]
    oracle = Run.create(tmp_path / "oracle", RunConfig(Moving(oracle=True), GRUConfig(6), MODEL))
    (section,) = gather([oracle.path, runs["gru"]])
    found = video.observe(section)
    assert [run.result.name for run in found.scenes[0].runs] == ["gru"]
    assert torch.equal(found.scenes[0].truth, seen.scenes[0].truth)
    assert found.missing == [f"{section.groups[0].label} is shown what it is to predict: it has no rollout."]
    (section,) = gather([oracle.path])
    assert not video.observe(section).scenes
    (section,) = gather([empty.path])
    assert not video.observe(section).scenes
    assert "has no checkpoint yet" in Page(write_report([empty.path])).words


@pytest.mark.parametrize(("feed_in", "last"), [(15, 49), (5, 29), (3, 6), (1, 1), (4, 40), (12, 12)])
def test_columns_have_the_first_frame_that_is_not_fed(feed_in: int, last: int) -> None:
    numbers = film.columns(feed_in, last)
    assert feed_in in numbers
    assert len(numbers) <= 12
    assert numbers[0] >= 1
    assert numbers[-1] <= last
    assert len({b - a for a, b in itertools.pairwise(numbers)}) <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_film_shows_every_pixel_twice_as_large_or_more(channels: int) -> None:
    frames = torch.rand(4, channels, 48, 48)
    rows = {
        "truth": [film.pictures(frames)] * 2,
        "a rather long name of a core": [film.pictures(1 - frames)] * 2,
    }
    image = Image.open(io.BytesIO(film.film(rows, 2, 3)))
    assert image.n_frames == 4
    assert image.mode == ("L" if channels == 1 else "RGB")
    for number in range(4):
        image.seek(number)
        shown = np.asarray(image)
        expected = (frames[number].permute(1, 2, 0) * 255).round().byte().numpy().squeeze()
        large = expected.repeat(2, 0).repeat(2, 1)
        top = 22 + 18
        assert (shown[top : top + 96, 100:196] == large).all()
    assert image.info["duration"] == pytest.approx(10_000 * film.SECONDS)


LONG = "RIM num_active=4 inputs=vector input_attention=True comm_heads=1"


def test_long_names_are_folded_and_nothing_of_them_is_cut_off() -> None:
    frames = film.pictures(torch.rand(12, 1, 16, 16))
    figure = film.strip({"truth": frames, LONG: frames, "x" * 40: frames}, range(1, 13), 4)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    names = axes.get_yticklabels()
    assert " ".join(names[1].get_text().splitlines()) == LONG
    assert all(name.get_window_extent().x0 >= 0 for name in names)
    assert axes.get_window_extent().width > 0.5 * figure.bbox.width
    short, long = (Image.open(io.BytesIO(film.film({name: [frames]}, 2, 11))) for name in ("RIM", LONG))
    assert short.width == long.width == film.TILE
    assert long.height > short.height + 30  # more lines, and not wider
    ink = np.asarray(long.convert("L"))[22 : long.height - film.TILE - 5] < 128
    assert not ink[:, -1].any()


def test_a_strip_holds_its_pictures_and_marks_the_end_of_feeding() -> None:
    frames = (torch.arange(1, 5)[:, None, None, None] / 4).expand(-1, 1, 8, 8)
    numbers = [2, 5, 8, 11]
    figure = film.strip({"truth": film.pictures(frames), "a": film.pictures(frames)}, numbers, 5)
    (axes,) = figure.axes
    (image,) = axes.images
    canvas = np.asarray(image.get_array())
    assert canvas.shape == (18, 38, 3)
    assert [canvas[0, 10 * i, 0] for i in range(4)] == [64, 128, 191, 255]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "5", "8", "11"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["truth", "a"]
    (line,) = axes.lines
    assert 8 <= line.get_xdata()[0] <= 10  # between the first and the second picture
