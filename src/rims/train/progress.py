"""Where training stands, on stderr: a live line in a terminal, now and then a plain one elsewhere."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from rims.train.callbacks import Measurements

PLAIN_EVERY = 30.0
"""Seconds between plain lines."""


class ProgressLine(Callback):
    """Loss, latest validation metrics, updates a second and the time left."""

    def __init__(self, updates: int, measurements: Measurements) -> None:
        self.updates, self.measurements = updates, measurements
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.shown = 0.0
        self.pace: deque[tuple[float, int]] = deque(maxlen=20)
        """Recent (time, update): the rate over these forgets a slow start."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self.shown = time.monotonic()
        self.pace.append((self.shown, trainer.global_step))
        if self.console.is_terminal:
            text = TextColumn("{task.completed}/{task.total} {task.fields[state]}", markup=False)
            self.bar = Progress(BarColumn(bar_width=20), text, console=self.console, transient=True)
            self.task = self.bar.add_task("", total=self.updates, completed=trainer.global_step, state="")
            self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        due = now - self.shown >= (1.0 if self.bar else PLAIN_EVERY)
        if not trainer.is_global_zero or not due:
            return
        self.shown = now
        update = trainer.global_step
        self.pace.append((now, update))
        rate = (update - self.pace[0][1]) / (now - self.pace[0][0])
        parts = [f"loss {float(outputs['loss']):.4f}"]
        parts += [f"{k} {v:.4f}" for k, v in self.measurements.validation.items() if k != "loss"]
        parts += [f"{rate:.1f}/s", f"{_clock((self.updates - update) / rate)} left"]
        if self.bar:
            self.bar.update(self.task, completed=update, state="  ".join(parts))
        else:
            self.console.print(
                f"update {update}/{self.updates}  {'  '.join(parts)}", highlight=False, soft_wrap=True
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
