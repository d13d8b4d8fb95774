"""Video tasks from training to a report's traces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rims.cores import LSTMConfig, RIMConfig
from rims.report.activity import trace_model
from rims.tasks import TASKS, register
from rims.train.checkpoint import load_model
from rims.train.config import ModelOptions, RunConfig, TrainingOptions
from rims.train.evaluate import evaluate
from rims.train.fit import train
from rims.train.folder import Run
from tests.tasks.moving import Moving

RIM = {"hidden_size": 12, "num_rims": 3, "num_active": 2, "input_key_size": 4, "comm_heads": 1}
CORES = {
    "lstm": LSTMConfig(4),
    "rim": RIMConfig(**RIM),
    "slots": RIMConfig(**RIM, inputs="slots"),
    "private": RIMConfig(**RIM, inputs="private"),
}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register(Moving)
    yield
    del TASKS[Moving.name]


@pytest.mark.parametrize("kind", CORES)
def test_a_run_trains_and_is_tested(kind, folder: Path) -> None:
    training = TrainingOptions(
        updates=2, batch_size=3, validation_sequences=4, checkpoint_every=1, accelerator="cpu"
    )
    config = RunConfig(Moving(), CORES[kind], ModelOptions(6, channels=(2, 3, 4), hidden=5), training)
    run = train(config, folder, progress=False)
    assert Run.open(folder).config == config

    result = evaluate(run, sequences=5, accelerator="cpu")
    for row in result["conditions"]:
        assert row["metrics"].keys() == row["references"]["last frame"].keys()
        assert row["references"]["constant velocity"]["position_error"] < 0.1
        assert all(value >= 0 for value in row["metrics"].values())
    assert run.read_json("summary.json")["validation"].keys() == row["metrics"].keys()

    model = load_model(run)
    inputs = config.task.batch(2, torch.Generator().manual_seed(0)).inputs
    if kind == "slots":
        assert model.core.num_inputs == 4  # the maps of 16 x 16 are 2 x 2
    if kind != "lstm":
        outputs, trace = trace_model(model, inputs)
        assert trace.active.sum(-1).unique().tolist() == [2]
        assert trace.input_attention.shape[-1] == {"slots": 5}.get(kind, 2)
        with torch.no_grad():
            torch.testing.assert_close(outputs, model(inputs)[0])


def test_options_of_frames_are_ignored_by_old_runs_and_other_tasks(config, folder: Path) -> None:
    data = config().to_json()
    for option in ("channels", "hidden"):
        del data["model"][option]
    assert RunConfig.from_json(data) == config()
    demo = Path(__file__).parents[2] / "results" / "demo" / "rim"
    options = Run.open(demo).config
    assert options.core.inputs == "vector"
    assert (options.model.channels, options.model.hidden) == ((16, 32, 64), 512)
