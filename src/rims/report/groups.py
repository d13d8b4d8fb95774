"""Run folders side by side: a Group is a row of a table, a Section a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rims.report.results import Result, options
from rims.report.statistics import Estimate, estimate
from rims.tasks import Task

MANY = 8
"""Groups beyond which a plot has no room for each seed, and little for intervals."""


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
