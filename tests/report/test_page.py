"""The page says what the folders say, needs nothing from elsewhere, and admits what is missing."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from rims.cores import CoreConfig, GRUConfig, LSTMConfig
from rims.errors import UserError
from rims.models import SequenceModel
from rims.report import trace_model, write_report
from rims.tasks import Copying

Make = Callable[..., Path]
VOID = {"meta", "br", "img", "use", "path", "image", "rect", "circle"}


class Page(HTMLParser):
    """Tables as lists of rows of texts, the text outside of plots, and every attribute."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.words = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(path.read_text())
        assert not self.open, "unclosed elements"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open or "svg" in self.open:
            return
        self.words += data
        if "td" in self.open or "th" in self.open:
            text = data.strip().replace("\N{NO-BREAK SPACE}", " ")
            self.tables[-1][-1][-1] += "|" * ("small" in self.open) + text


def test_the_table_holds_the_numbers_of_the_folders(make: Make) -> None:
    runs = [make("a", seed=0, accuracy=0.75), make("b", seed=1, accuracy=0.85), make("c", LSTMConfig(7))]
    table = Page(write_report(runs)).tables[0]
    # The mean of two is known to t(0.975, 1) times half their distance: 12.706 * 0.05 = 0.635.
    cost = ["6", "1,234,567", "4,321", "7,654,321", "1,000", "1 h 02 min", "0123456"]
    entropies = ["1.250|± 0.000"] * 2
    assert table[2] == ["GRU", "2", "80.0|± 63.5", "55.0|± 63.5", *entropies, *cost]
    assert table[3] == ["LSTM", "1", "75.0", "50.0", "1.250", "1.250", "7", *cost[1:]]
    assert table[4] == ["chance", "", "12.5", "12.5", "2.079", "2.079", ""]


def test_the_headline_is_computed_from_the_hardest_condition(make: Make) -> None:
    page = Page(write_report([make("a", accuracy=0.5), make("b", LSTMConfig(6), accuracy=0.75)]))
    words = page.words.replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "Trained at delay 4, tested at 8: "
        "recall accuracy is 50.0 % for LSTM (1 seed) and 25.0 % for GRU (1 seed); chance is 12.5 %."
    ) in words


def test_nothing_comes_from_elsewhere_and_nothing_runs(
    make: Make, traced: type[CoreConfig], loads: None
) -> None:
    page = Page(write_report([make("a", traced()), make("b")]))
    assert not {"script", "link", "iframe", "img"} & {*page.seen}
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "srcset"):
            assert value is not None
            assert value.startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"(url\(|@import )\s*['\"]?(?!#)", " ".join(v or "" for _, v in page.attributes))


def test_ids_are_unique_over_all_plots(make: Make, traced: type[CoreConfig], loads: None) -> None:
    """Two plots with one id would clip each other; the same id may stand for the same shape."""
    text = write_report([make("a", traced()), make("b")]).read_text()
    shapes: dict[str, str] = {}
    for name, shape in re.findall(r'<(?:clipPath|path) id="([^"]+)"(.*?)>', text, re.S):
        assert shapes.setdefault(name, shape) == shape


def test_names_are_escaped(make: Make, tmp_path: Path) -> None:
    name = "<script>alert(1)<"
    text = write_report([make(name), make("b", GRUConfig(8))], tmp_path / "report.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;" in text


def test_what_is_missing_is_said(make: Make, traced: type[CoreConfig]) -> None:
    path = make("a b", traced(), accuracy=None, summary=False, checkpoint=False, measurements=False)
    (path / "versions.json").unlink()
    words = Page(write_report([path])).words
    assert "no run on copying has been evaluated" in words
    assert f"a b is not evaluated yet: rims eval '{path}'" in words
    assert "a b has not finished (0 of 1,000 updates, no summary)" in words
    assert "its learning curves are missing" in words
    assert "No checkpoint yet" in words
    assert "not recorded in this folder" in words
    assert "One seed, so no interval" in words


def test_an_old_evaluation_is_told_from_a_new_one(make: Make) -> None:
    path = make("a")
    text = (path / "evaluation.json").read_text()
    tested = '"checkpoint": "best", "update": 750, "sequences"'
    (path / "evaluation.json").write_text(text.replace('"sequences"', tested))
    words = Page(write_report([path])).words
    assert "Tested with the best checkpoint: a of update 750 of 1,000." in words


def test_a_checkpoint_that_cannot_be_loaded_leaves_the_rest(
    make: Make, traced: type[CoreConfig], loads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise UserError("last.ckpt is damaged")

    monkeypatch.setattr(sys.modules["rims.train.checkpoint"], "load_model", refuse)
    page = Page(write_report([make("a", traced())]))
    assert "The checkpoint cannot be traced: last.ckpt is damaged" in page.words
    assert page.tables[0][2][2] == "75.0"


def test_usage_is_that_of_the_trace(make: Make, traced: type[CoreConfig], loads: None) -> None:
    """Ten steps at delay 4: RIM 0 is always active, RIM 1 at odd ones, RIM 2 where 3 divides t + 2."""
    at_4, at_8 = Page(write_report([make("a", traced())])).tables[1:]
    assert at_4[0] == ["% of steps", "symbols", "delay", "recall", "all", "switches"]
    assert at_4[1] == ["RIM 0", "100.0", "100.0", "100.0", "100.0", "0.0"]
    assert at_4[2] == ["RIM 1", "33.3", "50.0", "66.7", "50.0", "100.0"]
    assert at_4[3][:5] == ["RIM 2", "33.3", "25.0", "33.3", "30.0"]
    assert len(at_8) == 4


def test_a_single_run_keeps_its_plots(make: Make, traced: type[CoreConfig], loads: None) -> None:
    path = make("a", traced())
    assert write_report([path]) == path / "report.html"
    names = {file.stem for file in (path / "plots").iterdir()}
    assert names == {
        "copying_recall_accuracy_by_delay",
        "copying_recall_cross_entropy_by_delay",
        "copying_loss_while_learning",
        "copying_recall_accuracy_while_learning",
        *(f"{kind}_a_delay_{delay}" for kind in ("raster", "mean_activity") for delay in (4, 8)),
    }
    for name in names:
        assert (path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"</svg>" in (path / "plots" / f"{name}.svg").read_bytes()


def test_several_runs_meet_in_their_common_parent(make: Make, tmp_path: Path) -> None:
    runs = [make("x/a"), make("x/y/b")]
    assert write_report(runs) == tmp_path / "x" / "report.html"
    assert not (runs[0] / "plots").exists()
    assert write_report(runs, tmp_path / "new" / "page.html") == tmp_path / "new" / "page.html"


def test_an_output_that_cannot_be_written_is_an_error(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report([make("a")], tmp_path / "file" / "report.html")


def test_the_same_folders_make_the_same_page(make: Make) -> None:
    path = make("a")
    assert write_report([path]).read_text() == write_report([path]).read_text()


def test_seeds_of_wild_losses_are_drawn(make: Make) -> None:
    """Zero, infinite and NaN losses must not stop a report: a diverged run is what one wants to see."""
    runs = [make(name, seed=seed) for seed, name in enumerate("ab")]
    for run, loss in zip(runs, ("0.0", "NaN")):
        with open(run / "metrics.jsonl", "a") as file:
            file.write(f'{{"update": 1250, "split": "training", "seconds": 1, "loss": {loss}}}\n')
            file.write('{"update": 1500, "split": "training", "seconds": 1, "loss": Infinity}\n')
    write_report(runs)


def test_trace_model_sees_no_dropout_and_keeps_the_mode(task: Copying, traced: type[CoreConfig]) -> None:
    model = SequenceModel(task, traced(), 5, dropout=0.9)
    inputs = task.batch(2, torch.Generator().manual_seed(0)).inputs
    outputs, trace = trace_model(model, inputs)
    assert model.training
    assert trace.active.shape == (10, 2, 3)
    assert not outputs.requires_grad
    torch.testing.assert_close(outputs, model.eval()(inputs)[0])


def test_a_core_without_a_trace_is_refused(task: Copying) -> None:
    model = SequenceModel(task, GRUConfig(6), 5)
    with pytest.raises(UserError, match="GRUCore cannot be traced"):
        trace_model(model, task.batch(2, torch.Generator()).inputs)
