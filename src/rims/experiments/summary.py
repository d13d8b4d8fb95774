"""A grid's runs as one small file of plain values, and that as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rims.errors import UserError
from rims.experiments.arms import EXPERIMENTS, Arm, Grid, Scale
from rims.report import words
from rims.report.statistics import estimate
from rims.train.folder import Run


def summarise(name: str, scale: Scale, grid: Grid, folder: Path, failed: dict[Path, str]) -> dict[str, Any]:
    """What the runs in ``folder`` have measured; runs that have not ended are left out, and named."""
    experiment, task = EXPERIMENTS[name], grid.arms[0].config.task
    arms: list[dict[str, Any]] = [
        {
            "name": arm.name,
            "published": {str(c): value for c, value in arm.published.items()},
            "config": arm.config.to_json(),
            "runs": list(_runs(arm, grid.seeds, folder, experiment.metrics)),
        }
        for arm in grid.arms
    ]
    tested = {int(c) for arm in arms for run in arm["runs"] for c in run["test"]}
    order = [*task.test_conditions] if task.categorical else []
    return {
        "experiment": name,
        "scale": scale,
        "source": experiment.source,
        "metrics": [*experiment.metrics],
        "task": task.name,
        "condition": task.condition_name,
        "labels": {str(c): task.label(c) for c in dict.fromkeys([*order, *sorted(tested)])},
        "chance": {metric: value for metric, value in task.chance().items() if metric in experiment.metrics},
        "references": _references(grid, folder, experiment.metrics),
        "arms": arms,
        "impossible": grid.impossible,
        "failed": {run.name: why for run, why in failed.items()},
    }


def _runs(arm: Arm, seeds: int, folder: Path, metrics: Sequence[str]) -> Iterator[dict[str, Any]]:
    for path, config in arm.runs(folder, seeds).items():
        if not (path / "config.json").exists():
            continue
        run = Run.open(path)
        summary, evaluation = run.read_json("summary.json"), run.read_json("evaluation.json")
        if summary is None or evaluation is None:
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
                for row in evaluation["conditions"]
            },
            "best_validation": _best_validations(run, metrics[0]),
        }


def _only(measured: dict[str, float], metrics: Sequence[str]) -> dict[str, float]:
    return {metric: measured[metric] for metric in metrics if metric in measured}


def _references(grid: Grid, folder: Path, metrics: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """By name and condition, what predictors that learn nothing score: the same for all runs, so those of the
    first that has them."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for path in (path for arm in grid.arms for path in arm.runs(folder, grid.seeds)):
        evaluation = Run.open(path).read_json("evaluation.json") if (path / "config.json").exists() else None
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
        if not {"experiment", "scale", "metrics", "arms"} <= set(summary):
            raise UserError(
                f"{path} is no summary of an experiment: expected experiment, scale, metrics and arms"
            )
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return summary


def conditions(summary: dict[str, Any]) -> list[int]:
    """Every condition that was tested, in the order of their labels."""
    tested = {c for arm in summary["arms"] for run in arm["runs"] for c in run["test"]}
    return [int(c) for c in summary["labels"] if c in tested]


def label(summary: dict[str, Any], condition: int | str) -> str:
    """A condition as people read it."""
    return str(summary["labels"].get(str(condition), condition))


RULE = "paper's rule"
COSTS = ("seeds", "parameters", "updates", "time")
"""The last columns of a table."""

OPTIONAL = ("published", RULE)
"""Columns that not every experiment has."""


def table(summary: dict[str, Any], metric: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows, of the arms that have run: what ``metric`` is at each condition; with the first metric
    also published numbers and the paper's rule, where there are any, and :data:`COSTS`."""
    columns, first = conditions(summary), metric == summary["metrics"][0]
    header = ["arm", *(f"{summary['condition']} {label(summary, c)}" for c in columns)]
    if first:
        header = [*header[:1], "published", *header[1:], RULE, *COSTS]
    rows = []
    for arm in summary["arms"]:
        runs = arm["runs"]
        if not runs:
            continue
        published = " / ".join(words.value(metric, v) for v in arm["published"].values())
        if arm["published"] and [*map(int, arm["published"])] != columns:
            published += f" (at {' / '.join(label(summary, c) for c in arm['published'])})"
        row = [arm["name"], *[published] * first]
        for condition in map(str, columns):
            tests = [run["test"][condition]["metrics"] for run in runs if condition in run["test"]]
            row.append(_estimated(metric, [test[metric] for test in tests if metric in test]))
        rows.append(row)
        if not first:
            continue
        shifted = [str(c) for c in columns if all(str(c) in run["best_validation"] for run in runs)]
        rule = [_mean(metric, [run["best_validation"][c] for run in runs]) for c in shifted]
        row.append(" / ".join(rule) if len(shifted) > 1 else "")
        row.append(str(len(runs)))
        row.append(_same([run["parameters"] for run in runs]))
        row.append(_same([run["updates"] for run in runs]))
        row.append(words.duration(estimate([run["seconds"] for run in runs]).mean))
    known = {"chance": dict.fromkeys(map(str, columns), summary["chance"])} if summary["chance"] else {}
    for name, at in {**known, **summary["references"]}.items():
        values = [at.get(str(c), {}).get(metric) for c in columns]
        if any(value is not None for value in values):
            cells = [words.MISSING if v is None else words.value(metric, v) for v in values]
            rows.append([name, *cells] if not first else [name, "", *cells, "", *[""] * len(COSTS)])
    kept = [i for i, name in enumerate(header) if name not in OPTIONAL or any(row[i] for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def title(summary: dict[str, Any], metric: str) -> str:
    """What the table of the metric shows."""
    unit = words.unit(metric)
    what = f"{words.title(metric)}{', ' * bool(unit)}{unit}"
    return f"{summary['experiment']} ({summary['source']}), scale {summary['scale']}: {what}"


def notes(summary: dict[str, Any]) -> list[str]:
    """What the reader must know."""
    lines = [
        "Mean and 95 % interval over seeds of fresh test sequences, at the checkpoint of the lowest "
        "validation loss under the training condition."
    ]
    if RULE in table(summary, summary["metrics"][0])[0]:
        lines[0] += (
            " The paper's rule: for each condition the best validation at that condition, which is "
            "out-of-distribution selection; mean over seeds."
        )
    if any(arm["published"] for arm in summary["arms"]) and summary["scale"] != "paper":
        lines.append(
            "Published numbers are of the paper's sizes, sequences and updates, not of this scale's."
        )
    missing = [arm["name"] for arm in summary["arms"] if not arm["runs"]]
    if missing:
        lines.append(f"Not run: {', '.join(missing)}.")
    lines += [f"No such size: {text}." for text in summary["impossible"]]
    lines += [f"Failed: {run}: {why}." for run, why in summary["failed"].items()]
    return lines


def provenance(summary: dict[str, Any]) -> str:
    """Commits and commands behind the rows."""
    runs = [run for arm in summary["arms"] for run in arm["runs"]]
    commits = sorted({(run["commit"] or "unknown")[:7] for run in runs})
    commands = sorted({run["command"] for run in runs if run["command"]})
    machines = sorted({run["gpu"] or run["cpu"] for run in runs if run["gpu"] or run["cpu"]})
    return (
        f"Command: `rims reproduce {summary['experiment']} --scale {summary['scale']}`"
        + "".join(f" (runs started by `{command}`)" for command in commands if "reproduce" not in command)
        + f". Commit {', '.join(commits)}, on {', '.join(machines)}."
    )


def markdown(summaries: Sequence[dict[str, Any]]) -> str:
    """docs/results.md."""
    lines = [
        "# Results",
        "",
        "Made by `rims results results/*.json --output docs/results.md`; do not edit.",
        "",
    ]
    for summary in summaries:
        for metric in summary["metrics"]:
            header, rows = table(summary, metric)
            first = metric == summary["metrics"][0]
            lines += [f"{'#' * (3 - first)} {title(summary, metric)}", ""]
            lines += [provenance(summary), ""] * first
            text = 1 + ("published" in header)  # columns of words
            lines += ["| " + " | ".join(header) + " |", "|" + "---|" * text + "---:|" * (len(header) - text)]
            lines += ["| " + " | ".join(row) + " |" for row in rows]
            lines += ["", *[f"{note}\n" for note in notes(summary)] * first]
    return "\n".join(lines).rstrip() + "\n"


def _estimated(metric: str, values: Sequence[float]) -> str:
    return words.with_spread(metric, estimate(values)) if values else words.MISSING


def _mean(metric: str, values: Sequence[float]) -> str:
    return words.value(metric, estimate(values).mean)


def _same(values: Sequence[int]) -> str:
    """One number, or the range."""
    low, high = min(values), max(values)
    return words.whole(low) if low == high else f"{words.whole(low)}-{words.whole(high)}"
