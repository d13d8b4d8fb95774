"""One self-contained HTML page about one or several runs."""

from __future__ import annotations

import base64
import importlib.resources
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rims
from rims.errors import UserError
from rims.report import activity, words
from rims.report.gather import gather
from rims.report.groups import MANY, Section
from rims.report.labels import key_settings
from rims.report.results import Result
from rims.report.screening import screening
from rims.tasks.video import VideoTask
from rims.train.folder import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(runs: Iterable[Path], output: Path | None = None) -> Path:
    """Write the page about the runs and return where it is.

    That is ``output``; by default ``report.html`` in the run's folder, or for several runs in the folder that
    holds them all. The page needs nothing beside itself: no script, no font, no image from elsewhere. Runs
    that differ in nothing but ``training.seed`` share a row. What a run folder lacks is said, with the
    command that makes it. A single run's plots are saved in its ``plots`` folder too, as SVG and PNG.

    Raises UserError when a run folder is missing or damaged, or the page cannot be written.
    """
    import jinja2

    paths = [Path(path) for path in runs]
    sections = gather(paths)
    results = [result for section in sections for result in section.results]
    output = Path(output) if output is not None else _default_output(results)
    plots = Plots()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = importlib.resources.files("rims.report").joinpath("report.html").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        sections=[_section(section, plots) for section in sections],
        title=", ".join(dict.fromkeys(section.task.name for section in sections)),
        version=rims.__version__,
        command=shlex.join(["rims", "report", *(str(result.run.path) for result in results)]),
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, page.encode())
        if len(results) == 1:
            plots.save(results[0].run.path / "plots")
    except OSError as error:
        raise UserError(f"cannot write the report {output}: {error.strerror or error}") from error
    return output


class Plots:
    """The figures of a page, by a name that is unique in it and made to serve as a file name."""

    def __init__(self) -> None:
        self._figures: dict[str, Figure] = {}
        self._films: dict[str, bytes] = {}

    def add(self, name: str, title: str, figure: Figure, note: str = "") -> dict[str, str]:
        """The figure as the template shows it."""
        from rims.report import style

        self._figures[_file_name(name)] = figure
        return {"title": title, "note": note, "svg": style.svg(figure, title)}

    def film(self, name: str, film: bytes) -> dict[str, str]:
        """An animated PNG as the template shows it."""
        self._films[_file_name(name)] = film
        return {"source": "data:image/png;base64," + base64.b64encode(film).decode()}

    def save(self, folder: Path) -> None:
        """Write every figure as SVG and PNG, and the films."""
        from rims.report import style

        folder.mkdir(exist_ok=True)
        for name, figure in self._figures.items():
            write_atomically(folder / f"{name}.svg", style.svg_file(figure))
            write_atomically(folder / f"{name}.png", style.png(figure))
        for name, film in self._films.items():
            write_atomically(folder / f"{name}.png", film)


def _default_output(results: list[Result]) -> Path:
    if len(results) == 1:
        return results[0].run.path / "report.html"
    try:
        parent = os.path.commonpath([result.run.path.absolute().parent for result in results])
    except ValueError as error:  # folders on different drives
        raise UserError("the runs have no folder in common; give the report's own path") from error
    return Path(parent) / "report.html"


def _section(section: Section, plots: Plots) -> dict[str, Any]:
    """What the template shows of one task."""
    return {
        "task": section.task.name,
        "condition": section.task.condition_name,
        "conditions": [section.task.label(condition) for condition in section.conditions],
        "trained": [section.task.label(condition) for condition in section.trained],
        "headline": words.headline(section),
        "notes": words.notes(section),
        "metrics": [
            {
                "name": words.title(metric),
                "unit": words.unit(metric),
                "chance": words.value(metric, section.chance[metric]) if metric in section.chance else None,
            }
            for metric in section.metrics
        ],
        "rows": [_row(section, index) for index in range(len(section.groups))],
        "references": [_reference(section, name) for name in section.references],
        "seeds": any(group.seeds > 1 for group in section.groups),
        "many": len(section.groups) > MANY,
        "sequences": sorted({count for result in section.results for count in result.sequences.values()}),
        "results": _result_plots(section, plots),
        "curves": _curve_plots(section, plots),
        "video": screening(section, plots) if isinstance(section.task, VideoTask) else None,
        "specialisation": [seen for result in section.results if (seen := _specialisation(result, plots))],
        "runs": [_settings(result) for result in section.results],
    }


def _row(section: Section, index: int) -> dict[str, Any]:
    group = section.groups[index]
    cells = []
    for metric in section.metrics:
        for condition in section.conditions:
            estimate = group.metric(metric, condition)
            cells.append(
                {
                    "value": words.MISSING if estimate is None else words.value(metric, estimate.mean),
                    "spread": "" if estimate is None else words.spread(metric, estimate),
                    "partial": estimate is not None and estimate.count < group.seeds and estimate.count,
                }
            )
    return {
        "label": group.label,
        "colour": group.colour,
        "settings": words.settings(key_settings(group, section.groups)),
        "seeds": group.seeds,
        "cells": cells,
        "hidden_size": words.whole(group.hidden_size),
        "parameters": words.whole(group.summary("parameters")),
        "state_size": words.whole(group.summary("state_size")),
        "flops_per_step": words.whole(group.summary("flops_per_step")),
        "updates": words.updates(group),
        "time": words.duration(group.seconds),
        "commit": words.commit(group),
    }


def _reference(section: Section, name: str) -> dict[str, Any]:
    cells = []
    for metric in section.metrics:
        values = section.referred(metric).get(name, {})
        cells += [
            words.value(metric, values[c]) if c in values else words.MISSING for c in section.conditions
        ]
    return {"name": name, "cells": cells}


def _result_plots(section: Section, plots: Plots) -> list[dict[str, str]]:
    from rims.report import curves

    return [
        plots.add(
            f"{section.task.name}_{metric}_by_{section.task.condition_name}",
            f"{words.heading(metric)} by {section.task.condition_name}",
            curves.by_condition(section, metric),
        )
        for metric in section.metrics
        if any(group.measured(metric) for group in section.groups)
    ]


def _curve_plots(section: Section, plots: Plots) -> list[dict[str, str]]:
    from rims.report import curves

    return [
        plots.add(
            f"{section.task.name}_{name}_while_learning",
            f"{words.heading(name)} while learning",
            curves.learning(section, name),
        )
        for name in ("loss", section.metrics[0])
        if any(
            result.curve(split, name)[0] for result in section.results for split in ("training", "validation")
        )
    ]


def _specialisation(result: Result, plots: Plots) -> dict[str, Any] | None:
    """What the run's RIMs did; None when its core has none."""
    from rims.report import rasters

    if not activity.can_be_traced(result):
        return None
    shown: dict[str, Any] = {
        "name": result.name,
        "seed": result.seed,
        "missing": "",
        "plots": [],
        "tables": [],
    }
    if not result.run.last_checkpoint.exists():
        shown["missing"] = f"No checkpoint yet, so nothing to trace: rims resume {result.argument}"
        return shown
    try:
        observed = activity.observe(result)
    except UserError as error:
        shown["missing"] = f"The checkpoint cannot be traced: {error}"
        return shown
    where = result.config.task.condition_name
    for seen in observed:
        at = f"{where} {result.config.task.label(seen.condition)}"
        note = "· trained here" if seen.condition == result.config.task.training_condition else ""
        name = f"{result.name}_{where}_{seen.condition}"
        drawn = rasters.raster(seen.active, seen.phases)
        one = plots.add(f"raster_{name}", f"One sequence, {at}", drawn, note)
        many = f"Mean of {activity.SEQUENCES} sequences, {at}"
        mean = plots.add(f"mean_activity_{name}", many, rasters.mean_activity(seen), note)
        several = []
        if seen.by_kind:
            title = f"The same by class, {at}"
            several.append(plots.add(f"activity_by_kind_{name}", title, rasters.activity_by_kind(seen), note))
        rims = [
            {
                "phases": [float(values[rim]) for values in seen.by_phase.values()],
                "kinds": [float(values[:, rim].mean()) for values in seen.by_kind.values()],
                "usage": float(seen.usage[rim]),
                "switching": float(seen.switching[rim]),
            }
            for rim in range(seen.num_rims)
        ]
        shown["plots"].append((one, mean, several))
        shown["tables"].append(
            {"at": at, "phases": list(seen.phases), "kinds": list(seen.by_kind), "rims": rims}
        )
    return shown


def _settings(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "path": str(result.run.path),
        "parts": result.config.to_json(),
        "starts": [_flat(entry) for entry in result.versions],
        "evaluation": result.evaluation_commit,
    }


def _flat(entry: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of dotted names."""
    flat: dict[str, Any] = {}
    for name, value in entry.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def _file_name(name: str) -> str:
    """Letters, digits, dots, dashes and underscores alone."""
    return re.sub(r"[^\w.-]+", "-", name)
