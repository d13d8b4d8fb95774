"""Run a named experiment: all its arms and seeds, then the table of published and measured numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rims.errors import UserError
from rims.experiments import adding, balls, copying, images
from rims.experiments.arms import EXPERIMENTS, SCALES, Grid, Scale
from rims.experiments.grid import Evaluation, not_done, seed_by_seed
from rims.experiments.summary import CHECKPOINT, standing, summarise
from rims.experiments.where import HERE, Where
from rims.train.folder import write_file

__all__ = ["adding", "balls", "copying", "images", "plan", "reproduce"]

SMOKE_SEQUENCES = 64
"""Test sequences a condition of the smoke scale, which shows that all works and measures nothing."""


def plan(
    name: str,
    scale: Scale,
    only: Sequence[str] = (),
    seeds: int | None = None,
    updates: int | None = None,
) -> Grid:
    """The experiment's grid, or the arms ``only`` of it, for ``updates`` where the scale's are not wanted.
    Raises UserError for unknown names."""
    if name not in EXPERIMENTS:
        raise UserError(f"unknown experiment {name!r}; known: {', '.join(EXPERIMENTS)}")
    if scale not in SCALES:
        raise UserError(f"unknown scale {scale!r}; known: {', '.join(SCALES)}")
    if seeds is not None and seeds < 1:
        raise UserError(f"seeds is {seeds}; expected at least 1")
    if updates is not None and updates < 1:
        raise UserError(f"updates is {updates}; expected at least 1")
    grid = copy.deepcopy(_built(name, scale)).only(only)
    if updates is not None:
        for arm in grid.arms:
            arm.config.training.updates = updates
    return Grid(grid.arms, seeds or grid.seeds, grid.impossible)


@cache
def _built(name: str, scale: Scale) -> Grid:
    """The whole grid, whose fair sizes take a second to find."""
    return EXPERIMENTS[name].build(scale)


def reproduce(
    name: str,
    scale: Scale,
    folder: Path,
    only: Sequence[str] = (),
    seeds: int | None = None,
    where: Where = HERE,
    first_seed: int = 0,
    updates: int | None = None,
) -> dict[str, Any]:
    """Run what is not done yet of the seeds from ``first_seed`` on, seed by seed, and return the summary,
    written to ``folder/summary.json`` too.

    Raises UserError for unknown names and folders that hold other runs, and as ``where`` does; Interrupted
    after Ctrl-C.
    """
    grid = plan(name, scale, only, seeds, updates)
    if first_seed < 0:
        raise UserError(f"first seed is {first_seed}; expected at least 0")
    experiment = EXPERIMENTS[name]
    sequences = SMOKE_SEQUENCES if scale == "smoke" else experiment.test_sequences
    testing = Evaluation(CHECKPOINT, sequences, experiment.lesions)
    # All arms, asked for or not: what stands there from an earlier call belongs into the table too, if it is
    # the same experiment still. Better to say that it is not before hours of work.
    whole = plan(name, scale, updates=updates)
    for arm in whole.arms:
        not_done(standing(arm, folder), testing)
    grid.arms[0].config.task.prepare()  # one download, not one for each process
    wanted = range(first_seed, first_seed + grid.seeds)
    runs = seed_by_seed(arm.runs(folder, wanted) for arm in grid.arms)
    failed = where.run(runs, testing)
    summary = summarise(name, scale, whole, folder, failed, updates)
    write_file(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary
