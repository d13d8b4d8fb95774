"""Run folders sorted: runs that differ in nothing but the seed, groups of one task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rims.errors import UserError
from rims.report.groups import Group, Section
from rims.report.labels import colour, label
from rims.report.results import Result, options
from rims.tasks.video import VideoTask


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
    label(groups)
    colour(groups)
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
