"""What models of video predict, and what their RIMs do meanwhile, on the same sequences for all.

Shapes: S = feed_in + rollout - 1 frames that are predicted, from number 1 on; N sequences, K RIMs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rims.analysis import Trace, lesions, location_correlation
from rims.cores import RIMCore
from rims.errors import UserError
from rims.models import SequenceModel
from rims.report.activity import SEED, trace_model, traceable
from rims.report.groups import Group, Section
from rims.report.results import Result
from rims.tasks import Batch
from rims.tasks.video import VideoTask, as_floats, roll_out
from rims.train.data import unseen
from rims.vision import SlotEncoder, StripEncoder

SEQUENCES = 32
"""Sequences that curves, correlations and damage are means over."""

SHOWN = 3
"""Sequences to look at."""


@dataclass
class Rollout:
    """What a run predicts at one condition."""

    group: Group
    result: Result
    predicted: Tensor
    """``[S, N, C, H, W]``: probabilities, of the sequences shown."""
    curves: dict[str, dict[str, Tensor]]
    """``[S]`` each, of "model" and of each reference, by metric."""
    active: Tensor | None
    """``[S, K]``: who was active as each frame went in, in the first sequence; None without RIMs."""
    attention: Tensor | None
    """``[S, K, h, w]``: where active RIMs look in the first sequence; None unless the core reads slots or
    strips."""
    mean_attention: Tensor | None
    """``[K, h, w]``: of all sequences shown."""
    correlation: Tensor | None
    """``[S, K]``: of each RIM's activity with the brightness of its own strip in the true frames; None unless
    the core reads strips."""


@dataclass
class Scene:
    """A condition with all runs on it."""

    condition: int
    feed_in: int
    truth: Tensor
    """``[S + 1, N, C, H, W]``: true frames of the sequences shown, from number 0 on."""
    runs: list[Rollout]


@dataclass
class Damage:
    """A run with its RIMs removed, at its training condition."""

    result: Result
    condition: int
    feed_in: int
    truth: Tensor
    """``[S + 1, C, H, W]``"""
    predicted: dict[int | None, Tensor]
    """``[S, C, H, W]`` each: of the intact model (None), and without each RIM."""
    metrics: dict[int | None, dict[str, float]]


@dataclass
class Video:
    """All that a section shows of its runs' predictions."""

    scenes: list[Scene]
    damage: list[Damage]
    missing: list[str]
    """Why runs are not shown."""


def observe(section: Section) -> Video:
    """Roll out one seed of each group at the training conditions and at each test condition.

    What cannot be shown is said: runs without a checkpoint, or with a damaged one, and those whose frames are
    not as the first run's, and oracles. Raises UserError when the task's data files are missing.
    """
    from rims.train.checkpoint import load_model

    tasks = [(group, task) for group in section.groups if isinstance(task := group.task, VideoTask)]
    predicting = [(group, task) for group, task in tasks if not task.oracle]
    oracles = [group.label for group, task in tasks if task.oracle]
    video = Video(
        [], [], [f"{label} is shown what it is to predict: it has no rollout." for label in oracles]
    )
    if not predicting:
        return video
    models, (first, task) = [], predicting[0]
    for group, own in predicting:
        result = next((r for r in group.results if r.run.last_checkpoint.exists()), None)
        if (own.input, own.feed_in, own.rollout) != (task.input, task.feed_in, task.rollout):
            video.missing.append(f"{group.label} has other frames than {first.label}.")
        elif result is None:
            again = group.first.argument
            video.missing.append(f"{group.label} has no checkpoint yet: rims resume {again}")
        else:
            try:
                models.append((group, result, load_model(result.run)))
            except UserError as error:
                video.missing.append(f"{group.label} cannot be shown: {error}")
    if not models:
        return video
    planned = [condition for result in section.results for condition in result.config.task.test_conditions]
    for condition in dict.fromkeys([*section.trained, *(c for c in section.conditions if c in planned)]):
        batch = unseen(task, SEQUENCES, SEED, condition)
        truth = as_floats(torch.cat([batch.inputs, batch.targets[-1:]]))
        runs = [_roll_out(group, result, model, task, batch) for group, result, model in models]
        frames = task.feed_in + task.rollout
        video.scenes.append(Scene(condition, task.feed_in, truth[:frames, :SHOWN], runs))
    for _, result, model in models:
        if isinstance(model.core, RIMCore) and model.core.rim.num_rims > 1:
            video.damage.append(_remove(result, model))
    return video


def _roll_out(group: Group, result: Result, model: SequenceModel, task: VideoTask, batch: Batch) -> Rollout:
    with torch.no_grad():
        curves = task.rollout_curves(model, batch)
    fed, logits = roll_out(model, batch.inputs[: task.feed_in, :SHOWN], task.rollout)
    rollout = Rollout(group, result, logits.sigmoid(), curves, None, None, None, None)
    if not traceable(model.core):
        return rollout
    _, trace = trace_model(model, fed)
    rollout.active = trace.active[:, 0]
    maps = _maps(trace, model)
    if maps is not None:
        rollout.attention, rollout.mean_attention = maps[:, 0], maps.mean((0, 1))
    if isinstance(model.encoder, StripEncoder):
        fed, _ = roll_out(model, batch.inputs[: task.feed_in], task.rollout)
        _, trace = trace_model(model, fed)
        true = as_floats(batch.inputs[: len(fed)])
        seen = torch.stack([(true * mask).mean((2, 3, 4)) for mask in model.encoder.masks], dim=2)
        rollout.correlation = location_correlation(trace, seen)
    return rollout


def _maps(trace: Trace, model: SequenceModel) -> Tensor | None:
    """``[T, B, K, h, w]``: attention to each place, mean over heads; 0 where a RIM is not active. RIMs that
    read strips have one place each. None where the core reads a vector, which has no place, or without
    attention."""
    if trace.input_attention is None:
        return None
    read = trace.input_attention[..., 1:].mean(2) * trace.active[..., None]
    if isinstance(model.encoder, SlotEncoder):
        return read.unflatten(-1, model.encoder.grid)
    if isinstance(model.encoder, StripEncoder):
        return read[..., None] * model.encoder.masks
    return None


def _remove(result: Result, model: SequenceModel) -> Damage:
    task, core = result.config.task, model.core
    assert isinstance(task, VideoTask)
    assert isinstance(core, RIMCore)
    batch = unseen(task, SEQUENCES, SEED, task.training_condition)

    def look() -> tuple[Tensor, dict[str, float]]:
        _, logits = roll_out(model, batch.inputs[: task.feed_in, :1], task.rollout)
        with torch.no_grad():
            metrics = task.measure(model, batch)
        return logits[:, 0].sigmoid(), {name: float(value) for name, value in metrics.items()}

    found = lesions(core, core.rim.num_rims, look)
    return Damage(
        result,
        task.training_condition,
        task.feed_in,
        as_floats(torch.cat([batch.inputs, batch.targets[-1:]]))[: task.feed_in + task.rollout, 0],
        {rim: predicted for rim, (predicted, _) in found.items()},
        {rim: metrics for rim, (_, metrics) in found.items()},
    )
