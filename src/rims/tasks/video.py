"""Video: what does the next frame look like? Fed the truth, and then its own predictions (paper 4.2, D.4).

Shapes: T time, B batch, C channels, H height, W width, N objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from rims.tasks.base import Batch, Model, Task
from rims.tasks.pixels import (
    FRAME,
    SEQUENCE,
    Bytes,
    Logits,
    as_floats,
    as_logits,
    balanced_accuracy,
    counts,
    cross_entropy,
    f1,
)


class Scene(NamedTuple):
    """What frames show, where it is known: the ``details`` of a batch. Lengths are in pixels: a pixel's
    centre lies at its index plus one half, x to the right and y downwards."""

    positions: Float[Tensor, "T B N 2"]
    """Centres (x, y) in all frames, those of the inputs and the last target; NaN where there is no object."""
    velocities: Float[Tensor, "T B N 2"]
    """Pixels a frame, right after the frame; NaN likewise."""
    radii: Float[Tensor, "B N"]
    """NaN likewise."""
    colours: Int[Tensor, "B N"] = torch.empty(0, 0, dtype=torch.int64)
    """Rows of rims.tasks.render.PALETTE, where the task draws balls."""
    curtain: Float[Tensor, "B 4"] = torch.empty(0, 4)
    """What hides objects behind it: left, top, right and bottom, NaN where there is none; of balls too."""


@dataclass
class VideoTask(Task):
    """Predict each next frame. Training is teacher-forced; measurements also feed ``feed_in`` true frames and
    then ``rollout`` of the model's own predictions back into it.

    Outputs are logits ``[T, B, C, H, W]``; the loss is the binary cross-entropy of a pixel, in nats, with a
    brightness from 0 to 1 as the target. The other metrics take what is brighter than 1/2 as bright. Each is
    taken over all frames of a sequence, one step or rollout, and then averaged over sequences.
    """

    length: int = 51
    """Frames of a sequence; the last is target alone."""

    feed_in: int = 15
    """True frames fed before the model is left to its own predictions."""

    rollout: int = 35
    """Frames predicted then; the first of them from true frames alone."""

    oracle: bool = False
    """Show the model the very frame that it is to predict, and measure one step alone: the time-travelling
    oracle of the paper's D.5. What encoder and decoder lose, no core wins back."""

    def __post_init__(self) -> None:
        for field in ("length", "feed_in", "rollout"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; expected at least 1")
        if self.feed_in + self.rollout > self.length:
            raise ValueError(
                f"feed_in is {self.feed_in} and rollout {self.rollout}; expected at most length, "
                f"{self.length}, together"
            )

    def clips(self, frames: Bytes, scene: Scene | None = None) -> Batch:
        """A batch of the frames ``[T, B, C, H, W]``: every one but the last as input, the one after it as
        target."""
        return Batch(frames[1:] if self.oracle else frames[:-1], frames[1:], scene)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, as_floats(batch.targets).to(outputs.dtype))

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Of one step ahead."""
        found = counts(outputs, batch.targets, SEQUENCE)
        return {"f1": f1(found).mean(), "balanced_accuracy": balanced_accuracy(found).mean()}

    def rollout_metrics(self, logits: Logits, batch: Batch) -> dict[str, Tensor]:
        """Of ``logits`` of the ``rollout`` frames after the ``feed_in`` that were fed: as one step ahead, and
        the position error of their objects (:func:`position_error`) over those frames that show some; 0 in
        sequences that never do."""
        truth = batch.targets[self.feed_in - 1 :][: self.rollout]
        found = counts(logits, truth, SEQUENCE)
        errors = position_error(logits, truth, self._scene(batch, self.feed_in, self.rollout))
        return {
            "rollout_cross_entropy": cross_entropy(logits, truth, SEQUENCE).mean(),
            "rollout_f1": f1(found).mean(),
            "rollout_balanced_accuracy": balanced_accuracy(found).mean(),
            "position_error": errors.nanmean(0).nan_to_num(0.0).mean(),
        }

    def measure(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        one_step = super().measure(model, batch)
        if self.oracle:
            return one_step
        _, logits = roll_out(model, batch.inputs[: self.feed_in], self.rollout)
        return {**one_step, **self.rollout_metrics(logits[-self.rollout :], batch)}

    def extrapolated(self, batch: Batch, steps: int) -> Bytes | None:
        """The ``steps`` frames after the ``feed_in`` that are fed, if from the last of those on every object
        kept its velocity; None where a task cannot say."""
        return None

    def references(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """ "last frame": nothing moves, neither from frame to frame nor after the last that was fed.
        "constant velocity", of the rollout alone: :meth:`extrapolated`. Both are sure to
        :data:`rims.tasks.pixels.EPSILON`, on which their cross-entropies depend. None beside an oracle."""
        if self.oracle:
            return {}
        logits = as_logits(batch.inputs)
        found = {"last frame": {"loss": self.loss(logits, batch), **self.metrics(logits, batch)}}
        for name, frames in self._reference_rollouts(batch).items():
            found[name] = {**found.get(name, {}), **self.rollout_metrics(as_logits(frames), batch)}
        return found

    def _reference_rollouts(self, batch: Batch) -> dict[str, Bytes]:
        still = batch.inputs[self.feed_in - 1].expand(self.rollout, *batch.inputs.shape[1:])
        moved = self.extrapolated(batch, self.rollout)
        return {"last frame": still, **({} if moved is None else {"constant velocity": moved})}

    @staticmethod
    def _scene(batch: Batch, start: int, frames: int) -> Scene | None:
        """What ``frames`` frames from number ``start`` on show, where it is known."""
        scene = batch.details
        if scene is None:
            return None
        positions, velocities = scene.positions[start:][:frames], scene.velocities[start:][:frames]
        return scene._replace(positions=positions, velocities=velocities)

    def chance(self) -> dict[str, float]:
        return {"balanced_accuracy": 0.5, "rollout_balanced_accuracy": 0.5}

    def rollout_curves(self, model: Model, batch: Batch) -> dict[str, dict[str, Float[Tensor, " S"]]]:
        """How predictions go bad with time, for "model" and each reference: "cross_entropy", "f1" and
        "position_error" of each of the S = feed_in + rollout - 1 frames that are predicted, from the second
        on: from the truth up to frame number feed_in (from 0), then as a rollout. Means over the batch; NaN
        where a reference says nothing or no sequence shows an object.

        The model is to be in eval mode.
        """
        _, logits = roll_out(model, batch.inputs[: self.feed_in], self.rollout)
        curves = {"model": self._curves(logits, batch, 1)}
        rollouts = self._reference_rollouts(batch)
        still = torch.cat([batch.inputs[: self.feed_in - 1], rollouts.pop("last frame")])
        curves["last frame"] = self._curves(as_logits(still), batch, 1)
        for name, frames in rollouts.items():
            curves[name] = {
                metric: F.pad(curve, (self.feed_in - 1, 0), value=torch.nan)
                for metric, curve in self._curves(as_logits(frames), batch, self.feed_in).items()
            }
        return curves

    def _curves(self, logits: Logits, batch: Batch, start: int) -> dict[str, Float[Tensor, " S"]]:
        """Of predictions of the frames from number ``start`` on."""
        truth = batch.targets[start - 1 :][: len(logits)]
        errors = position_error(logits, truth, self._scene(batch, start, len(logits)))
        return {
            "cross_entropy": cross_entropy(logits, truth, FRAME).mean(1),
            "f1": f1(counts(logits, truth, FRAME)).mean(1),
            "position_error": errors.nanmean(1),
        }


def position_error(logits: Logits, truth: Bytes, scene: Scene | None = None) -> Float[Tensor, "T B"]:
    """How far, in pixels, the objects of predicted frames are from the true ones: the mean over those that
    are seen in a frame, NaN where there is none.

    Both frames are compared by :func:`rims.tasks.blobs.position_errors`, with half a frame's diagonal as the
    cap. The predicted objects are connected regions, and so are the true ones without a scene. With the scene
    of the same frames they are what the frame shows of each object, or the regions: what comes nearer to the
    prediction, frame by frame. So neither objects that touch nor those in several pieces count as errors
    where they are predicted as they are, and not much where a prediction parts or joins them.

    Of several channels the brightest counts.
    """
    from rims.tasks import blobs

    true, predicted = (
        frames.amax(2).flatten(0, 1).float().cpu().numpy() for frames in (as_floats(truth), logits.sigmoid())
    )
    cap = float(np.hypot(*truth.shape[-2:])) / 2
    found, regions = blobs.connected(predicted), blobs.connected(true)
    errors = blobs.position_errors(found, regions, len(true), cap)
    if scene is not None:
        positions = scene.positions.flatten(0, 1).cpu().numpy()
        radii = scene.radii.expand(len(truth), -1, -1).flatten(0, 1).cpu().numpy()
        objects = blobs.of_objects(true, positions, radii)
        errors = np.minimum(errors, blobs.position_errors(found, objects, len(true), cap))
    return torch.from_numpy(errors).to(logits.device, torch.float32).view(truth.shape[:2])


@torch.no_grad()
def roll_out(
    model: Model, frames: UInt8[Tensor, "F B C H W"], steps: int
) -> tuple[Float[Tensor, "S B C H W"], Float[Tensor, "S B C H W"]]:
    """Feed ``frames``, then what the model predicts (as probabilities), until ``steps`` frames beyond those
    are predicted.

    Returns the F + steps - 1 = S frames that went in and the logits that came out at each; the last ``steps``
    logits are the rollout. No gradient is kept. As the first F of what went in are the frames, feeding all
    that went in at once gives the same outputs.
    """
    outputs, state = model(frames)
    fed, found = [as_floats(frames)], [outputs]
    for _ in range(steps - 1):
        fed.append(found[-1][-1:].sigmoid())
        outputs, state = model(fed[-1], state)
        found.append(outputs)
    return torch.cat(fed), torch.cat(found)
