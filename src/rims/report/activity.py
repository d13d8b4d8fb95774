"""What a trained model's RIMs do: one traced pass over sequences of its task that it has not learned from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rims.analysis import Trace, activity, activity_by_kind, switching_rate, usage, usage_by_phase
from rims.errors import UserError
from rims.models import SequenceModel
from rims.report.results import Result
from rims.train.data import unseen

SEQUENCES = 128
"""Sequences that the mean activity is taken over."""

SEED = 20190924
"""Draws those sequences; unlike any seed one trains with."""


@dataclass
class Activity:
    """Who was active when, at one condition."""

    condition: int
    phases: dict[str, tuple[int, int]]
    active: Tensor
    """``[T, K]`` bool: the first sequence."""
    mean: Tensor
    """``[T, K]``: the fraction of sequences in which each RIM is active."""
    usage: Tensor
    """``[K]``: the fraction of all steps."""
    by_phase: dict[str, Tensor]
    """``[K]`` each: the fraction of a phase's steps."""
    by_kind: dict[str, Tensor]
    """``[T, K]`` each: the mean over a kind of sequences, such as a class."""
    switching: Tensor
    """``[K]``: switches per step."""

    @property
    def num_rims(self) -> int:
        return self.active.shape[1]


def traceable(core: torch.nn.Module) -> bool:
    """Whether the core can tell what its RIMs do."""
    return callable(getattr(core, "trace", None))


def trace_model(model: SequenceModel, inputs: Tensor) -> tuple[Tensor, Trace]:
    """``outputs [T, B, output_size]`` and the core's trace, for ``inputs`` as the task gives them.

    Dropout is off and no gradient is kept. Raises UserError when the core cannot be traced.
    """
    core = model.core
    if not traceable(core):
        raise UserError(f"{type(core).__name__} cannot be traced: it has no trace(x, state, reset)")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output, _, trace = core.trace(model.encode(inputs))  # type: ignore[operator]
            return model.head(output), trace
    finally:
        model.train(training)


def conditions(result: Result) -> list[int]:
    """The training condition, and the largest tested one when that is larger; of kinds, all."""
    trained = result.config.task.training_condition
    tested = [*result.config.task.test_conditions, *result.evaluation]
    if result.config.task.categorical:
        return list(dict.fromkeys([trained, *tested]))
    return [trained, *sorted(c for c in {*tested} if c > trained)[-1:]]


def can_be_traced(result: Result) -> bool:
    """Whether the run's core is of a traceable kind, without weights being made."""
    with torch.device("meta"):
        return traceable(result.config.core.build(result.config.model.input_size))


def observe(result: Result) -> list[Activity]:
    """Trace the run's last checkpoint at each of :func:`conditions`.

    Raises UserError when the checkpoint cannot be loaded, or data files are missing.
    """
    from rims.train.checkpoint import load_model

    model = load_model(result.run)
    device = next(model.parameters()).device
    return [_observe(result, model, device, condition) for condition in conditions(result)]


def _observe(result: Result, model: SequenceModel, device: torch.device, condition: int) -> Activity:
    task = result.config.task
    batch = unseen(task, SEQUENCES, SEED, condition)
    _, trace = trace_model(model, batch.inputs.to(device))
    phases = task.phases(condition)
    kinds = {name: rows.to(device) for name, rows in task.kinds(batch).items()}
    return Activity(
        condition,
        phases,
        trace.active[:, 0].cpu(),
        activity(trace).cpu(),
        usage(trace).cpu(),
        {name: values.cpu() for name, values in usage_by_phase(trace, phases).items()},
        {name: values.cpu() for name, values in activity_by_kind(trace, kinds).items()},
        switching_rate(trace).cpu() if len(trace.active) > 1 else torch.zeros(trace.active.shape[2]),
    )
