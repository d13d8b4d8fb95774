"""Many runs side by side, each trained, tested and resumable, with their progress in one place."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import filelock

from rims.errors import Interrupted, UserError, WorkError
from rims.experiments.watch import POLL_SECONDS, Watch
from rims.nn.fast.memory import keep_freed_memory
from rims.report.masking import mask
from rims.train.checkpoint import Which
from rims.train.config import RunConfig
from rims.train.evaluate import evaluate
from rims.train.fit import train
from rims.train.folder import Run, write_file
from rims.train.guards import disk_errors, terminated_as_by_ctrl_c
from rims.train.versions import commit

FAILURE = "failure.txt"
"""In the folder of a run whose loss was not finite: why it ended."""

LESIONS = "lesions.json"
"""In the folder of a run: its metrics with each RIM removed."""

LOCK_SECONDS = 120.0
"""How long a run waits for another process in its folder to end."""


@dataclass(frozen=True)
class Evaluation:
    """How a run is tested when it has ended."""

    checkpoint: Which = "last"
    sequences: int | None = None
    lesions: bool = False
    """Whether it is tested without each of its RIMs too, at the training condition."""


class UnexpectedError(WorkError):
    """An error that no run should end with; another attempt may go well."""


def run_grid(
    configs: Mapping[Path, RunConfig], testing: Evaluation, again: str, workers: int | None = None
) -> dict[Path, str]:
    """Train and test ``configs``, by their run folders, in ``workers`` processes (default: one for each CPU
    core). What was stopped goes on where it was; what is done is left alone.

    A run that fails does not stop the others: returns what went wrong, by folder. Raises UserError for
    folders that hold other runs; Interrupted, naming the command ``again``, after Ctrl-C or SIGTERM, once
    each run has ended its update and saved it.
    """
    open_runs = not_done(configs, testing)
    if not open_runs:
        return {}
    workers = min(len(open_runs), workers or os.cpu_count() or 1)
    # Fresh processes, because a process that has used its threads cannot be forked safely.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, _end_with_parent) as pool, terminated_as_by_ctrl_c():
        try:
            # As many at a time as workers: a pool hands out one more ahead, which it cannot take back.
            waiting = iter(open_runs.items())
            running: dict[Future[str | None], Path] = {}
            errors: dict[Path, str] = {}
            done: list[Path] = []
            with Watch(open_runs) as watch:
                while len(done) < len(open_runs):
                    for folder, config in islice(waiting, workers - len(running)):
                        running[pool.submit(_run, config, folder, testing)] = folder
                    ended, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                    for future in ended:
                        done.append(folder := running.pop(future))
                        if text := future.result():
                            errors[folder] = text
                    watch.show(list(running.values()), done)
            return {folder: errors[folder] for folder in open_runs if folder in errors}
        except (KeyboardInterrupt, Interrupted, BrokenProcessPool) as error:
            for process in {*multiprocessing.active_children()} - others:
                process.terminate()  # not all were told: a terminal tells all processes, kill tells one
            pool.shutdown(cancel_futures=True)
            raise Interrupted(f"stopped; to go on: {again}") from error


def seed_by_seed(groups: Iterable[Mapping[Path, RunConfig]]) -> dict[Path, RunConfig]:
    """The runs of all groups, each of which has its seeds in order: one seed of all before the next, so that
    early tables are whole."""
    return dict(pair for column in zip(*(runs.items() for runs in groups)) for pair in column)


def not_done(configs: Mapping[Path, RunConfig], testing: Evaluation) -> dict[Path, RunConfig]:
    """The runs that are still to be trained or tested. Raises UserError if another run stands in a folder."""
    return {folder: config for folder, config in configs.items() if not is_done(folder, config, testing)}


def is_done(folder: Path, config: RunConfig, testing: Evaluation) -> bool:
    """Whether the run has ended and was tested as wanted. Raises UserError if another run stands there."""
    if not (folder / "config.json").exists():
        return False
    run = Run.open(folder)
    if run.config != config:
        raise UserError(f"{folder} was started with other options; give another folder, or remove it")
    evaluation = run.read_json("evaluation.json") or {"conditions": []}
    tested = {row["condition"] for row in evaluation["conditions"] if row["checkpoint"] == testing.checkpoint}
    lesions = run.read_json(LESIONS) or {} if testing.lesions else {"checkpoint": testing.checkpoint}
    return (
        run.read_json("summary.json") is not None
        and set(config.task.test_conditions) <= tested
        and lesions.get("checkpoint") == testing.checkpoint
    )


def run_one(config: RunConfig, folder: Path, testing: Evaluation) -> None:
    """Train, or go on, and test, in this process and in no other at the same time. Why a run failed stands
    in ``failure.txt`` in its folder until it ends well.

    Raises what training and testing raise by themselves; anything else as UnexpectedError, its traceback in
    failures.txt in the folder.
    """
    keep_freed_memory()
    with _alone(folder):
        if (folder / FAILURE).exists():
            (folder / FAILURE).unlink()
        try:
            run = train(config, folder, resume=(folder / "config.json").exists(), progress=False)
            evaluate(
                run,
                sequences=testing.sequences,
                checkpoint=testing.checkpoint,
                accelerator=config.training.accelerator,
            )
            if testing.lesions:
                _remove_rims(run, testing)
        except (UserError, Interrupted):
            raise
        except WorkError as error:
            write_file(folder / FAILURE, f"{error}\n")
            raise
        except Exception as error:  # memory, a driver, a fault of ours: no reason to stop the others
            log = folder / "failures.txt"
            folder.mkdir(exist_ok=True)
            with open(log, "a") as file:
                file.write(traceback.format_exc() + "\n")
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UnexpectedError(f"{reason} (more in {log})") from error


def _remove_rims(run: Run, testing: Evaluation) -> None:
    damage = mask(
        run,
        sequences=testing.sequences,
        checkpoint=testing.checkpoint,
        accelerator=run.config.training.accelerator,
    )
    rows = [{"removed": rim, "metrics": metrics} for rim, metrics in damage.items()]
    about = {
        "commit": commit(),
        "checkpoint": testing.checkpoint,
        "condition": run.config.task.training_condition,
    }
    with disk_errors(run):
        run.write_json(LESIONS, {**about, "rows": rows})


def _run(config: RunConfig, folder: Path, testing: Evaluation) -> str | None:
    """What a worker process does. Returns what went wrong in one line."""
    try:
        run_one(config, folder, testing)
    except (UserError, WorkError) as error:
        return str(error)
    return None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time in a run folder: after a kill, that of the last attempt may still be ending."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.parent / f".{folder.name}.lock")
        lock.acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout:
        raise UserError(f"another process trains {folder}") from None
    except OSError as error:
        raise UserError(f"cannot write {folder.parent}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _end_with_parent() -> None:
    """Let this process end when the one that started it is killed, and leave no orphan that trains on."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
