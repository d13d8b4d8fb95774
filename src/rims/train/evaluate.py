"""Test a trained run at each condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException

from rims.errors import UserError
from rims.train.checkpoint import Which, load_model_and_update
from rims.train.data import held_out, held_out_size, measure, reference
from rims.train.folder import Run
from rims.train.guards import disk_errors, quiet_lightning
from rims.train.versions import commit


def evaluate(
    run: Run,
    conditions: Sequence[int] | None = None,
    sequences: int | None = None,
    checkpoint: Which = "last",
    accelerator: str = "auto",
) -> dict[str, Any]:
    """Measure the run's model on the fixed test set of each condition (default: the task's test conditions).

    ``sequences`` is how many of them; by default, and at most, all of a data set's test split, or 2048 where
    they are generated.

    Returns, and writes to evaluation.json, ``{"commit": ..., "conditions": [{"condition", "checkpoint",
    "update", "sequences", "metrics", "references"}, ...]}`` sorted by condition; references are what the
    task's predictors that learn nothing score. Earlier measurements at other conditions stay.

    Raises UserError for conditions that the task refuses, for checkpoints that cannot be used and for data
    files that are missing or damaged.
    """
    task = run.config.task
    if sequences is not None and sequences < 1:
        raise UserError(f"sequences is {sequences}; expected at least 1")
    task.prepare()
    before = run.read_json("evaluation.json") or {"conditions": []}
    found = {row["condition"]: row for row in before["conditions"]}
    model, update = load_model_and_update(run, checkpoint)
    with quiet_lightning():
        fabric = fabric_of(run, accelerator)
        module = fabric.setup_module(model)
        for condition in task.test_conditions if conditions is None else conditions:
            try:
                with fabric.autocast():
                    metrics = measure(
                        module, task, held_out(task, "test", condition, sequences), fabric.device
                    )
            except ValueError as error:
                raise UserError(str(error)) from error
            found[condition] = {
                "condition": condition,
                "checkpoint": checkpoint,
                "update": update,
                "sequences": held_out_size(task, "test", sequences),
                "metrics": metrics,
                "references": reference(task, held_out(task, "test", condition, sequences), fabric.device),
            }
    result = {"commit": commit(), "conditions": [found[condition] for condition in sorted(found)]}
    with disk_errors(run):
        run.write_json("evaluation.json", result)
    return result


def fabric_of(run: Run, accelerator: str) -> Fabric:
    """One device in the run's precision. Raises UserError when there is no such device."""
    precision: Any = run.config.training.precision
    try:
        return Fabric(accelerator=accelerator, devices=1, precision=precision)
    except (MisconfigurationException, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from error
