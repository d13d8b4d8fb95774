"""The command ``rims``: results on stdout, progress on stderr.

Exit codes: 0 done, 1 the work failed, 2 the input cannot be used, 130 stopped by the user. What costs time to
import is imported by the commands that need it.
"""

from __future__ import annotations

import datetime
import importlib
import inspect
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Union

try:
    import tyro
    from rich.console import Console
    from rich.table import Column, Table
except ModuleNotFoundError as missing:
    raise SystemExit("rims: the command needs more than the layer: pip install 'rims[train]'") from missing

import rims
from rims.bench.arms import Setting
from rims.cores import CORES
from rims.errors import Interrupted, UserError, WorkError
from rims.tasks import TASKS, Task
from rims.train.config import ModelOptions, RunConfig, TrainingOptions
from rims.train.folder import Run, write_atomically


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (default: the process's own). Leaves by SystemExit unless all went well."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(f"rims {rims.__version__}")
        return
    try:
        _check_names(arguments)
        command: Any = tyro.cli(
            Train | Resume | Eval | Report | Demo | Bench,
            prog="rims",
            description="Recurrent Independent Mechanisms. rims COMMAND --help says more.",
            args=list(arguments),
            config=(
                tyro.conf.CascadeSubcommandArgs,
                tyro.conf.FlagCreatePairsOff,
                tyro.conf.HelptextFromCommentsOff,
            ),
        )
        command()
    except UserError as error:
        _leave(error, 2)
    except WorkError as error:
        _leave(error, 1)
    except Interrupted as error:
        _leave(error, 130)
    except KeyboardInterrupt:
        _leave("stopped", 130)


def _leave(message: object, code: int) -> NoReturn:
    print(f"rims: {message}", file=sys.stderr)
    sys.exit(code)


def _check_names(arguments: Sequence[str]) -> None:
    """Refuse an unknown task or core by name, where tyro would call it an unrecognized option."""
    if not arguments or arguments[0] != "train":
        return
    if len(arguments) > 1 and not arguments[1].startswith("-") and arguments[1] not in TASKS:
        raise UserError(f"unknown task {arguments[1]!r}; known: {', '.join(sorted(TASKS))}")
    for name in (argument.removeprefix("core:") for argument in arguments if argument.startswith("core:")):
        if name not in CORES:
            raise UserError(f"unknown core {name!r}; known: {', '.join(sorted(CORES))}")


def _unchecked(kind: Any) -> Any:
    """The dataclass ``kind`` without its own checks.

    tyro draws a box around the ValueError of a class's checks. RunConfig.from_json makes them when it builds
    the real class, and they end in one line like all else.
    """
    summary = inspect.cleandoc(kind.__doc__).split("\n\n")[0].replace("``", "")  # all that help has room for
    namespace = {"__post_init__": lambda self: None, "__doc__": summary, "__module__": kind.__module__}
    return dataclass(type(kind.__name__, (kind,), namespace))


def _choice(registry: dict[str, Any], prefix: bool) -> Any:
    """A registry as tyro's subcommands."""
    choices = [
        Annotated[_unchecked(kind), tyro.conf.subcommand(name, prefix_name=prefix)]
        for name, kind in registry.items()
    ]
    # A union of one is no union, and would be no subcommand.
    return Union[(*choices, Annotated[None, tyro.conf.Suppress])]


_Task = _choice(TASKS, prefix=False)
_Core = _choice(CORES, prefix=True)
_TrainingOptions = _unchecked(TrainingOptions)
_plurals = [f"--{name}s" for name in sorted({task.condition_name for task in TASKS.values()})]


@dataclass
class Train:
    """Train a core on a task: rims train TASK core:NAME [OPTIONS]."""

    task: _Task  # type: ignore[valid-type]
    """What to learn."""
    core: _Core  # type: ignore[valid-type]
    """What learns it."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """Encoder and head around the core."""
    training: _TrainingOptions = field(default_factory=_TrainingOptions)  # type: ignore[valid-type]
    """Optimisation, validation and the machine."""
    run: Path | None = None
    """Folder of the run; without, runs/TASK-CORE-SEED-TIME."""
    resume: bool = False
    """Go on with the run in the folder."""

    def __call__(self) -> None:
        # Through JSON, because task, core and training are of classes without their checks here (see
        # _unchecked).
        config = RunConfig.from_json(RunConfig(self.task, self.core, self.model, self.training).to_json())
        if self.run is None and self.resume:
            raise UserError("--resume needs the folder of the run: --run FOLDER")
        if self.run is None and config.training.devices > 1:
            # Lightning starts the other processes with this command line: a name made here would differ in
            # each.
            raise UserError("more than one device needs a named folder: --run FOLDER")
        _train(config, self.run or _new_folder(config), self.resume)


@dataclass
class Resume:
    """Go on with a run that was stopped."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""

    def __call__(self) -> None:
        _train(Run.open(self.run).config, self.run, resume=True)


@dataclass
class Eval:
    """Test a run at each condition, such as the delays of copying."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    conditions: Annotated[tuple[int, ...], tyro.conf.arg(aliases=_plurals, help_behavior_hint="")] = ()
    """Conditions to test at; without, those of the task."""
    sequences: int = 2048
    """Test sequences a condition."""
    checkpoint: Literal["last", "best"] = "last"
    """Weights: the last, or those of the lowest validation loss."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    json: bool = False
    """Print JSON, not a table."""

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
        table = Table(task.condition_name, *rows[0]["metrics"], title=str(self.run))
        for row in rows:
            table.add_row(str(row["condition"]), *(f"{value:.4f}" for value in row["metrics"].values()))
        table.add_row("chance", *(_chance(task, name) for name in rows[0]["metrics"]), style="dim")
        _print(table)


@dataclass
class Report:
    """Compare runs: a table here and a page with plots."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of the runs."""
    output: Path | None = None
    """File of the page."""

    def __call__(self) -> None:
        if not self.runs:
            raise UserError("report needs the folder of at least one run")
        for folder in self.runs:
            Run.open(folder)
        report = importlib.import_module("rims.report")
        report.print_table(list(self.runs))
        print(report.write_report(list(self.runs), self.output))


@dataclass
class Demo:
    """RIM and LSTM learn to copy; which still copies at 4 and 10 times the delay? About six minutes."""

    folder: Path = Path("runs/demo")
    """Folder of the three runs and the report; runs that stand there go on."""
    updates: int = 2000
    """Gradient steps of each run."""
    seed: int = 0
    """Decides weights and data of each run."""

    def __call__(self) -> None:
        demo = importlib.import_module("rims.experiments.demo")
        print(f"report: {demo.run_demo(self.folder, self.updates, self.seed)}")


@dataclass
class Bench:
    """How fast the layer is here, as ratios to nn.LSTM in the same run: tables, and JSON."""

    setting: Setting = field(default_factory=Setting)
    """Sizes; by default the paper's copying run."""
    repeats: int = 7
    """Rounds that medians are taken over."""
    threads: int = 1
    """CPU threads."""
    sweeps: bool = True
    """Also measure against active RIMs, steps and batch."""
    output: Path | None = None
    """File for everything as JSON."""
    markdown: bool = False
    """Print Markdown, as in docs/performance.md."""

    def __call__(self) -> None:
        measurements = importlib.import_module("rims.bench.run")
        table = importlib.import_module("rims.bench.table")
        versions = importlib.import_module("rims.train.versions").versions
        importlib.import_module("torch").set_num_threads(self.threads)
        console = Console(stderr=True)
        with console.status("") as status:
            try:
                result = measurements.bench(self.setting, self.repeats, self.sweeps, status.update)
            except ValueError as error:
                raise UserError(str(error)) from error
        result["versions"] = versions()
        if self.output is not None:
            try:
                write_atomically(self.output, (json.dumps(result, indent=2) + "\n").encode())
            except OSError as error:
                raise UserError(f"cannot write {self.output}: {error.strerror or error}") from error
        if self.markdown:
            print(table.markdown(result))
            return
        print(table.about(result))
        for title, header, rows in table.tables(result):
            shown = Table(header[0], *(Column(name, justify="right") for name in header[1:]), title=title)
            for row in rows:
                shown.add_row(*row)
            _print(shown)


def _train(config: RunConfig, folder: Path, resume: bool) -> None:
    train = importlib.import_module("rims.train.fit").train
    run = train(config, folder, resume)
    if int(os.environ.get("LOCAL_RANK", 0)):
        return
    summary = run.read_json("summary.json")
    table = Table("", "value", "chance", title=f"{config.core.name} on {config.task.name}")
    table.add_row("parameters", f"{summary['parameters']:,}")
    table.add_row("updates", f"{summary['updates']:,}")
    table.add_row("time", str(datetime.timedelta(seconds=round(summary["seconds"]))))
    for name, value in summary["validation"].items():
        table.add_row(f"validation {name}", f"{value:.4f}", _chance(config.task, name))
    _print(table)
    print(f"folder: {folder}")
    print(f"next:   rims eval {shlex.quote(str(folder))}")


def _new_folder(config: RunConfig) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.task.name}-{config.core.name}-{config.training.seed}-{stamp}"


def _chance(task: Task, metric: str) -> str:
    level = task.chance().get(metric)
    return "" if level is None else f"{level:.4f}"


def _print(table: Table) -> None:
    console = Console()
    # Into a file or a pipe, a table is never folded to the width that some terminal has.
    console.print(table, width=None if console.is_terminal else 200)
