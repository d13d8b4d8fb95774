"""Runs in processes of their own end in good order, whoever is told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

UPDATES = 100_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on", "told", "number"),
    [
        ("processes", os.kill, signal.SIGTERM),
        ("processes", os.killpg, signal.SIGTERM),
        ("processes", os.killpg, signal.SIGINT),
        ("ray", os.kill, signal.SIGTERM),
    ],
)
def test_a_signal_ends_runs_with_a_checkpoint_of_their_last_update(
    on: str, told, number, tmp_path: Path
) -> None:
    """To the one process that kill names, or to all of them, as a terminal and a scheduler do. The run that
    waits for the worker does not begin."""
    if on == "ray":
        pytest.importorskip("ray")
    folder = tmp_path / "sweep"
    command = "sweep copying core:lstm --task.length 2 --task.delay 2 --task.test-delays 2 --seeds 1"
    command += f" --model.input-size 3 --training.accelerator cpu --training.updates {UPDATES}"
    command += f" --training.batch-size 4 --training.checkpoint-every {UPDATES}"
    command += f" --training.validate-every {UPDATES} --values core.hidden-size=4,6"
    command += f" --on {on} --workers 1 --folder {folder}"
    process = subprocess.Popen(
        [sys.executable, "-m", "rims", *command.split()],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    run = folder / "core.hidden_size=4-0"
    rows = run / "metrics.jsonl"
    try:
        while not (rows.exists() and rows.stat().st_size):
            assert process.poll() is None
            time.sleep(0.01)
        told(process.pid, number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()  # leave nothing that trains on
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "rims: stopped; to go on: the same command"
    assert "Traceback" not in err
    step = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 50 <= step < UPDATES
    assert not (folder / "core.hidden_size=6-0").exists()
