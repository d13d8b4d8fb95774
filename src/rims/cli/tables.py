"""Tables in a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from rims.tasks import Task


def chance(task: Task, metric: str) -> str:
    level = task.chance().get(metric)
    return "" if level is None else number(level)


def spaced(metrics: Iterable[str]) -> list[str]:
    """Names that a narrow table can fold."""
    return [name.replace("_", " ") for name in metrics]


def number(value: float) -> str:
    return f"{value:.4f}" if not 0 < abs(value) < 0.01 else f"{value:.2e}"


def plain(header: list[str], rows: list[list[str]]) -> Table:
    """A table without a frame, for many columns."""
    columns = [Column(header[0], no_wrap=True), *(Column(name, justify="right") for name in header[1:])]
    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def titled(title: str, *header: str) -> Table:
    """An empty table with a title; seven metrics of a video fit 80 columns, their numbers whole."""
    edges: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False}
    return Table(*header, title=title, padding=(0, 1, 0, 0), **edges)


def print_table(table: Table) -> None:
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # A file or a pipe has no width: a table is not folded to that of some terminal.
        console = Console(width=10_000)
    console.print(table)
