"""On Ray runs give the same numbers as in processes, whatever fails on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from rims import tasks
from rims.cli import main
from rims.cores import LSTMConfig
from rims.experiments import cluster
from rims.experiments.cluster import run_on_ray
from rims.experiments.grid import Evaluation, run_grid
from rims.experiments.reproduce import plan
from rims.tasks import Copying
from rims.train.config import ModelOptions, RunConfig, TrainingOptions
from rims.train.fit import train
from rims.train.folder import Run

from ..train.helpers import assert_equal_runs

ray = pytest.importorskip("ray")


@dataclass
class Unlucky(Copying):
    """Copying, in runs to which something happens."""

    name: ClassVar[str] = "unlucky"
    attempts: str = ""
    """File that gets a line each time that a run begins, to train or to test."""
    what: str = "nothing"

    def prepare(self) -> None:
        tasks.TASKS[self.name] = type(self)  # in a worker too
        log = Path(self.attempts)
        first = not log.exists()
        with open(log, "a") as file:
            file.write("begun\n")
        if self.what == "raises always" or (self.what == "raises once" and first):
            raise RuntimeError("bad\nluck")
        if self.what == "dies once" and first:
            os.kill(os.getpid(), signal.SIGKILL)

    def loss(self, outputs, batch):
        return super().loss(outputs, batch) * (float("nan") if self.what == "diverges" else 1.0)


def config(what: str, attempts: Path) -> RunConfig:
    task = Unlucky(length=2, delay=2, test_delays=(2, 5), attempts=str(attempts), what=what)
    options = {"updates": 4, "batch_size": 4, "validate_every": 2, "validation_sequences": 8, "threads": 1}
    return RunConfig(task, LSTMConfig(4), ModelOptions(3), TrainingOptions(accelerator="cpu", **options))


@pytest.fixture
def address() -> Iterator[str]:
    """A cluster of one node, as others keep it."""
    from ray.cluster_utils import Cluster

    one = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield one.address
    one.shutdown()


@pytest.mark.slow
def test_ray_and_processes_give_the_same_numbers(tmp_path: Path, capfd) -> None:
    arms = plan("copying", "smoke", ["rim-6-4", "lstm"]).arms
    folders = {}
    for name, run in (("processes", run_grid), ("ray", run_on_ray)):
        runs = {path: config for arm in arms for path, config in arm.runs(tmp_path / name, [0]).items()}
        assert run(runs, Evaluation("best", 16), "again", workers=2) == {}
        folders[name] = list(runs)
    for one, two in zip(folders["processes"], folders["ray"], strict=True):
        a, b = Run.open(one), Run.open(two)
        assert_equal_runs(a, b)
        tested = [run.read_json("evaluation.json")["conditions"] for run in (a, b)]
        assert tested[0] == tested[1]
        assert {row["checkpoint"] for row in tested[0]} == {"best"}
        assert b.read_json("versions.json")[0]["command"] == a.read_json("versions.json")[0]["command"]
    assert not ray.is_initialized()
    out, err = capfd.readouterr()
    assert out == ""
    assert all("runs done" in line for line in err.splitlines()), err


@pytest.mark.slow
def test_what_fails_is_tried_again_and_reported_and_stops_no_other(
    tmp_path: Path, address: str, monkeypatch, capfd
) -> None:
    monkeypatch.setitem(tasks.TASKS, "unlucky", Unlucky)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    whats = ("raises once", "dies once", "raises always", "diverges", "nothing")
    runs = {tmp_path / "runs" / what: config(what, tmp_path / f"{what}.log") for what in whats}
    failed = run_on_ray(runs, Evaluation("last", 16), "again", address=address, retries=1)
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert list(failed) == [tmp_path / "runs" / "raises always", tmp_path / "runs" / "diverges"]
    out, err = capfd.readouterr()
    assert out == ""
    assert all("runs done" in line for line in err.splitlines()), err
    always, diverges = failed.values()
    assert always.startswith("RuntimeError: bad luck (more in ")
    assert always.endswith("failures.txt) (2 attempts)")
    assert (tmp_path / "runs" / "raises always" / "failures.txt").read_text().count("RuntimeError: bad") == 2
    assert diverges.startswith("the loss is nan at update 1;")
    begun = {what: (tmp_path / f"{what}.log").read_text().count("begun") for what in whats}
    # A good attempt begins twice, to train and to test.
    assert begun == {
        "raises once": 3,
        "dies once": 3,
        "raises always": 2,
        "diverges": 1,
        "nothing": 2,
    }
    weights = [
        torch.load(Run.open(tmp_path / "runs" / what).last_checkpoint, weights_only=True)["state_dict"]
        for what in ("nothing", "raises once", "dies once")
    ]
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in other)


@pytest.mark.slow
@pytest.mark.parametrize("on", ["ray", "processes"])
def test_a_killed_sweep_goes_on_and_ends_with_the_same_numbers(tmp_path: Path, capsys, on: str) -> None:
    folder = tmp_path / "sweep"
    command = f"sweep copying core:lstm --task.length 2 --task.delay 2 --task.test-delays 2 5 --on {on}"
    command += " --model.input-size 3 --training.accelerator cpu --training.updates 600"
    command += " --training.batch-size 4 --training.checkpoint-every 20 --training.validate-every 100"
    command += f" --values core.hidden-size=4,6 --seeds 1 --workers 2 --folder {folder}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(
        [sys.executable, "-m", "rims", *command.split()], env=environment, stderr=subprocess.DEVNULL
    )
    while not list(folder.glob("*/checkpoints/last.ckpt")):
        assert driver.poll() is None
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    names = ["core.hidden_size=4-0", "core.hidden_size=6-0"]
    assert not all((folder / name / "summary.json").exists() for name in names), "it had ended: more updates"
    main(command.split())
    out = capsys.readouterr().out
    starts = []
    for name in names:
        run = Run.open(folder / name)
        starts.append(len(run.read_json("versions.json")))
        assert_equal_runs(train(run.config, tmp_path / name, progress=False), run)
        loss = min(row["loss"] for row in run.metrics() if row["split"] == "validation")
        assert f"{loss:.3f}" in out
    assert max(starts) == 2


@pytest.mark.slow
def test_a_wrong_address_is_one_line_and_soon(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 5.0)
    folder = tmp_path / "runs"
    command = f"reproduce copying --scale smoke --only lstm --folder {folder} --on ray --address 127.0.0.1:1"
    before = time.monotonic()
    with pytest.raises(SystemExit) as left:
        main(command.split())
    assert time.monotonic() - before < 30
    assert left.value.code == 2
    assert capsys.readouterr().err == "rims: no Ray cluster answers at 127.0.0.1:1\n"
    assert not folder.exists()
