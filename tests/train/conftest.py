"""Small runs, on one thread."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rims.cores import LSTMConfig
from rims.tasks import Copying, Task
from rims.train.config import ModelOptions, RunConfig, TrainingOptions


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config() -> Callable[..., RunConfig]:
    """A config that trains in a second; keyword arguments are training options."""

    def make(task: Task | None = None, **training: Any) -> RunConfig:
        options = {
            "updates": 60,
            "batch_size": 4,
            "validate_every": 20,
            "validation_sequences": 8,
            "checkpoint_every": 10,
            "accelerator": "cpu",
        }
        return RunConfig(
            task or Copying(length=2, delay=2, test_delays=(2, 5)),
            LSTMConfig(4),
            ModelOptions(input_size=3, dropout=0.3),
            TrainingOptions(**{**options, **training}),
        )

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"
