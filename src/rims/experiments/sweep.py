"""A sweep: one configuration with all combinations of some options' values, each with several seeds.

Combinations are ranked by what models may be selected by, the validation loss under the training condition;
test results stand beside it, and decide nothing.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tyro

from rims.errors import UserError
from rims.experiments.grid import Evaluation, seed_by_seed
from rims.experiments.watch import main_metric
from rims.experiments.where import Where
from rims.report import words
from rims.report.statistics import estimate
from rims.train.config import RunConfig
from rims.train.folder import Run
from rims.train.module import build_model


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep."""

    options: tuple[str, ...]
    """What varies, as ``core.num_active``."""
    combinations: dict[tuple[Any, ...], RunConfig]
    """By the values of :attr:`options`."""
    seeds: int
    folder: Path

    @classmethod
    def of(cls, base: RunConfig, values: Sequence[str], seeds: int, folder: Path) -> Sweep:
        """``base`` with each of ``values``, such as ``"core.num-active=2,3"``.

        Raises UserError for all that could not run: unknown options, values of the wrong kind or given
        twice, combinations that do not fit together.
        """
        if seeds < 1:
            raise UserError(f"seeds is {seeds}; expected at least 1")
        if base.training.devices * base.training.nodes > 1:
            raise UserError(
                "a run of a sweep has one device; training.devices and training.nodes are 1 there"
            )
        axes: dict[str, list[Any]] = {}
        for text in values:
            option, found = _parse(base, text)
            if option in axes:
                raise UserError(f"--values names {option} twice")
            axes[option] = found
        combinations = {}
        for chosen in itertools.product(*axes.values()):
            data = base.to_json()
            # Runs share the machine; and their numbers must not depend on how many CPU cores one has.
            data["training"]["threads"] = data["training"]["threads"] or 1
            for option, value in zip(axes, chosen):
                part, name = option.split(".")
                data[part][name] = value
            try:
                combinations[chosen] = RunConfig.from_json(data)
                build_model(combinations[chosen])
            except UserError as error:
                where = f"{_name(axes, chosen)}: " if axes else ""
                raise UserError(f"{where}{error}") from error
        return cls(tuple(axes), combinations, seeds, folder)

    def runs(self, values: tuple[Any, ...]) -> dict[Path, RunConfig]:
        """Those of a combination, by their folders."""
        name = _name(self.options, values) or "run"
        found = {}
        for seed in range(self.seeds):
            data = self.combinations[values].to_json()
            data["training"]["seed"] = seed
            found[self.folder / f"{name}-{seed}"] = RunConfig.from_json(data)
        return found

    def run(self, where: Where) -> dict[Path, str]:
        """Run what is not done yet; returns what went wrong, by folder. Raises as ``where`` does."""
        ordered = seed_by_seed(self.runs(values) for values in self.combinations)
        next(iter(self.combinations.values())).task.prepare()  # one download, not one for each process
        return where.run(ordered, Evaluation("best"))

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: the lowest validation loss first; then test results of the same weights.

        A combination that lacks seeds stands below those that have all: what diverged is not in its mean.
        """
        task = next(iter(self.combinations.values())).task
        metric = main_metric(task)
        found = []
        for values in self.combinations:
            runs = [run for folder in self.runs(values) if (run := _ended(folder)) is not None]
            if runs:
                losses = [_lowest_loss(run) for run in runs]
                found.append(((len(runs) < self.seeds, estimate(losses).mean), values, losses, runs))
        found.sort(key=lambda row: row[0])
        tests = {run.path: _tests(run, metric) for *_, runs in found for run in runs}
        conditions = sorted({condition for test in tests.values() for condition in test})
        header = [*self.options, "validation loss", "seeds", "parameters"]
        header += [f"{words.title(metric)} at {task.condition_name} {task.label(c)}" for c in conditions]
        rows = []
        for _, values, losses, runs in found:
            seeds = str(len(runs)) if len(runs) == self.seeds else f"{len(runs)} of {self.seeds}"
            parameters = words.whole(runs[0].read_json("summary.json")["parameters"])
            row = [*map(str, values), words.with_spread("loss", estimate(losses)), seeds, parameters]
            for condition in conditions:
                at = [tests[run.path][condition] for run in runs if condition in tests[run.path]]
                row.append(words.with_spread(metric, estimate(at)) if at else words.MISSING)
            rows.append(row)
        return header, rows

    def notes(self, failed: dict[Path, str]) -> list[str]:
        """What the reader must know."""
        lines = [
            "Mean and 95 % interval over seeds, sorted by the lowest validation loss of each run, under the "
            "training condition; tested with the weights of that validation. Choose by the loss: what is "
            "chosen by a test is no longer tested."
        ]
        if any(option.startswith("task.") for option in self.options):
            lines.append("Losses on tasks with other options are not comparable.")
        lines += [f"Failed: {folder.name}: {why}" for folder, why in failed.items()]
        return [*lines, f"page:   rims report {self.folder}"]


def _parse(base: RunConfig, text: str) -> tuple[str, list[Any]]:
    """The option that ``core.num-active=2,3`` names, and its values."""
    option, equals, listed = text.partition("=")
    option = option.strip().removeprefix("--").replace("-", "_")
    part, _, name = option.partition(".")
    parts = vars(base)
    if not equals or part not in parts:
        raise UserError(
            f"--values is {text!r}; expected OPTION=VALUE,VALUE, of task, core, model or training"
        )
    if option in ("training.seed", "training.devices", "training.nodes"):
        raise UserError(f"--values cannot vary {option}; for seeds there is --seeds")
    known = [f.name for f in fields(parts[part])]
    if name not in known:
        raise UserError(f"{part} has no option {name!r}; known: {', '.join(sorted(known))}")
    kind = typing.get_type_hints(type(parts[part]))[name]
    if typing.get_origin(kind) is tuple:
        raise UserError(f"--values cannot vary {option}, which is itself several values")
    values = [_value(option, kind, value.strip()) for value in listed.split(",")]
    for number, value in enumerate(values):
        if value in values[:number]:
            raise UserError(f"--values gives {option} {value} twice")
    return option, values


def _value(option: str, kind: Any, text: str) -> Any:
    """``text`` as the command line would read it."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(kind, args=[{"true": "True", "false": "False"}.get(text, text)])
    except SystemExit:
        name = getattr(kind, "__name__", "") or str(kind)
        choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else (name,)
        expected = " or ".join(map(str, choices))
        raise UserError(f"--values: {option} is {text!r}; expected {expected}") from None


def _name(options: Iterable[str], values: tuple[Any, ...]) -> str:
    return ",".join(f"{option}={value}" for option, value in zip(options, values))


def _ended(folder: Path) -> Run | None:
    if not (folder / "config.json").exists():
        return None
    run = Run.open(folder)
    ended = run.read_json("summary.json") is not None and run.read_json("evaluation.json") is not None
    return run if ended else None


def _tests(run: Run, metric: str) -> dict[int, float]:
    """By condition."""
    return {
        row["condition"]: row["metrics"][metric] for row in run.read_json("evaluation.json")["conditions"]
    }


def _lowest_loss(run: Run) -> float:
    trained = run.config.task.training_condition
    rows = run.metrics()
    return min(r["loss"] for r in rows if r["split"] == "validation" and r["condition"] == trained)
