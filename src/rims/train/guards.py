"""What surrounds the work: errors of the disk and of workers in one line, signals, and Lightning without its
announcements."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

from rims.errors import UserError, WorkError
from rims.train.folder import Run


@contextlib.contextmanager
def disk_errors(run: Run) -> Iterator[None]:
    """A full disk, or a folder that cannot be written, as a UserError.

    Files are written whole or not at all, so what is in the folder stays good.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or run.path}: {error.strerror or error}; "
            f"what was saved before is whole, to go on from it: rims resume {run.path}"
        ) from error


@contextlib.contextmanager
def worker_errors(run: Run) -> Iterator[None]:
    """What went wrong in a process that makes batches, in one line: torch puts a traceback before it."""
    try:
        yield
    except UserError as error:
        line = str(error).rstrip().rpartition("\n")[2]
        raise UserError(line.removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")) from error
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        line = str(error).partition("\n")[0].rstrip(". ")
        raise WorkError(f"{line}; to go on from the last checkpoint: rims resume {run.path}") from error


@contextlib.contextmanager
def handling(number: int, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """With a signal's handler, where this thread may have one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def terminated_as_by_ctrl_c() -> Iterator[None]:
    """A scheduler's SIGTERM raises KeyboardInterrupt, for who leaves in good order then."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with handling(signal.SIGTERM, stop):
        yield


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's announcements, adverts and warnings about what is meant here off the screen."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            "GPU available but not used",  # --training.accelerator cpu says so
            "The 'train_dataloader' does not have many workers",  # a batch is cheaper to make than to pass on
            ".*srun. command is available",  # a single process is what was asked for
            ".isinstance.treespec, LeafSpec.. is deprecated",  # Lightning's own use of torch
            "This DataLoader will create",  # more workers than cores: --training.workers says so
            ".*use of fork.. may lead to deadlocks",  # from Python 3.12: torch's workers use no locks of ours
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
