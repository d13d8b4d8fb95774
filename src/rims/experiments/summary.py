"""A grid's runs as one small file of plain values; such files put together.

Run folders are large, and made in several sessions and on several machines. What is kept are these files, and
they add up: arms by name, runs by seed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rims.errors import UserError
from rims.experiments.arms import EXPERIMENTS, Arm, Grid, Scale
from rims.experiments.grid import FAILURE, LESIONS
from rims.report import words
from rims.report.results import options
from rims.tasks import TASKS
from rims.train.checkpoint import Which
from rims.train.config import RunConfig
from rims.train.folder import Run

CHECKPOINT: Which = "best"
"""What is tested: the weights of the lowest validation loss under the training condition."""

KEYS = (
    "experiment", "scale", "source", "metrics", "task", "condition", "labels", "chance", "references", "arms",
    "failed",
)  # fmt: skip
"""What a summary holds."""


def summarise(
    name: str,
    scale: Scale,
    grid: Grid,
    folder: Path,
    failed: dict[Path, str],
    updates: int | None = None,
) -> dict[str, Any]:
    """What the runs of the grid's arms in ``folder`` have measured, whichever seeds stand there. Runs that
    have not ended are left out, and so are arms that have none. ``updates``: where they are not the
    scale's."""
    experiment, task = EXPERIMENTS[name], grid.arms[0].config.task
    arms: list[dict[str, Any]] = []
    for arm in grid.arms:
        if runs := [*_runs(arm, folder, experiment.metrics)]:
            published = {str(c): value for c, value in arm.published.items()}
            config = arm.config.to_json()
            arms.append({"name": arm.name, "published": published, "config": config, "runs": runs})
    tested = {int(c) for arm in arms for run in arm["runs"] for c in run["test"]}
    order = [*task.test_conditions] if task.categorical else []
    return {
        "experiment": name,
        "scale": scale,
        "updates": updates,
        "source": experiment.source,
        "metrics": [*experiment.metrics],
        "task": task.name,
        "condition": task.condition_name,
        "labels": {str(c): task.label(c) for c in dict.fromkeys([*order, *sorted(tested)])},
        "chance": {metric: value for metric, value in task.chance().items() if metric in experiment.metrics},
        "references": _references(grid, folder, experiment.metrics),
        "arms": arms,
        "failed": {run.name: why for run, why in {**_failures(grid, folder), **failed}.items()},
    }


def _failures(grid: Grid, folder: Path) -> dict[Path, str]:
    """Why runs of the grid failed, in this call or an earlier one."""
    notes = (path / FAILURE for arm in grid.arms for path in standing(arm, folder))
    return {note.parent: note.read_text().strip() for note in notes if note.exists()}


def standing(arm: Arm, folder: Path) -> dict[Path, RunConfig]:
    """The arm's runs that stand in ``folder``, by seed."""
    name = re.compile(rf"{re.escape(arm.name)}-(0|[1-9][0-9]*)")
    found = (name.fullmatch(path.parent.name) for path in folder.glob("*/config.json"))
    return arm.runs(folder, sorted(int(match[1]) for match in found if match))


def _runs(arm: Arm, folder: Path, metrics: Sequence[str]) -> Iterator[dict[str, Any]]:
    for path, config in standing(arm, folder).items():
        run = Run.open(path)
        summary, evaluation = run.read_json("summary.json"), run.read_json("evaluation.json")
        if summary is None or evaluation is None:
            continue
        # Tests that a user has made of other weights are none of the experiment.
        tests = [row for row in evaluation["conditions"] if row["checkpoint"] == CHECKPOINT]
        if not tests:
            continue
        versions = run.read_json("versions.json") or [{}]
        yield {
            "seed": config.training.seed,
            **{key: summary[key] for key in ("updates", "seconds", "parameters", "core_parameters")},
            **{key: summary[key] for key in ("state_size", "flops_per_step")},
            "commit": evaluation["commit"],
            "command": versions[-1].get("command"),
            "cpu": versions[-1].get("cpu"),
            "gpu": versions[-1].get("gpu"),
            "test": {
                str(row["condition"]): {
                    "metrics": _only(row["metrics"], metrics),
                    "checkpoint": row["checkpoint"],
                    "update": row["update"],
                    "sequences": row["sequences"],
                }
                for row in tests
            },
            "best_validation": _best_validations(run, metrics[0]),
            **_lesions(run, metrics),
        }


def _lesions(run: Run, metrics: Sequence[str]) -> dict[str, Any]:
    """What the run measured intact ("none") and without each RIM, where it was so tested."""
    found = run.read_json(LESIONS)
    if found is None or found["checkpoint"] != CHECKPOINT:
        return {}
    rows = [
        ("none" if row["removed"] is None else str(row["removed"]), row["metrics"]) for row in found["rows"]
    ]
    return {"lesions": {removed: _only(measured, metrics) for removed, measured in rows}}


def _only(measured: dict[str, float], metrics: Sequence[str]) -> dict[str, float]:
    return {metric: measured[metric] for metric in metrics if metric in measured}


def _references(grid: Grid, folder: Path, metrics: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """By name and condition, what predictors that learn nothing score: the same for all runs, so those of the
    first that has them."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for path in (path for arm in grid.arms for path in standing(arm, folder)):
        evaluation = Run.open(path).read_json("evaluation.json")
        for row in (evaluation or {"conditions": []})["conditions"]:
            for name, measured in row.get("references", {}).items():
                found.setdefault(name, {}).setdefault(str(row["condition"]), _only(measured, metrics))
    return found


def _best_validations(run: Run, metric: str) -> dict[str, float]:
    """By condition, the best that any validation at that condition saw: how the paper selects."""
    best = max if words.is_score(metric) else min
    found: dict[str, float] = {}
    for row in run.metrics():
        if row["split"] == "validation" and metric in row:
            key = str(row["condition"])
            found[key] = best(found.get(key, row[metric]), row[metric])
    return found


def read(path: Path) -> dict[str, Any]:
    """A summary that was written. Raises UserError when it is none."""
    try:
        summary = json.loads(path.read_text())
        if missing := [name for name in KEYS if name not in summary]:
            raise UserError(f"{path} is no summary of an experiment: it has no {missing[0]}")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return summary


def own_updates(summary: dict[str, Any]) -> int | None:
    """Updates that were asked for instead of the scale's; None in files from before that was kept, too."""
    return summary.get("updates")


def merge(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The files' summaries, of which those of one experiment at one scale, for one number of updates where
    it is not the scale's, become one, in the order of the files: arms by name, runs by seed. A run that
    several files hold counts once.

    Raises UserError for files that are no summaries, for an arm that two of them give other options, and for
    a seed of it that they give other numbers.
    """
    wholes: dict[tuple[str, str, int | None], _Whole] = {}
    for path in paths:
        summary = read(path)
        key = (summary["experiment"], summary["scale"], own_updates(summary))
        wholes.setdefault(key, _Whole(summary)).add(path, summary)
    return [whole.summary() for whole in wholes.values()]


class _Whole:
    """Summaries of one experiment at one scale and budget, put together."""

    def __init__(self, first: dict[str, Any]) -> None:
        self.first = first
        self.metrics: dict[str, None] = {}
        self.labels: dict[str, str] = {}
        self.known: dict[str, dict[str, Any]] = {"chance": {}, "references": {}}
        self.failed: dict[str, str] = {}
        self.arms: dict[str, dict[str, Any]] = {}
        """Without their runs."""
        self.runs: dict[str, dict[int, dict[str, Any]]] = {}
        """By arm and seed."""
        self.files: dict[tuple[str, int] | str, Path] = {}
        """Where an arm, and a run of it, were read first."""

    def add(self, path: Path, summary: dict[str, Any]) -> None:
        self.metrics |= dict.fromkeys(summary["metrics"])
        self.labels |= summary["labels"]
        self.failed |= summary["failed"]
        for name in ("chance", "references"):
            for key, value in summary[name].items():
                self.known[name].setdefault(key, value)
        for arm in summary["arms"]:
            if arm["runs"]:
                self._add_arm(path, arm)

    def _add_arm(self, path: Path, arm: dict[str, Any]) -> None:
        name = arm["name"]
        before = self.files.setdefault(name, path)
        known = self.arms.setdefault(name, {key: value for key, value in arm.items() if key != "runs"})
        try:
            found = differences(known["config"], arm["config"])
        except UserError as error:
            raise UserError(f"{path}, {name}: {error}") from error
        for option, ours, theirs in found:
            raise UserError(
                f"{before} and {path} have other options for {name}: {option} is {ours!r} and {theirs!r}"
            )
        runs = self.runs.setdefault(name, {})
        for run in arm["runs"]:
            before = self.files.setdefault((name, run["seed"]), path)
            one, other = _numbers(runs.setdefault(run["seed"], run)), _numbers(run)
            for what in one | other:
                if one.get(what) != other.get(what):
                    raise UserError(
                        f"{before} and {path} have other numbers for {name}, seed {run['seed']}: "
                        f"{what} is {one.get(what)} and {other.get(what)}"
                    )

    def summary(self) -> dict[str, Any]:
        """As :func:`summarise` makes it."""
        ended = {f"{name}-{seed}" for name, runs in self.runs.items() for seed in runs}
        task = TASKS.get(self.first["task"])
        ordered = self.labels if task and task.categorical else sorted(self.labels, key=int)
        return {
            **self.first,
            **self.known,
            "metrics": [*self.metrics],
            "labels": {condition: self.labels[condition] for condition in ordered},
            "arms": [
                {**arm, "runs": [run for _, run in sorted(self.runs[name].items())]}
                for name, arm in self.arms.items()
            ],
            "failed": {run: why for run, why in self.failed.items() if run not in ended},
        }


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The options, but for the seed, in which two configurations differ, with both values. An option that one
    of them was written without has its default there.

    Raises UserError for a configuration that this version cannot read.
    """
    ours, theirs = (options(RunConfig.from_json(config)) for config in (one, other))
    pairs = [(name, ours.get(name), theirs.get(name)) for name in ours | theirs]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _numbers(run: dict[str, Any]) -> dict[str, str]:
    """All that was measured, to the last digit."""
    tests = {
        f"{metric} at {condition}": repr(value)
        for condition, row in run["test"].items()
        for metric, value in row["metrics"].items()
    }
    best = {f"the best validation at {c}": repr(value) for c, value in run["best_validation"].items()}
    lesions = {
        f"{metric} without RIM {rim}": repr(value)
        for rim, metrics in run.get("lesions", {}).items()
        for metric, value in metrics.items()
    }
    return tests | best | lesions
