"""``rims bench --data``: what making a training batch costs beside the update that it is made for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rims.bench.arms import Setting
from rims.bench.cores import pair
from rims.bench.measure import Timing
from rims.cores import LSTMConfig
from rims.models import SequenceModel
from rims.tasks import Adding, Balls, Copying, MovingDigits, Task

TASKS: dict[str, Task] = {
    "copying": Copying(),
    "adding": Adding(),
    "balls: 4": Balls(),
    "balls: 6-8": Balls(balls=678),
    "balls: 4, curtain": Balls(balls=40),
    "moving-digits": MovingDigits(source="digits"),
}
"""What is generated while a model trains, without files."""


@dataclass
class Row:
    """One task. ``timing`` is of a batch, its ratio to the update of an LSTM that learns from it."""

    task: str
    batch: int
    timing: Timing
    sequences_per_minute: float


def bench(setting: Setting, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Every task, as plain values: ``data``, ``setting``."""
    rows = []
    for name, task in TASKS.items():
        say(name)
        timing = compare(task, setting, repeats)
        rows.append(asdict(Row(name, setting.batch, timing, 60 * setting.batch / timing.seconds)))
    return {"setting": asdict(setting), "repeats": repeats, "threads": torch.get_num_threads(), "data": rows}


def compare(task: Task, setting: Setting, repeats: int) -> Timing:
    """Time a batch of the task, always a new one, against forward and backward of an LSTM on one."""
    torch.manual_seed(0)
    model = SequenceModel(task, LSTMConfig(hidden_size=setting.hidden_size), setting.input_size)
    generator = torch.Generator().manual_seed(0)
    batch = task.batch(setting.batch, generator)

    def update() -> None:
        outputs, _ = model(batch.inputs)
        task.loss(outputs, batch).backward()

    return pair(lambda: task.batch(setting.batch, generator), update, setting, repeats)
