"""Run folders, read and put side by side: a Result is a run, a Group a row of a table, a Section a task."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rims.errors import UserError
from rims.report.statistics import Estimate, estimate
from rims.tasks import Task
from rims.tasks.video import VideoTask
from rims.train.config import RunConfig
from rims.train.folder import Run

COLOURS = {
    "rim": "#0072b2",
    "lstm": "#d55e00",
    "gru": "#e69f00",
    "ntm": "#009e73",
    "dnc": "#cc79a7",
    "rmc": "#56b4e9",
    "entnet": "#7a5195",
    "transformer": "#222222",
    "slstm": "#8c564b",
    "mingru": "#9a9a00",
    "feedforward": "#999999",
}
"""A core keeps its colour in every report: Okabe and Ito's palette for colour-blind readers, and five."""

SPELLING = {"entnet": "EntNet", "feedforward": "Feed-forward", "mingru": "minGRU", "slstm": "sLSTM"}
"""Names of cores that their papers write in a way of their own."""

MANY = 8
"""Groups beyond which a plot has no room for each seed, and little for intervals."""

LEGIBLE = 24
"""Letters of a label that a plot's legend has room for."""

MARKERS = "osD^vPX*"
"""A group's marker, so that colour is never the only difference."""


@dataclass
class Result:
    """What one run folder says."""

    run: Run
    evaluation: dict[int, dict[str, float]]
    """Test metrics by condition; empty when the run is not evaluated."""
    references: dict[int, dict[str, dict[str, float]]]
    """By condition, the metrics of predictors that learn nothing, by their names."""
    sequences: dict[int, int]
    """Test sequences by condition."""
    weights: dict[int, tuple[str, int]]
    """The checkpoint tested and the updates it had seen, by condition, as far as the folder tells."""
    evaluation_commit: str | None
    summary: dict[str, Any] | None
    """None until the run has ended."""
    metrics: list[dict[str, Any]]
    versions: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Result:
        """Raises UserError when the folder is missing or damaged."""
        run = Run.open(path)
        evaluation = run.read_json("evaluation.json")
        try:
            conditions = evaluation["conditions"] if evaluation else []
            by_condition = {
                int(entry["condition"]): {name: float(value) for name, value in entry["metrics"].items()}
                for entry in conditions
            }
            references = {
                int(entry["condition"]): {
                    name: {metric: float(value) for metric, value in metrics.items()}
                    for name, metrics in entry.get("references", {}).items()
                }
                for entry in conditions
            }
            sequences = {int(entry["condition"]): int(entry["sequences"]) for entry in conditions}
            weights = {
                int(entry["condition"]): (str(entry["checkpoint"]), int(entry["update"]))
                for entry in conditions
                if "checkpoint" in entry and "update" in entry
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            name = run.path / "evaluation.json"
            raise UserError(f"{name} is damaged: {type(error).__name__} {error}") from error
        versions = run.read_json("versions.json") or []
        return cls(
            run,
            by_condition,
            references,
            sequences,
            weights,
            _hash(evaluation.get("commit")) if evaluation else None,
            run.read_json("summary.json"),
            run.metrics(),
            versions if isinstance(versions, list) else [versions],
        )

    @property
    def config(self) -> RunConfig:
        return self.run.config

    @property
    def seed(self) -> int:
        return self.config.training.seed

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.run.path.name or str(self.run.path)

    @property
    def argument(self) -> str:
        """The folder as it is typed in a shell."""
        return shlex.quote(str(self.run.path))

    @property
    def updates(self) -> int:
        """Updates made so far, as far as the folder tells."""
        if self.summary is not None:
            return int(self.summary["updates"])
        return max((int(row["update"]) for row in self.metrics), default=0)

    @property
    def seconds(self) -> float | None:
        """Wall time spent on training so far."""
        if self.summary is not None and self.summary.get("seconds") is not None:
            return float(self.summary["seconds"])
        return max((float(row["seconds"]) for row in self.metrics if "seconds" in row), default=None)

    @property
    def commit(self) -> str | None:
        """The commit that measured the numbers, or else the last that trained."""
        trained = [_hash(entry.get("commit") or entry.get("git")) for entry in self.versions]
        return self.evaluation_commit or next((known for known in reversed(trained) if known), None)

    def curve(self, split: str, name: str) -> tuple[list[int], list[float]]:
        """Updates and values of a measurement; validation is taken at the training condition alone."""
        trained = self.config.task.training_condition
        rows = [
            row
            for row in self.metrics
            if row.get("split") == split
            and row.get(name) is not None
            and (split == "training" or row.get("condition", trained) == trained)
        ]
        return [int(row["update"]) for row in rows], [float(row[name]) for row in rows]


@dataclass
class Group:
    """Runs that differ in nothing but the seed: one row of a table, one curve of a plot."""

    results: list[Result]
    label: str = ""
    """What it is called beside the others: its core, and what tells it from others of that core."""
    colour: str = ""
    marker: str = "o"
    named: list[str] = field(default_factory=list)
    """Options, by dotted name, that the label mentions."""

    @property
    def first(self) -> Result:
        return self.results[0]

    @property
    def task(self) -> Task:
        return self.first.config.task

    @property
    def seeds(self) -> int:
        return len(self.results)

    @property
    def core(self) -> str:
        return self.first.config.core.name

    @property
    def hidden_size(self) -> int | None:
        return getattr(self.first.config.core, "hidden_size", None)

    @cached_property
    def options(self) -> dict[str, Any]:
        """Every option but the seed, by its dotted name."""
        return options(self.first.config)

    def metric(self, name: str, condition: int) -> Estimate | None:
        """A test metric over the seeds that have it."""
        values = [
            result.evaluation[condition][name]
            for result in self.results
            if name in result.evaluation.get(condition, {})
        ]
        return estimate(values) if values else None

    def measured(self, name: str) -> dict[int, Estimate]:
        """A test metric at every condition at which some seed has it."""
        conditions = sorted({condition for result in self.results for condition in result.evaluation})
        found = {condition: self.metric(name, condition) for condition in conditions}
        return {condition: value for condition, value in found.items() if value is not None}

    def summary(self, name: str) -> int | None:
        """A number of the summary that all seeds share."""
        return next((int(r.summary[name]) for r in self.results if r.summary and name in r.summary), None)

    @property
    def updates(self) -> tuple[int, int]:
        """The fewest and the most updates of a seed."""
        updates = [result.updates for result in self.results]
        return min(updates), max(updates)

    @property
    def seconds(self) -> float | None:
        """Mean wall time of a run."""
        known = [result.seconds for result in self.results if result.seconds is not None]
        return estimate(known).mean if known else None

    @property
    def commits(self) -> list[str]:
        return sorted({result.commit for result in self.results if result.commit})

    def curve(self, split: str, name: str) -> tuple[list[int], list[list[float]]]:
        """The updates at which every seed has a measurement, and the seeds' values at each."""
        curves = [dict(zip(*result.curve(split, name))) for result in self.results]
        shared = sorted(set.intersection(*(set(curve) for curve in curves)))
        return shared, [[curve[update] for curve in curves] for update in shared]


@dataclass
class Section:
    """The runs of one task, with what they are compared by."""

    groups: list[Group]
    chance: dict[str, float]
    metrics: list[str] = field(default_factory=list)
    """Metric names, the one of the headline first."""
    conditions: list[int] = field(default_factory=list)
    """Every condition tested or to be tested: ascending; of kinds, those trained on first, then as the task
    names them."""

    @property
    def task(self) -> Task:
        return self.groups[0].task

    @property
    def results(self) -> list[Result]:
        return [result for group in self.groups for result in group.results]

    @property
    def references(self) -> dict[str, dict[int, dict[str, float]]]:
        """The metrics of predictors that learn nothing, by name and condition: the same for all runs."""
        found: dict[str, dict[int, dict[str, float]]] = {}
        for result in self.results:
            for condition, references in result.references.items():
                for name, metrics in references.items():
                    found.setdefault(name, {}).setdefault(condition, metrics)
        return found

    def referred(self, metric: str) -> dict[str, dict[int, float]]:
        """By name and condition, the metric of those references that have it."""
        values = {
            name: {c: metrics[metric] for c, metrics in at.items() if metric in metrics}
            for name, at in self.references.items()
        }
        return {name: at for name, at in values.items() if at}

    @property
    def trained(self) -> list[int]:
        """The training conditions of the runs, ascending: usually one."""
        return sorted({result.config.task.training_condition for result in self.results})


def gather(paths: Iterable[Path]) -> list[Section]:
    """Read the run folders and sort them into sections and groups, in the order given.

    Raises UserError when there are none, or one is missing or damaged.
    """
    unique = {Path(path).absolute(): Path(path) for path in paths}
    if not unique:
        raise UserError("no run folders given; expected at least one")
    by_task: dict[Any, list[Group]] = {}
    for result in map(Result.read, unique.values()):
        task = result.config.task
        groups = by_task.setdefault((task.name, tuple(sorted(task.chance().items()))), [])
        # Two runs of one seed are not two samples: the second starts a row of its own.
        home = next(
            (g for g in groups if same(g, result) and result.seed not in {r.seed for r in g.results}), None
        )
        if home is None:
            groups.append(Group([result]))
        else:
            home.results.append(result)
    return [_section(groups) for groups in by_task.values()]


def same(group: Group, result: Result) -> bool:
    """Whether the run differs from the group's in nothing but the seed."""
    return group.options == options(result.config)


def options(config: RunConfig) -> dict[str, Any]:
    """Every option but the seed, by its dotted name, such as ``core.hidden_size``."""
    flat = {
        f"{part}.{name}": value for part, values in config.to_json().items() for name, value in values.items()
    }
    del flat["training.seed"]
    return flat


def display_name(core: str) -> str:
    """How a core is written in prose: abbreviations in capitals (LSTM), words as words (Transformer)."""
    return SPELLING.get(core) or (core.upper() if len(core) <= 4 else core.capitalize())


def short(name: str) -> str:
    """An option's name without its part: ``core.num_active`` is ``num_active``."""
    return name.partition(".")[2]


def differing(groups: Sequence[Group]) -> list[str]:
    """The options, by dotted name, in which the groups are not all alike."""
    names = dict.fromkeys(name for group in groups for name in group.options)
    return [name for name in names if len({repr(group.options.get(name)) for group in groups}) > 1]


def key_settings(group: Group, groups: Sequence[Group]) -> dict[str, Any]:
    """What a reader must know to tell this row from others.

    How many RIMs there are and how many are active, options of the core that are not its defaults, and
    whatever else differs between the rows of one table. What the row's label says is left out.
    """
    core = group.first.config.core
    chosen: dict[str, Any] = {}
    for option in dataclasses.fields(core):
        value = getattr(core, option.name)
        if option.default_factory is not dataclasses.MISSING:
            default = option.default_factory()
        else:
            default = option.default
        if option.name != "hidden_size" and (option.name in ("num_rims", "num_active") or value != default):
            chosen[f"core.{option.name}"] = value
    for name in differing(groups):
        if not name.startswith("core.") and name in group.options:
            chosen[name] = group.options[name]
    return {short(name): value for name, value in chosen.items() if name not in group.named}


def _hash(commit: Any) -> str | None:
    """A commit in seven digits, with a plus where the checkout had changes that no commit holds."""
    if isinstance(commit, dict):
        known = _hash(commit.get("commit"))
        return known and known + ("+" if commit.get("dirty") else "")
    return str(commit)[:7] if commit else None


def _section(groups: list[Group]) -> Section:
    results = [result for group in groups for result in group.results]
    task = groups[0].task
    chance = task.chance()
    measured = [metrics for result in results for metrics in result.evaluation.values()]
    names = dict.fromkeys(name for metrics in measured for name in metrics)
    if len(names) > 1 and not isinstance(task, VideoTask):
        # The loss averages over easy steps too: on copying it falls as the delay grows, and misleads.
        names.pop("loss", None)
    tested = {condition for r in results for condition in r.evaluation}
    planned = {condition for r in results for condition in r.config.task.test_conditions}
    for group in groups:
        group.results.sort(key=lambda result: result.seed)
    _label(groups)
    _colour(groups)
    return Section(
        groups,
        chance,
        # Accuracies read most easily, so they come first; those of a model left to itself before all.
        sorted(
            names or chance or ["loss"],
            key=lambda name: (not name.startswith("rollout"), "accuracy" not in name),
        ),
        _ordered(results, tested | planned),
    )


def _ordered(results: list[Result], conditions: set[int]) -> list[int]:
    """See :attr:`Section.conditions`."""
    if not results[0].config.task.categorical:
        return sorted(conditions)
    tasks = [result.config.task for result in results]
    order = dict.fromkeys(
        [
            *(task.training_condition for task in tasks),
            *(condition for task in tasks for condition in task.test_conditions),
            *sorted(conditions),
        ]
    )
    return [condition for condition in order if condition in conditions]


def _label(groups: list[Group]) -> None:
    """Name each group by its core, what tells it from others of that core, and at last by its folder."""
    for core in {group.core for group in groups}:
        alike = [group for group in groups if group.core == core]
        names = differing(alike)
        for group in alike:
            group.named = [name for name in names if name in group.options]
            details = [f"{short(name)}={group.options[name]}" for name in group.named]
            group.label = " ".join([display_name(core), *details])
        for group in alike:
            if sum(other.options == group.options for other in alike) > 1:
                group.label += f" {group.first.name}"
    # In a grid of many cores and options, its rows' own names say more in less.
    arms = {arm for group in groups if (arm := _arm(group))}
    longest = max(len(group.label) for group in groups)
    if len(arms) == len(groups) and max(map(len, arms)) < longest > LEGIBLE:
        for group in groups:
            group.label, group.named = str(_arm(group)), []


def _arm(group: Group) -> str | None:
    """The group's name where all its folders are called by it and their seeds, as those of grids are."""
    ends = all(result.name.endswith(f"-{result.seed}") for result in group.results)
    names = {result.name.removesuffix(f"-{result.seed}") for result in group.results}
    return names.pop() if ends and len(names) == 1 else None


def _shade(colour: str | None, taken: set[str]) -> str:
    """A lighter or darker form of the colour that no other group has; grey where there is none."""
    channels = [int((colour or "#777777")[i : i + 2], 16) for i in (1, 3, 5)]
    for part, towards in ((0.35, 255), (0.35, 0), (0.6, 255), (0.6, 0), (0.2, 255), (0.2, 0), (0.75, 255)):
        shade = "#" + "".join(f"{round(c + part * (towards - c)):02x}" for c in channels)
        if shade not in taken:
            return shade
    return "#777777"


def _colour(groups: list[Group]) -> None:
    free = [colour for core, colour in COLOURS.items() if core not in {group.core for group in groups}]
    taken: set[str] = set()
    for index, group in enumerate(groups):
        own = COLOURS.get(group.core)
        if own is None or own in taken:
            own = free.pop(0) if free else _shade(own, taken)
        group.colour = own
        group.marker = MARKERS[index % len(MARKERS)]
        taken.add(own)
