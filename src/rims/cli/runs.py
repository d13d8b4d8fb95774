"""Commands on single runs: train, resume, eval, lesion, report."""

from __future__ import annotations

import datetime
import importlib
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from rims.cli.options import PLURALS, CoreOptions, DataDir, TaskOptions, UncheckedTraining
from rims.cli.tables import chance, number, print_table, spaced, titled
from rims.cores import CoreConfig, RIMConfig
from rims.cores.sizes import Match, matched
from rims.errors import UserError
from rims.nn.fast.memory import keep_freed_memory
from rims.train.config import ModelOptions, RunConfig
from rims.train.folder import Run, runs_in


@dataclass
class Train:
    """Train a core on a task: rims train TASK core:NAME [OPTIONS]."""

    task: TaskOptions
    """What to learn."""
    core: CoreOptions
    """What learns it."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """Encoder and head around the core."""
    training: UncheckedTraining = field(default_factory=UncheckedTraining)
    """Optimisation, validation and the machine."""
    match: Literal["none", "state", "params"] = "none"
    """Size of the core: as its options say, or that of equal state (exactly) or parameters (within 5 %)."""
    match_to: Path | None = None
    """Run with whose core it is matched; without, the default RIM."""
    run: Path | None = None
    """Folder of the run; without, runs/TASK-CORE-SEED-TIME."""
    resume: bool = False
    """Go on with the run in the folder."""
    data_dir: DataDir = None
    """Folder of data files; without, $RIMS_DATA, or a download to the user's cache."""

    def __call__(self) -> None:
        # Through JSON, because task, core and training are of classes without their checks here (see
        # unchecked).
        config = RunConfig.from_json(RunConfig(self.task, self.core, self.model, self.training).to_json())
        if self.match != "none":
            config.core = matched_core(config, self.match, self.match_to)
        elif self.match_to is not None:
            raise UserError("--match-to needs --match state or --match params")
        if self.run is None and self.resume:
            raise UserError("--resume needs the folder of the run: --run FOLDER")
        if self.run is None and config.training.devices * config.training.nodes > 1:
            # The other processes have this command line too: a name made here would differ in each.
            raise UserError("more than one device or node needs a named folder: --run FOLDER")
        train_in(config, self.run or new_folder(config), self.resume)


@dataclass
class Resume:
    """Go on with a run that was stopped."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    data_dir: DataDir = None
    """Folder of data files; without, $RIMS_DATA, or a download to the user's cache."""

    def __call__(self) -> None:
        train_in(Run.open(self.run).config, self.run, resume=True)


@dataclass
class Eval:
    """Test a run at each condition, such as the delays of copying."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    conditions: Annotated[tuple[int, ...], tyro.conf.arg(aliases=PLURALS, help_behavior_hint="")] = ()
    """Conditions to test at; without, those of the task."""
    sequences: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Test sequences a condition; without, all of a data set, 2048 of a generated task."""
    checkpoint: Literal["last", "best"] = "last"
    """Weights: the last, or those of the lowest validation loss."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    json: bool = False
    """Print JSON, not a table."""
    data_dir: DataDir = None
    """Folder of data files; without, $RIMS_DATA, or a download to the user's cache."""

    def __call__(self) -> None:
        run = Run.open(self.run)
        evaluate = importlib.import_module("rims.train.evaluate").evaluate
        wanted = self.conditions or run.config.task.test_conditions
        result = evaluate(run, wanted, self.sequences, self.checkpoint, self.accelerator)
        rows = [row for row in result["conditions"] if row["condition"] in wanted]
        if self.json:
            print(json.dumps({**result, "conditions": rows}, indent=2))
            return
        task = run.config.task
        table = titled(str(self.run), task.condition_name, *spaced(rows[0]["metrics"]))
        for row in rows:
            table.add_row(task.label(row["condition"]), *map(number, row["metrics"].values()))
        if task.chance():
            table.add_row("chance", *(chance(task, name) for name in rows[0]["metrics"]), style="dim")
        for row in rows:
            for name, values in row.get("references", {}).items():
                shown = [number(values[metric]) if metric in values else "" for metric in row["metrics"]]
                table.add_row(f"{task.label(row['condition'])}: {name}", *shown, style="dim")
        print_table(table)


@dataclass
class Lesion:
    """Remove one RIM of a run after the other: what breaks?"""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    conditions: Annotated[tuple[int, ...], tyro.conf.arg(aliases=PLURALS, help_behavior_hint="")] = ()
    """Conditions to test at; without, the training condition."""
    sequences: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = 256
    """Test sequences a condition; None: as many as rims eval takes."""
    checkpoint: Literal["last", "best"] = "last"
    """Weights: the last, or those of the lowest validation loss."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    json: bool = False
    """Print JSON, not a table."""
    data_dir: DataDir = None
    """Folder of data files; without, $RIMS_DATA, or a download to the user's cache."""

    def __call__(self) -> None:
        run = Run.open(self.run)
        mask = importlib.import_module("rims.report.masking").mask
        task = run.config.task
        wanted = self.conditions or (task.training_condition,)
        found = {
            at: mask(run, at, self.sequences, self.checkpoint, self.accelerator)
            for at in dict.fromkeys(wanted)
        }
        if self.json:
            rows = [
                {"condition": at, "removed": rim, "metrics": metrics}
                for at, damage in found.items()
                for rim, metrics in damage.items()
            ]
            print(json.dumps({"checkpoint": self.checkpoint, "rows": rows}, indent=2))
            return
        metrics = spaced(next(iter(found.values()))[None])
        table = titled(str(self.run), task.condition_name, "removed", *metrics)
        for at, damage in found.items():
            for rim, values in damage.items():
                name = "none" if rim is None else f"RIM {rim}"
                table.add_row(
                    task.label(at), name, *map(number, values.values()), end_section=rim == len(damage) - 2
                )
        print_table(table)


@dataclass
class Report:
    """Compare runs: a table here and a page with plots."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of the runs, or a folder that holds them, such as that of rims reproduce."""
    output: Path | None = None
    """File of the page."""
    data_dir: DataDir = None
    """Folder of data files; without, $RIMS_DATA, or a download to the user's cache."""

    def __call__(self) -> None:
        if not self.runs:
            raise UserError("report needs the folder of at least one run")
        runs = runs_in(self.runs)
        report = importlib.import_module("rims.report")
        report.print_table(runs)
        print(report.write_report(runs, self.output))


def train_in(config: RunConfig, folder: Path, resume: bool) -> None:
    fit = importlib.import_module("rims.train.fit")
    keep_freed_memory()
    run = fit.train(config, folder, resume)
    if not fit.is_first_process(config.training):
        return
    summary = run.read_json("summary.json")
    table = Table("", "value", "chance", title=f"{config.core.name} on {config.task.name}")
    table.add_row("parameters", f"{summary['parameters']:,}")
    table.add_row("updates", f"{summary['updates']:,}")
    table.add_row("time", str(datetime.timedelta(seconds=round(summary["seconds"]))))
    for name, value in summary["validation"].items():
        table.add_row(f"validation {name}", number(value), chance(config.task, name))
    print_table(table)
    print(f"folder: {folder}")
    print(f"next:   rims eval {shlex.quote(str(folder))}")


def matched_core(config: RunConfig, match: Match, to: Path | None) -> CoreConfig:
    """The core of ``config`` at the size that makes it comparable with the core of the run ``to``."""
    core, input_size = config.core, config.model.input_size
    like: CoreConfig = RIMConfig()
    if to is not None:
        other = Run.open(to).config
        like = other.core
        if other.model.input_size != input_size:
            raise UserError(
                f"{to} has model.input_size {other.model.input_size}; expected {input_size} as here"
            )
    if getattr(core, core.size) != getattr(type(core)(), core.size):
        raise UserError(f"--match decides core.{core.size}, which is given too; give one of the two")
    try:
        return matched(core, like, input_size, match)
    except ValueError as error:
        raise UserError(str(error)) from error


def new_folder(config: RunConfig) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.task.name}-{config.core.name}-{config.training.seed}-{stamp}"
