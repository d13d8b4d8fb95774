"""The rows of the report as a table in the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rims.report import words
from rims.report.gather import gather
from rims.report.groups import Section
from rims.report.labels import key_settings


def print_table(runs: Iterable[Path]) -> None:
    """Print, for each task, a table a metric (a column a condition; chance and references as the last rows)
    and one of costs.

    Fits 80 columns; plain text without colour when standard output is not a terminal. Raises UserError when a
    folder is missing or damaged.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    sections = gather(runs)
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # A pipe has no width: wrapped rows could not be searched line by line.
        console = Console(highlight=False, width=10_000)
    ascii_only = not console.encoding.startswith("utf")

    def text(string: str, style: str = "") -> Text:
        """Text, not markup: a folder may be called [bold]."""
        if ascii_only:
            string = string.replace("±", "+-").replace("–", "-").replace("\N{NO-BREAK SPACE}", " ")
        return Text(string, style)

    def table(columns: list[str], rows: list[list[str]], muted: int) -> Table:
        grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for index, column in enumerate(columns):
            grid.add_column(text(column), justify="right" if index else "left", overflow="fold")
        for index, row in enumerate(rows):
            grid.add_row(*(text(cell, "dim" if index >= len(rows) - muted else "") for cell in row))
        return grid

    def show(name: str, columns: list[str], rows: list[list[str]], muted: int = 0) -> None:
        grid = table(columns, rows, muted)
        if console.measure(grid, options=console.options.update(max_width=10_000)).maximum > console.width:
            grid = table(columns, [[cell.replace(" ±", "\n±") for cell in row] for row in rows], muted)
        console.print(text(name, "bold"))  # not as the grid's title, which is folded to the grid's width
        console.print(grid)
        console.print()

    for section in sections:
        for metric in section.metrics:
            show(*_metric_table(section, metric))
        show(*_cost_table(section))
        for line in words.notes(section):
            console.print(text(line, "dim"), soft_wrap=not console.is_terminal)


def _metric_table(section: Section, metric: str) -> tuple[str, list[str], list[list[str]], int]:
    """Its name, columns and rows, and how many of the last rows are no cores."""
    unit = words.unit(metric)
    where = section.task.condition_name
    name = f"{section.task.name}: {words.title(metric)}{', ' * bool(unit)}{unit}, by {where}"
    rows = []
    for group in section.groups:
        row = [group.label, str(group.seeds)]
        for condition in section.conditions:
            estimate = group.metric(metric, condition)
            if estimate is None:
                row.append(words.MISSING)
            else:
                row.append(words.with_spread(metric, estimate))
        rows.append(row)
    cores = len(rows)
    if metric in section.chance:
        rows.append(["chance", "", *[words.value(metric, section.chance[metric])] * len(section.conditions)])
    for reference, values in section.referred(metric).items():
        at = [words.value(metric, values[c]) if c in values else words.MISSING for c in section.conditions]
        rows.append([reference, "", *at])
    columns = ["core", "seeds", *map(section.task.label, section.conditions)]
    return name, columns, rows, len(rows) - cores


def _cost_table(section: Section) -> tuple[str, list[str], list[list[str]]]:
    rows = [
        [
            f"{group.label}\n{words.settings(key_settings(group, section.groups))}".strip(),
            words.whole(group.hidden_size),
            words.brief(group.summary("parameters")),
            words.brief(group.summary("state_size")),
            words.brief(group.summary("flops_per_step")),
            words.updates(group),
            words.duration(group.seconds),
        ]
        for group in section.groups
    ]
    columns = ["core", "hidden", "parameters", "state", "FLOPs/step", "updates", "time"]
    return f"{section.task.name}: cost of a run", columns, rows
