"""The command that removes RIMs, against removal by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rims.cli import main
from rims.cores import CoreConfig, LSTMConfig, RIMConfig
from rims.errors import UserError
from rims.report.masking import mask
from rims.tasks import Copying
from rims.train.checkpoint import load_model
from rims.train.config import ModelOptions, RunConfig, TrainingOptions
from rims.train.data import held_out, measure
from rims.train.fit import train
from rims.train.folder import Run

TASK = Copying(length=2, delay=3, test_delays=(3, 5))


def trained(folder: Path, core: CoreConfig) -> Run:
    options = TrainingOptions(updates=2, batch_size=4, validation_sequences=4, accelerator="cpu")
    return train(RunConfig(TASK, core, ModelOptions(4), options), folder, progress=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    core = RIMConfig(hidden_size=9, num_rims=3, num_active=2)
    return trained(tmp_path_factory.mktemp("masking") / "rim", core)


@pytest.mark.parametrize("condition", [None, 5])
def test_metrics_are_those_without_the_rim(run: Run, condition: int | None) -> None:
    found = mask(run, condition, 300, accelerator="cpu")
    model = load_model(run)
    assert list(found) == [None, 0, 1, 2]
    for rim, metrics in found.items():
        model.core.disabled = () if rim is None else (rim,)
        assert metrics == pytest.approx(measure(model, TASK, held_out(TASK, "test", condition or 3, 300)))
    assert len({metrics["loss"] for metrics in found.values()}) > 2


def test_the_command_prints_a_table_or_json(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    options = [str(run.path), "--sequences", "20", "--accelerator", "cpu"]
    main(["lesion", *options])
    table = capsys.readouterr().out
    for part in ("delay", "removed", "recall accuracy", "none", "RIM 0", "RIM 2"):
        assert part in table
    main(["lesion", *options, "--delays", "3", "5", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["condition"], row["removed"]) for row in rows] == [
        (delay, rim) for delay in (3, 5) for rim in (None, 0, 1, 2)
    ]
    assert rows[5]["metrics"] == pytest.approx(mask(run, 5, 20, accelerator="cpu")[0])


def test_what_cannot_be_removed_is_refused(tmp_path: Path, run: Run) -> None:
    for name, core in (
        ("lstm", LSTMConfig(hidden_size=4)),
        ("one", RIMConfig(hidden_size=4, num_rims=1, num_active=1)),
    ):
        other = Run.create(tmp_path / name, RunConfig(TASK, core, ModelOptions(4)))
        with pytest.raises(UserError, match=f"the core {core.name}; expected one of several RIMs"):
            mask(other)
    with pytest.raises(UserError, match="sequences is 0; expected at least 1"):
        mask(run, sequences=0)
    with pytest.raises(UserError, match="delay is -1; expected at least 1"):
        mask(run, -1, 4)
