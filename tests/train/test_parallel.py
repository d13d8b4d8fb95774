"""Several processes, each with its part of a batch, learn what one process learns from the whole of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rims.train.fit
from rims.tasks import Batch, Task
from rims.train.config import RunConfig
from rims.train.data import TrainingStream, training_batch
from rims.train.fit import train
from rims.train.folder import Run

from .helpers import rows

CORES = {
    # The command takes the default, true; a file without the option is one of before it.
    "rim": {"hidden_size": 12, "num_rims": 3, "num_active": 2, "comm_tanh": True},
    "lstm": {"hidden_size": 5},
}
TASKS = {
    "copying": {"length": 3, "delay": 4, "test_delays": [4]},
    "digits": {"resolution": 4, "test_resolutions": [4]},
}


def config(core: str, task: str, **training: Any) -> RunConfig:
    """A run in float64, so that only the order of sums differs, on the CPU."""
    options = {"batch_size": 6, "clip": 0.0, "validate_every": 1, "validation_sequences": 8, "threads": 1}
    options |= {"accelerator": "cpu", "precision": "64-true", **training}
    return RunConfig.from_json(
        {
            "task": {"name": task, **TASKS[task]},
            "core": {"name": core, **CORES[core]},
            "model": {"input_size": 4},
            "training": options,
        }
    )


def start(config: RunConfig, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """The real command: Lightning starts the other processes of a node by it too."""
    command = [sys.executable, "-m", "rims", "train", config.task.name, f"core:{config.core.name}"]
    data = config.to_json()
    for part in ("task", "core", "model", "training"):
        for name, value in data[part].items():
            if name == "name" or isinstance(value, bool) or value is None:
                continue
            values = value if isinstance(value, list | tuple) else [value]
            command += [f"--{part}.{name.replace('_', '-')}", *map(str, values)]
    command += ["--run", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    return out


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def gradients(run: Run) -> list[torch.Tensor]:
    """Those of the first update: Adam's first moment is then a tenth of the gradient, unscaled."""
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    assert checkpoint["global_step"] == 1
    (adam,) = checkpoint["optimizer_states"]
    assert adam["param_groups"][0]["betas"][0] == 0.9
    return [adam["state"][number]["exp_avg"] / 0.1 for number in sorted(adam["state"])]


def assert_equal_gradients(one: Run, two: Run) -> None:
    pairs = list(zip(gradients(one), gradients(two), strict=True))
    assert len(pairs) == len(list(rims.train.fit.TrainingModule(one.config).parameters()))
    for a, b in pairs:
        assert a.dtype == torch.float64
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


class JoinedStream(TrainingStream):
    """The batches of all ranks as one."""

    ranks_joined = 2

    def __init__(self, task: Task, batch_size: int, seed: int, start: int, rank: int, ranks: int) -> None:
        assert (rank, ranks) == (0, 1)
        super().__init__(task, batch_size, seed, start)

    def __iter__(self):
        for update in range(self.start, 10**9):
            ranks = self.ranks_joined
            parts = [
                training_batch(self.task, self.batch_size // ranks, self.seed, update, rank, ranks)[:2]
                for rank in range(ranks)
            ]
            yield Batch(*(torch.cat(part, 1 if part[0].dim() > 1 else 0) for part in zip(*parts)))


@pytest.mark.slow
@pytest.mark.parametrize("core", sorted(CORES))
def test_two_processes_have_the_gradients_of_one_with_both_batches(core: str, tmp_path: Path, monkeypatch):
    """Of generated tasks each rank has its own stream."""
    finish(start(config(core, "copying", updates=1, devices=2), tmp_path / "two"))
    monkeypatch.setattr(rims.train.fit, "TrainingStream", JoinedStream)
    one = train(config(core, "copying", updates=1), tmp_path / "one", progress=False)
    assert_equal_gradients(one, Run.open(tmp_path / "two"))


@pytest.mark.slow
def test_two_processes_train_as_one_on_a_data_set(tmp_path: Path):
    """There the batches of an update are pieces of one: the whole runs agree, clipping and epochs too."""
    options = {"batch_size": 400, "updates": 6, "clip": 0.05, "learning_rate": 1e-2}
    out = finish(start(config("rim", "digits", devices=2, **options), tmp_path / "two"))
    assert out.count("folder:") == 1  # one process reports
    one = train(config("rim", "digits", **options), tmp_path / "one", progress=False)
    two = Run.open(tmp_path / "two")
    size = one.config.task.size("training")
    assert size < 6 * 400  # the second epoch has begun
    a, b = (torch.load(run.last_checkpoint, weights_only=True)["state_dict"] for run in (one, two))
    initial = rims.train.fit.TrainingModule(one.config).state_dict()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-7, atol=1e-10)
        assert (a[name] - initial[name]).abs().max() > 1e-3
    assert len(rows(one)) == len(rows(two)) == 12
    for one_row, two_row in zip(rows(one), rows(two)):
        assert one_row.pop("split") == two_row.pop("split")
        assert one_row == pytest.approx(two_row, rel=1e-6)
    assert min(row["gradient_norm"] for row in rows(one) if "gradient_norm" in row) > 0.05  # clipping acts


@pytest.mark.slow
def test_two_nodes_train_as_one_process(tmp_path: Path):
    """Two groups of processes that meet by address and number, as on two machines; here on one."""
    options = {"batch_size": 8, "updates": 2}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    two = tmp_path / "two"
    nodes = [start(config("lstm", "digits", nodes=2, **options), two, NODE_RANK=r, **where) for r in "01"]
    outs = [finish(node) for node in nodes]
    assert ["folder:" in out for out in outs] == [True, False]
    one = train(config("lstm", "digits", **options), tmp_path / "one", progress=False)
    a, b = (torch.load(run.last_checkpoint, weights_only=True)["state_dict"] for run in (one, Run.open(two)))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-7, atol=1e-10)
