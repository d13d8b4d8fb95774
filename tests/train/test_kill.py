"""kill -9 at any moment, and resume, with the real command in real processes."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rims.train.folder import Run

from .helpers import assert_equal_runs

UPDATES = 1500


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    options = {
        "task.length": 2,
        "task.delay": 2,
        "core.hidden-size": 8,
        "model.input-size": 4,
        "model.dropout": 0.2,
        "training.updates": UPDATES,
        "training.batch-size": 4,
        "training.schedule": "cosine",
        "training.validate-every": 40,
        "training.validation-sequences": 16,
        "training.checkpoint-every": 30,
        "training.accelerator": "cpu",
        "training.threads": 1,
        "run": folder,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "rims", "train", "copying", "core:lstm", *arguments, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.slow
def test_kill_and_resume_equals_an_uninterrupted_run(tmp_path):
    seed = random.randrange(10**6)
    print("random moments of seed", seed)
    moments = random.Random(seed)
    whole = start(tmp_path / "whole")
    parts = tmp_path / "parts"
    checkpoint = parts / "checkpoints" / "last.ckpt"
    kills = 0
    process = start(parts)
    while kills < 3:
        before = modified(checkpoint)
        while modified(checkpoint) == before and process.poll() is None:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.3))
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills += 1
        process = start(parts, "--resume")
    finish(process)
    finish(whole)
    assert kills == 3, "the run ended before it could be killed: give it more updates"
    one, two = Run.open(tmp_path / "whole"), Run.open(parts)
    assert two.metrics()[-1]["update"] == UPDATES
    assert_equal_runs(one, two)
    assert len(two.read_json("versions.json")) == 4
    assert not list(parts.glob("**/*.unfinished"))
