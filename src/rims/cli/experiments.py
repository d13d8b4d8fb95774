"""Commands on many runs: demo, reproduce, sweep, results."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from rims.cli.options import CoreOptions, DataDir, TaskOptions, UncheckedTraining
from rims.cli.tables import plain, print_table
from rims.errors import UserError, WorkError
from rims.train.config import ModelOptions, RunConfig
from rims.train.folder import write_file


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
class Reproduce:
    """Run an experiment of the paper, all arms and seeds, and print published beside measured numbers."""

    name: tyro.conf.Positional[str]
    """copying, copying-ablations, adding, smnist, scifar, digits, balls, balls-ood, crops or masking."""
    scale: Literal["smoke", "small", "short", "paper"] = "small"
    """smoke: minutes, to see that all works; small: hours on two CPU cores, a day for smnist and scifar;
    short: the paper's sizes for as many updates as small; paper: its sizes and updates."""
    only: tuple[str, ...] = ()
    """Arms to run; without, all."""
    seeds: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """How many seeds of each arm; without, the experiment's 3 or 5."""
    first_seed: int = 0
    """The first of the seeds: what one machine has, another goes on from, and rims results puts together."""
    updates: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Gradient steps of each run; without, the scale's."""
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
    data_dir: DataDir = None
    """Folder of data files; without, $RIMS_DATA, or a download to the user's cache."""

    def __call__(self) -> None:
        module = importlib.import_module("rims.experiments.reproduce")
        if self.list:
            grid = module.plan(self.name, self.scale, self.only, self.seeds)
            print("\n".join(arm.name for arm in grid.arms))
            return
        folder = self.folder or Path("runs") / f"{self.name}-{self.scale}"
        where = where_of(self.on, self.workers, self.address, self.retries)
        summary = module.reproduce(
            self.name, self.scale, folder, self.only, self.seeds, where, self.first_seed, self.updates
        )
        show = importlib.import_module("rims.experiments.tables")
        first, *more = summary["metrics"]
        header, rows = show.table(summary, first)
        costs = len(show.COSTS)
        print(show.title(summary, first))
        print_table(plain(header[:-costs], [row[:-costs] for row in rows]))
        for metric in more:
            print(show.title(summary, metric))
            print_table(plain(*show.table(summary, metric)))
        for metric in summary["metrics"]:
            header, removed = show.lesions(summary, metric)
            if removed:
                print(show.removed_title(summary, metric))
                print_table(plain(header, removed))
        print_table(plain(["arm", *show.COSTS], [[row[0], *row[-costs:]] for row in rows if row[-costs]]))
        for line in show.notes(summary):
            print(line)
        print(f"summary: {folder / 'summary.json'}")
        print(f"page:    rims report {folder}")
        # Others may have failed in an earlier call: they are told of, and are not this one's.
        grid = module.plan(self.name, self.scale, self.only, self.seeds)
        seeds = range(self.first_seed, self.first_seed + grid.seeds)
        failed = {f"{arm.name}-{seed}" for arm in grid.arms for seed in seeds} & summary["failed"].keys()
        if failed:
            raise WorkError(f"runs failed ({len(failed)}), see above; to try again, the same command")


@dataclass
class Sweep:
    """Train with all combinations of values: rims sweep TASK core:NAME [OPTIONS] --values OPTION=A,B."""

    task: TaskOptions
    """What to learn."""
    core: CoreOptions
    """What learns it."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """Encoder and head around the core."""
    training: UncheckedTraining = field(default_factory=UncheckedTraining)
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
    data_dir: DataDir = None
    """Folder of data files; without, $RIMS_DATA, or a download to the user's cache."""

    def __call__(self) -> None:
        module = importlib.import_module("rims.experiments.sweep")
        base = RunConfig.from_json(RunConfig(self.task, self.core, self.model, self.training).to_json())
        sweep = module.Sweep.of(base, self.values, self.seeds, self.folder)
        failed = sweep.run(where_of(self.on, self.workers, self.address, self.retries))
        header, rows = sweep.table()
        if rows:
            print_table(plain(header, rows))
        for line in sweep.notes(failed):
            print(line)
        if failed:
            raise WorkError(f"runs failed ({len(failed)}), see above; to try again, the same command")


@dataclass
class Results:
    """Write the page of results from summaries of experiments, which add up: arms by name, runs by seed."""

    summaries: tyro.conf.Positional[tuple[Path, ...]]
    """Files summary.json, as rims reproduce writes them; several of one experiment make one table."""
    output: Path | None = None
    """File of the page; without, standard output."""

    def __call__(self) -> None:
        if not self.summaries:
            raise UserError("results needs at least one summary.json")
        summary = importlib.import_module("rims.experiments.summary")
        page = importlib.import_module("rims.experiments.tables").markdown(summary.merge(self.summaries))
        if self.output is None:
            print(page, end="")
            return
        write_file(self.output, page)


def where_of(on: str, workers: int | None, address: str | None, retries: int) -> Any:
    """Where the runs of a command run."""
    return importlib.import_module("rims.experiments.where").Where(on, workers, address, retries)
