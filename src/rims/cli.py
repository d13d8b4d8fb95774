"""The command ``rims``: results on stdout, progress on stderr.

Exit codes: 0 done, 1 the work failed, 2 the input cannot be used, 130 stopped by the user. What costs time to
import is imported by the commands that need it.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Union

try:
    import tyro
    from rich import box
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Column, Table
except ModuleNotFoundError as missing:
    raise SystemExit("rims: the command needs more than the layer: pip install 'rims[train]'") from missing

import rims
from rims.bench.arms import Setting
from rims.cores import CORES, CoreConfig, RIMConfig
from rims.cores.sizes import Match, matched
from rims.errors import Interrupted, UserError, WorkError
from rims.nn.fast.memory import keep_freed_memory
from rims.tasks import TASKS, Balls, Task
from rims.tasks.files import ENVIRONMENT
from rims.train.config import ModelOptions, RunConfig, TrainingOptions
from rims.train.folder import Run, write_file


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (default: the process's own). Leaves by SystemExit unless all went well."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(f"rims {rims.__version__}")
        return
    try:
        _check_names(arguments)
        command: Any = tyro.cli(
            Train | Resume | Eval | Lesion | Report | Demo | Generate | Reproduce | Sweep | Results | Bench,
            prog="rims",
            description="Recurrent Independent Mechanisms. rims COMMAND --help says more.",
            args=_values_first(arguments),
            config=(
                tyro.conf.CascadeSubcommandArgs,
                tyro.conf.FlagCreatePairsOff,
                tyro.conf.HelptextFromCommentsOff,
            ),
        )
        with _data_dir(getattr(command, "data_dir", None)):
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


@contextlib.contextmanager
def _data_dir(folder: Path | None) -> Iterator[None]:
    """``folder`` as the environment names it: the processes that this one starts inherit it too."""
    before = os.environ.get(ENVIRONMENT)
    if folder is not None:
        os.environ[ENVIRONMENT] = str(folder.absolute())
    try:
        yield
    finally:
        os.environ.pop(ENVIRONMENT, None)
        if before is not None:
            os.environ[ENVIRONMENT] = before


def _check_names(arguments: Sequence[str]) -> None:
    """Refuse an unknown task or core by name, where tyro would call it an unrecognized option."""
    if not arguments or arguments[0] not in ("train", "sweep", "generate"):
        return
    tasks = GENERATED if arguments[0] == "generate" else TASKS
    if len(arguments) > 1 and not arguments[1].startswith("-") and arguments[1] not in tasks:
        raise UserError(f"unknown task {arguments[1]!r}; known: {', '.join(sorted(tasks))}")
    for name in (argument.removeprefix("core:") for argument in arguments if argument.startswith("core:")):
        if name not in CORES:
            raise UserError(f"unknown core {name!r}; known: {', '.join(sorted(CORES))}")


def _values_first(arguments: Sequence[str]) -> list[str]:
    """The sweep's ``--values`` before its subcommands: of options that may repeat, tyro sees no others."""
    first, rest, values = list(arguments[:1]), list(arguments[1:]), list[str]()
    while first == ["sweep"] and "--values" in rest:
        start = rest.index("--values")
        values += rest[start : start + 2]
        del rest[start : start + 2]
    return [*first, *values, *rest]


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


GENERATED: dict[str, Any] = {Balls.name: Balls}
"""The tasks whose sequences can be written to a file."""

_Task = _choice(TASKS, prefix=False)
_Generated = _choice(GENERATED, prefix=False)
_Core = _choice(CORES, prefix=True)
_TrainingOptions = _unchecked(TrainingOptions)
_DataDir = Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")]
_plurals = sorted({f"--{task.condition_name.removesuffix('s')}s" for task in TASKS.values()})


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
    match: Literal["none", "state", "params"] = "none"
    """Size of the core: as its options say, or that of equal state (exactly) or parameters (within 5 %)."""
    match_to: Path | None = None
    """Run with whose core it is matched; without, the default RIM."""
    run: Path | None = None
    """Folder of the run; without, runs/TASK-CORE-SEED-TIME."""
    resume: bool = False
    """Go on with the run in the folder."""
    data_dir: _DataDir = None
    """Folder of data files; without, $RIMS_DATA, or a download to the user's cache."""

    def __call__(self) -> None:
        # Through JSON, because task, core and training are of classes without their checks here (see
        # _unchecked).
        config = RunConfig.from_json(RunConfig(self.task, self.core, self.model, self.training).to_json())
        if self.match != "none":
            config.core = _matched(config, self.match, self.match_to)
        elif self.match_to is not None:
            raise UserError("--match-to needs --match state or --match params")
        if self.run is None and self.resume:
            raise UserError("--resume needs the folder of the run: --run FOLDER")
        if self.run is None and config.training.devices * config.training.nodes > 1:
            # The other processes have this command line too: a name made here would differ in each.
            raise UserError("more than one device or node needs a named folder: --run FOLDER")
        _train(config, self.run or _new_folder(config), self.resume)


@dataclass
class Resume:
    """Go on with a run that was stopped."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    data_dir: _DataDir = None
    """Folder of data files; without, $RIMS_DATA, or a download to the user's cache."""

    def __call__(self) -> None:
        _train(Run.open(self.run).config, self.run, resume=True)


@dataclass
class Eval:
    """Test a run at each condition, such as the delays of copying."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    conditions: Annotated[tuple[int, ...], tyro.conf.arg(aliases=_plurals, help_behavior_hint="")] = ()
    """Conditions to test at; without, those of the task."""
    sequences: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Test sequences a condition; without, all of a data set, 2048 of a generated task."""
    checkpoint: Literal["last", "best"] = "last"
    """Weights: the last, or those of the lowest validation loss."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    json: bool = False
    """Print JSON, not a table."""
    data_dir: _DataDir = None
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
        table = Table(task.condition_name, *_spaced(rows[0]["metrics"]), title=str(self.run))
        for row in rows:
            table.add_row(task.label(row["condition"]), *map(_shown, row["metrics"].values()))
        if task.chance():
            table.add_row("chance", *(_chance(task, name) for name in rows[0]["metrics"]), style="dim")
        for row in rows:
            for name, values in row.get("references", {}).items():
                shown = [_shown(values[metric]) if metric in values else "" for metric in row["metrics"]]
                table.add_row(f"{task.label(row['condition'])}: {name}", *shown, style="dim")
        _print(table)


@dataclass
class Lesion:
    """Remove one RIM of a run after the other: what breaks?"""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    conditions: Annotated[tuple[int, ...], tyro.conf.arg(aliases=_plurals, help_behavior_hint="")] = ()
    """Conditions to test at; without, the training condition."""
    sequences: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = 256
    """Test sequences a condition; None: as many as rims eval takes."""
    checkpoint: Literal["last", "best"] = "last"
    """Weights: the last, or those of the lowest validation loss."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    json: bool = False
    """Print JSON, not a table."""
    data_dir: _DataDir = None
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
        metrics = _spaced(next(iter(found.values()))[None])
        table = Table(task.condition_name, "removed", *metrics, title=str(self.run))
        for at, damage in found.items():
            for rim, values in damage.items():
                name = "none" if rim is None else f"RIM {rim}"
                table.add_row(
                    task.label(at), name, *map(_shown, values.values()), end_section=rim == len(damage) - 2
                )
        _print(table)


@dataclass
class Report:
    """Compare runs: a table here and a page with plots."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of the runs."""
    output: Path | None = None
    """File of the page."""
    data_dir: _DataDir = None
    """Folder of data files; without, $RIMS_DATA, or a download to the user's cache."""

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
class Generate:
    """Write a file of sequences for the task balls-file: rims generate balls FILE [OPTIONS]."""

    task: _Generated  # type: ignore[valid-type]
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
        with _counting(sum(counts.values())) as progress:
            write(task, self.file, counts, self.seed, progress)
        print(self.file)


@dataclass
class Reproduce:
    """Run an experiment of the paper, all arms and seeds, and print published beside measured numbers."""

    name: tyro.conf.Positional[str]
    """copying, copying-ablations, adding, smnist, scifar or digits."""
    scale: Literal["smoke", "small", "short", "paper"] = "small"
    """smoke: seconds, to see that all works; small: hours on two CPU cores; short: the paper's sizes for as
    many updates as small; paper: its sizes and updates."""
    only: tuple[str, ...] = ()
    """Arms to run; without, all."""
    seeds: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Seeds of each arm; without, the experiment's 3 or 5."""
    folder: Path | None = None
    """Folder of the runs; without, runs/NAME-SCALE. What stands there goes on, or is done."""
    on: Literal["processes", "ray"] = "processes"
    """Run in processes of this machine, or on Ray: here too, or on a cluster."""
    workers: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Runs at a time; without, one for each CPU core."""
    address: str | None = None
    """Ray cluster to run on, auto or HOST:PORT; its nodes must share the folder."""
    retries: int = 1
    """On Ray, how often a run that fails is tried again."""
    list: bool = False
    """Only say which arms there are."""
    data_dir: _DataDir = None
    """Folder of data files; without, $RIMS_DATA, or a download to the user's cache."""

    def __call__(self) -> None:
        module = importlib.import_module("rims.experiments.reproduce")
        if self.list:
            grid = module.plan(self.name, self.scale, self.only, self.seeds)
            print("\n".join(arm.name for arm in grid.arms))
            return
        folder = self.folder or Path("runs") / f"{self.name}-{self.scale}"
        where = _where(self.on, self.workers, self.address, self.retries)
        summary = module.reproduce(self.name, self.scale, folder, self.only, self.seeds, where)
        show = importlib.import_module("rims.experiments.summary")
        first, *more = summary["metrics"]
        header, rows = show.table(summary, first)
        costs = len(show.COSTS)
        print(show.title(summary, first))
        _print(_plain(header[:-costs], [row[:-costs] for row in rows]))
        for metric in more:
            print(show.title(summary, metric))
            _print(_plain(*show.table(summary, metric)))
        _print(_plain(["arm", *show.COSTS], [[row[0], *row[-costs:]] for row in rows if row[-costs]]))
        for line in show.notes(summary):
            print(line)
        print(f"summary: {folder / 'summary.json'}")
        if summary["failed"]:
            raise WorkError(
                f"{len(summary['failed'])} runs failed, see above; to try again, the same command"
            )


@dataclass
class Sweep:
    """Train with all combinations of values: rims sweep TASK core:NAME [OPTIONS] --values OPTION=A,B."""

    task: _Task  # type: ignore[valid-type]
    """What to learn."""
    core: _Core  # type: ignore[valid-type]
    """What learns it."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """Encoder and head around the core."""
    training: _TrainingOptions = field(default_factory=_TrainingOptions)  # type: ignore[valid-type]
    """Optimisation, validation and the machine; a sweep makes 1 of threads 0."""
    values: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An option and its values, such as training.learning-rate=1e-3,3e-3; once for each option."""
    seeds: int = 3
    """Seeds of each combination."""
    folder: Path = Path("runs/sweep")
    """Folder of the runs. What stands there goes on, or is done."""
    on: Literal["ray", "processes"] = "ray"
    """Run on Ray, here or on a cluster, or in processes of this machine."""
    workers: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Runs at a time; without, one for each CPU core."""
    address: str | None = None
    """Ray cluster to run on, auto or HOST:PORT; its nodes must share the folder."""
    retries: int = 1
    """On Ray, how often a run that fails is tried again."""
    data_dir: _DataDir = None
    """Folder of data files; without, $RIMS_DATA, or a download to the user's cache."""

    def __call__(self) -> None:
        module = importlib.import_module("rims.experiments.sweep")
        base = RunConfig.from_json(RunConfig(self.task, self.core, self.model, self.training).to_json())
        sweep = module.Sweep.of(base, self.values, self.seeds, self.folder)
        failed = sweep.run(_where(self.on, self.workers, self.address, self.retries))
        header, rows = sweep.table()
        if rows:
            _print(_plain(header, rows))
        for line in sweep.notes(failed):
            print(line)
        if failed:
            raise WorkError(f"{len(failed)} runs failed, see above; to try again, the same command")


@dataclass
class Results:
    """Write the page of results from summaries of experiments."""

    summaries: tyro.conf.Positional[tuple[Path, ...]]
    """Files summary.json, as rims reproduce writes them."""
    output: Path | None = None
    """File of the page; without, standard output."""

    def __call__(self) -> None:
        if not self.summaries:
            raise UserError("results needs at least one summary.json")
        show = importlib.import_module("rims.experiments.summary")
        page = show.markdown([show.read(path) for path in self.summaries])
        if self.output is None:
            print(page, end="")
            return
        write_file(self.output, page)


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
    compiled: bool = False
    """Also what torch.compile makes of the layer and the cells; takes minutes."""
    cores: bool = False
    """Instead, all cores beside nn.LSTM, at RIM's state size and at its parameters."""
    data: bool = False
    """Instead, what making training batches costs beside the updates that they are for."""
    output: Path | None = None
    """File for everything as JSON."""
    markdown: bool = False
    """Print Markdown, as in docs/performance.md."""

    def __call__(self) -> None:
        if self.cores and self.data:
            raise UserError("--cores and --data are measurements of their own; give one of the two")
        what = "cores" if self.cores else "data" if self.data else "run"
        measurements = importlib.import_module(f"rims.bench.{what}")
        table = importlib.import_module("rims.bench.table")
        versions = importlib.import_module("rims.train.versions").versions
        importlib.import_module("torch").set_num_threads(self.threads)
        keep_freed_memory()
        console = Console(stderr=True)
        with console.status("") as status:
            try:
                if what != "run":
                    result = measurements.bench(self.setting, self.repeats, status.update)
                else:
                    result = measurements.bench(
                        self.setting, self.repeats, self.sweeps, self.compiled, status.update
                    )
            except ValueError as error:
                raise UserError(str(error)) from error
        result["versions"] = versions()
        if self.output is not None:
            write_file(self.output, json.dumps(result, indent=2) + "\n")
        if self.markdown:
            print(table.markdown(result))
            return
        print(table.about(result))
        for title, header, rows in table.tables(result):
            shown = Table(header[0], *(Column(name, justify="right") for name in header[1:]), title=title)
            for row in rows:
                shown.add_row(*row)
            _print(shown)


@contextlib.contextmanager
def _counting(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's stderr, nothing elsewhere. Yields what is to be told of how many are done."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        line = bar.add_task("sequences", total=total)
        yield lambda done: bar.update(line, completed=done)


def _train(config: RunConfig, folder: Path, resume: bool) -> None:
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
        table.add_row(f"validation {name}", _shown(value), _chance(config.task, name))
    _print(table)
    print(f"folder: {folder}")
    print(f"next:   rims eval {shlex.quote(str(folder))}")


def _where(on: str, workers: int | None, address: str | None, retries: int) -> Any:
    """Where the runs of a command run."""
    return importlib.import_module("rims.experiments.where").Where(on, workers, address, retries)


def _matched(config: RunConfig, match: Match, to: Path | None) -> CoreConfig:
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


def _new_folder(config: RunConfig) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.task.name}-{config.core.name}-{config.training.seed}-{stamp}"


def _chance(task: Task, metric: str) -> str:
    level = task.chance().get(metric)
    return "" if level is None else _shown(level)


def _spaced(metrics: Iterable[str]) -> list[str]:
    """Names that a narrow table can fold."""
    return [name.replace("_", " ") for name in metrics]


def _shown(value: float) -> str:
    return f"{value:.4f}" if not 0 < abs(value) < 0.01 else f"{value:.2e}"


def _plain(header: list[str], rows: list[list[str]]) -> Table:
    """A table without a frame, for many columns."""
    columns = [Column(header[0], no_wrap=True), *(Column(name, justify="right") for name in header[1:])]
    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def _print(table: Table) -> None:
    console = Console()
    # Into a file or a pipe, a table is never folded to the width that some terminal has.
    console.print(table, width=None if console.is_terminal else 200)
