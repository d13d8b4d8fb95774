"""Synthetic run folders, written as training writes them, and a core that can be traced."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

from rims.cores import CORES, CoreConfig, GRUConfig, register
from rims.cores.gru import GRUCore
from rims.models import SequenceModel
from rims.tasks import Copying
from rims.train.config import ModelOptions, RunConfig, TrainingOptions
from rims.train.folder import Run

TASK = Copying(length=3, delay=4, test_delays=(4, 8))


class Recorded(NamedTuple):
    active: Tensor
    input_attention: Tensor
    communication: Tensor | None


class TracedCore(GRUCore):
    """RIM k is active at step t when t + k is divisible by k + 1, in every row."""

    num_rims = 3

    def trace(self, x: Tensor, state: Any = None, reset: Any = None) -> tuple[Tensor, Any, Recorded]:
        output, state = self(x, state, reset)
        steps, batch = x.shape[:2]
        t, k = torch.arange(steps)[:, None], torch.arange(self.num_rims)
        active = ((t + k) % (k + 1) == 0)[:, None].expand(-1, batch, -1)
        return output, state, Recorded(active, torch.zeros(steps, batch, 1, self.num_rims, 2), None)


@pytest.fixture
def traced() -> Iterator[type[CoreConfig]]:
    """The config of the traced core, registered for one test."""

    @register
    @dataclass
    class Traced(CoreConfig):
        name: ClassVar[str] = "traced"
        hidden_size: int = 6
        num_active: int = 2

        def build(self, input_size: int) -> TracedCore:
            return TracedCore(input_size, self.hidden_size)

    yield Traced
    del CORES["traced"]


@pytest.fixture
def task() -> Copying:
    """The task of the runs unless they are given another."""
    return TASK


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints load as freshly made models."""
    module = ModuleType("rims.train.checkpoint")

    def load_model(run: Run, checkpoint: str = "last") -> SequenceModel:
        return SequenceModel(run.config.task, run.config.core, run.config.model.input_size)

    module.load_model = load_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rims.train.checkpoint", module)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder: ``make(name, core, seed, accuracy)``; accuracy None leaves out the evaluation."""

    def make(
        name: str,
        core: CoreConfig | None = None,
        seed: int = 0,
        accuracy: float | None = 0.75,
        *,
        task: Copying = TASK,
        summary: bool = True,
        checkpoint: bool = True,
        measurements: bool = True,
        **training: Any,
    ) -> Path:
        options = replace(TrainingOptions(seed=seed, updates=1000), **training)
        config = RunConfig(task, core or GRUConfig(hidden_size=6), ModelOptions(input_size=5), options)
        run = Run.create(tmp_path / name, config)
        for update in range(250, 1001, 250) if measurements else ():
            row = {"update": update, "seconds": update / 10, "loss": 1 / (update + seed)}
            run.add_metrics({**row, "split": "training"})
            score = {"recall_cross_entropy": 0.5, "recall_accuracy": update / 1000}
            run.add_metrics({**row, "split": "validation", "condition": task.delay, **score})
        if accuracy is not None:
            conditions = [
                {
                    "condition": delay,
                    "sequences": 128,
                    "metrics": {
                        "loss": 0.5,
                        "recall_cross_entropy": 1.25,
                        "recall_accuracy": accuracy - 0.25 * (delay != task.delay),
                    },
                }
                for delay in task.test_delays
            ]
            run.write_json("evaluation.json", {"commit": "0123456789abcdef", "conditions": conditions})
        if summary:
            numbers = {"parameters": 1234567, "state_size": 4321, "flops_per_step": 7654321}
            run.write_json("summary.json", {"updates": 1000, "seconds": 3725.0, **numbers})
        git = {"commit": "fedcba9876543210", "dirty": True}
        run.write_json("versions.json", [{"command": "rims train copying", "torch": "2.13", "git": git}])
        if checkpoint:
            run.last_checkpoint.write_bytes(b"")
        return run.path

    return make
