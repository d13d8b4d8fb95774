"""The command that writes sequences to a file."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import tyro
from rich.console import Console
from rich.progress import Progress

from rims.cli.options import choice
from rims.errors import UserError
from rims.tasks import Balls
from rims.train.guards import handling

GENERATED: dict[str, Any] = {Balls.name: Balls}
"""The tasks whose sequences can be written to a file."""

GeneratedOptions = choice(GENERATED, prefix=False)


@dataclass
class Generate:
    """Write a file of sequences for the task balls-file: rims generate balls FILE [OPTIONS]."""

    task: GeneratedOptions  # type: ignore[valid-type]
    """What to write; its training condition, --task.balls."""
    file: tyro.conf.Positional[Path]
    """HDF5 file to make."""
    sequences: int = 50_000
    """Sequences to learn from."""
    validation_sequences: int = 10_000
    """Sequences to validate with."""
    test_sequences: int = 10_000
    """Sequences to test with."""
    seed: int = 0
    """Decides all sequences."""

    def __call__(self) -> None:
        counts = {
            "training": self.sequences,
            "validation": self.validation_sequences,
            "test": self.test_sequences,
        }
        for split, count in counts.items():
            if count < 0:
                raise UserError(f"{split} sequences are {count}; expected at least 0")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; expected at least 0")
        try:
            task = Balls(**vars(self.task))
        except ValueError as error:
            raise UserError(str(error)) from error
        write = importlib.import_module("rims.tasks.balls_writer").write
        with counting(sum(counts.values())) as progress:
            write(task, self.file, counts, self.seed, progress)
        print(self.file)


@contextlib.contextmanager
def counting(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's stderr, nothing elsewhere. Yields what is to be told of how many are done, and
    then raises KeyboardInterrupt if Ctrl-C was pressed meanwhile: raised at once, within a callback of h5py's
    that may not raise, Python would drop it. A second Ctrl-C is raised at once."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        line = bar.add_task("sequences", total=total)

        def done(number: int) -> None:
            bar.update(line, completed=number)
            if asked.is_set():
                raise KeyboardInterrupt

        with handling(signal.SIGINT, ask):
            yield done
