"""The masking study of a run (paper E.3): its metrics with each RIM removed, beside the intact model's."""

from __future__ import annotations

from rims.analysis import lesions
from rims.cores import RIMConfig, RIMCore
from rims.errors import UserError
from rims.train.checkpoint import Which, load_model
from rims.train.data import held_out, measure
from rims.train.evaluate import fabric_of
from rims.train.folder import Run
from rims.train.guards import quiet_lightning


def mask(
    run: Run,
    condition: int | None = None,
    sequences: int | None = None,
    checkpoint: Which = "last",
    accelerator: str = "auto",
) -> dict[int | None, dict[str, float]]:
    """Metrics of the run's model on the fixed test sequences of a condition (default: the training
    condition): intact (None), and without each RIM.

    ``sequences`` is how many of them, as in :func:`rims.train.evaluate.evaluate`.

    Raises UserError for cores of no RIMs or of one, conditions that the task refuses, checkpoints that cannot
    be used and data files that are missing or damaged.
    """
    core, task = run.config.core, run.config.task
    if not isinstance(core, RIMConfig) or core.num_rims < 2:
        raise UserError(f"{run.path} has the core {core.name}; expected one of several RIMs to remove")
    if sequences is not None and sequences < 1:
        raise UserError(f"sequences is {sequences}; expected at least 1")
    task.prepare()
    at = task.training_condition if condition is None else condition
    model = load_model(run, checkpoint)
    assert isinstance(model.core, RIMCore)
    with quiet_lightning():
        fabric = fabric_of(run, accelerator)
        module = fabric.setup_module(model)
        try:
            with fabric.autocast():
                return lesions(
                    model.core,
                    core.num_rims,
                    lambda: measure(module, task, held_out(task, "test", at, sequences), fabric.device),
                )
        except ValueError as error:
            raise UserError(str(error)) from error
