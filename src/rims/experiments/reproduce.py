"""Run a named experiment: all its arms and seeds, then the table of published and measured numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rims.errors import UserError
from rims.experiments import adding, balls, copying, images
from rims.experiments.arms import EXPERIMENTS, SCALES, Grid, Scale
from rims.experiments.grid import Evaluation, seed_by_seed
from rims.experiments.summary import summarise
from rims.experiments.where import HERE, Where
from rims.train.folder import write_file

__all__ = ["adding", "balls", "copying", "images", "plan", "reproduce"]


def plan(name: str, scale: Scale, only: Sequence[str] = (), seeds: int | None = None) -> Grid:
    """The experiment's grid, or the arms ``only`` of it. Raises UserError for unknown names."""
    if name not in EXPERIMENTS:
        raise UserError(f"unknown experiment {name!r}; known: {', '.join(EXPERIMENTS)}")
    if scale not in SCALES:
        raise UserError(f"unknown scale {scale!r}; known: {', '.join(SCALES)}")
    if seeds is not None and seeds < 1:
        raise UserError(f"seeds is {seeds}; expected at least 1")
    grid = EXPERIMENTS[name].build(scale).only(only)
    return Grid(grid.arms, seeds or grid.seeds, grid.impossible)


def reproduce(
    name: str,
    scale: Scale,
    folder: Path,
    only: Sequence[str] = (),
    seeds: int | None = None,
    where: Where = HERE,
) -> dict[str, Any]:
    """Run what is not done yet, seed by seed, and return the summary, written to ``folder/summary.json``
    too.

    Raises UserError for unknown names and folders that hold other runs, and as ``where`` does; Interrupted
    after Ctrl-C.
    """
    grid = plan(name, scale, only, seeds)
    grid.arms[0].config.task.prepare()  # one download, not one for each process
    runs = seed_by_seed(arm.runs(folder, grid.seeds) for arm in grid.arms)
    failed = where.run(runs, Evaluation("best", EXPERIMENTS[name].test_sequences))
    # All arms, run or not: what stands there from an earlier call belongs into the table too.
    whole = plan(name, scale, (), seeds)
    summary = summarise(name, scale, whole, folder, failed)
    write_file(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary
