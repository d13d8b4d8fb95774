"""How far many runs are, in one place on stderr."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rims.errors import UserError
from rims.report import words
from rims.tasks import Task
from rims.train.config import RunConfig
from rims.train.folder import Run

POLL_SECONDS = 0.5
LOG_SECONDS = 20.0


class Watch:
    """Bars in a terminal, else now and then a line, of what the runs have written so far."""

    def __init__(self, configs: Mapping[Path, RunConfig]) -> None:
        self.configs = configs
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[measured]}"),
            TimeElapsedColumn(),
        )
        self.bars = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.many = len(configs) > 3
        self.overall = self.bars.add_task("all runs", total=len(configs), measured="", visible=self.many)
        self.rows: dict[Path, TaskID] = {}
        self.stopped: set[Path] = set()
        self.logged = time.monotonic()

    def __enter__(self) -> Watch:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def show(self, running: Collection[Path], done: Collection[Path]) -> None:
        """The runs that are ``running``, and those that are ``done``."""
        lines = []
        for folder in [*running, *done]:
            if folder in self.stopped:
                continue
            total = self.configs[folder].training.updates
            if folder not in self.rows:
                self.rows[folder] = self.bars.add_task(folder.name, total=total, measured="")
            row = self.rows[folder]
            update, measured = progress(folder, self.configs[folder])
            self.bars.update(row, completed=update, measured=measured)
            if folder in done:
                self.stopped.add(folder)
                self.bars.stop_task(row)
                self.bars.update(row, visible=not self.many)
            else:
                lines.append(f"{folder.name} {update}/{total} {measured}".rstrip())
        self.bars.update(self.overall, completed=len(done))
        late = time.monotonic() - self.logged >= LOG_SECONDS
        if not self.console.is_terminal and (late or len(done) == len(self.configs)):
            summary = f"{len(done)} of {len(self.configs)} runs done"
            self.console.print("; ".join([summary, *lines]), soft_wrap=True, highlight=False)
            self.logged = time.monotonic()


def progress(folder: Path, config: RunConfig) -> tuple[int, str]:
    """The last update that the run has measured, and its first metric in the last validation."""
    try:
        rows = Run(folder, config).metrics()
    except UserError:  # a damaged file: for the run to report
        rows = []
    if not rows:
        return 0, ""
    name = main_metric(config.task)
    trained = config.task.training_condition
    found = [row[name] for row in rows if row["split"] == "validation" and row["condition"] == trained]
    return rows[-1]["update"], f"{words.title(name)} {words.with_unit(name, found[-1])}" if found else ""


def main_metric(task: Task) -> str:
    """The one to show where there is room for one: an accuracy if the task has it, else the loss."""
    return min(task.chance(), key=lambda name: "accuracy" not in name, default="loss")
