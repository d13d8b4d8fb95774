"""The demo: RIM and LSTM learn to copy over a delay of 20 steps; which of them still copies over 80 and 200?

Three arms with one budget: RIM and LSTM of equal hidden size, and an LSTM with as many parameters as the RIM.
A small form of the paper's Table 1 (left): 5 symbols, not 10; delay 20, not 50; 300 units, not 600.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rims.cores import CoreConfig, LSTMConfig, RIMConfig
from rims.cores.sizes import units_for_parameters
from rims.errors import Interrupted
from rims.report import print_table, write_report
from rims.tasks import Copying
from rims.train.config import ModelOptions, RunConfig, TrainingOptions
from rims.train.evaluate import evaluate
from rims.train.fit import train
from rims.train.folder import Run

INPUT_SIZE = 64
HIDDEN_SIZE = 300
POLL_SECONDS = 0.5
LOG_SECONDS = 20.0


def arms(updates: int, seed: int) -> dict[str, RunConfig]:
    """The runs of the demo by the name of their folder."""
    rim = RIMConfig(hidden_size=HIDDEN_SIZE, input_key_size=32, input_value_size=64, comm_key_size=16)
    matched = units_for_parameters(4, INPUT_SIZE, rim.build(INPUT_SIZE).num_parameters)
    cores: dict[str, CoreConfig] = {
        "rim": rim,
        "lstm": LSTMConfig(hidden_size=HIDDEN_SIZE),
        "lstm-parameters": LSTMConfig(hidden_size=matched),
    }
    return {
        name: RunConfig(
            Copying(length=5, delay=20, test_delays=(20, 80, 200)),
            core,
            ModelOptions(input_size=INPUT_SIZE),
            TrainingOptions(
                updates=updates,
                learning_rate=3e-3,
                schedule="cosine",
                seed=seed,
                validate_every=100,
                checkpoint_every=500,
                accelerator="cpu",
                threads=1,
            ),
        )
        for name, core in cores.items()
    }


def run_demo(folder: Path, updates: int, seed: int, test_sequences: int = 2048) -> Path:
    """Train and test all arms, side by side as far as there are cores; print the table; return the report.

    What was stopped goes on where it was. Raises UserError as training does, Interrupted after Ctrl-C.
    """
    configs = arms(updates, seed)
    folders = {name: folder / name for name in configs}
    workers = min(len(configs), os.cpu_count() or 1)
    # Fresh processes, because a process that has used its threads cannot be forked safely.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {
            name: pool.submit(_run_arm, config, folders[name], test_sequences)
            for name, config in configs.items()
        }
        try:
            _watch(futures, configs, folders)
            for future in futures.values():
                future.result()
        except (KeyboardInterrupt, Interrupted, BrokenProcessPool) as error:
            pool.shutdown(cancel_futures=True)
            raise Interrupted(f"stopped; to go on: rims demo --folder {folder}") from error
    runs = list(folders.values())
    print_table(runs)
    return write_report(runs, folder / "report.html")


def _run_arm(config: RunConfig, folder: Path, test_sequences: int) -> None:
    """Train, or go on, and test: one worker process."""
    run = train(config, folder, resume=(folder / "config.json").exists(), progress=False)
    evaluate(run, sequences=test_sequences, accelerator="cpu")


def _watch(futures: dict[str, Future[None]], configs: dict[str, RunConfig], folders: dict[str, Path]) -> None:
    """Show on stderr how far every arm is, from what it has written, until all are done or one has failed."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[measured]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        rows = {
            name: bars.add_task(name, total=config.training.updates, measured="", start=False)
            for name, config in configs.items()
        }
        waited = 0.0
        pending = set(futures.values())
        while pending:
            done, pending = wait(pending, timeout=POLL_SECONDS)
            waited += POLL_SECONDS
            lines = []
            for name, row in rows.items():
                update, accuracy = _progress(folders[name], configs[name])
                if update or futures[name].running():
                    bars.start_task(row)
                measured = "" if accuracy is None else f"recall accuracy {accuracy:.3f}"
                bars.update(row, completed=update, measured=measured)
                if futures[name].done():
                    bars.stop_task(row)
                lines.append(f"{name} {update}/{configs[name].training.updates} {measured}".rstrip())
            if not console.is_terminal and (waited >= LOG_SECONDS or not pending):
                console.print("; ".join(lines), soft_wrap=True, highlight=False)
                waited = 0.0
            if any(future.exception() for future in done):
                return


def _progress(folder: Path, config: RunConfig) -> tuple[int, float | None]:
    """The last update that the run has measured, and its recall accuracy at the training delay."""
    rows = Run(folder, config).metrics()
    validated = [row["recall_accuracy"] for row in rows if row["split"] == "validation"]
    return (rows[-1]["update"] if rows else 0), (validated[-1] if validated else None)
