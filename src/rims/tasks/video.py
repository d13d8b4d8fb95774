"""Video: what does the next frame look like? Fed the truth, and then its own predictions (paper 4.2, D.4).

Shapes: T time, B batch, C channels, H height, W width, N objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from rims.tasks.base import Batch, Model, Task


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


def clips(frames: UInt8[Tensor, "T B C H W"], scene: Scene | None = None) -> Batch:
    """A batch of the frames: every one but the last as input, the one after it as target."""
    return Batch(frames[:-1], frames[1:], scene)


def as_floats(frames: Tensor) -> Float[Tensor, "*shape"]:
    """Bytes as brightness from 0 to 1; floats as they are."""
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames


@dataclass
class VideoTask(Task):
    """Predict each next frame. Training is teacher-forced; measurements also feed ``feed_in`` true frames and
    then ``rollout`` of the model's own predictions back into it.

    Outputs are logits ``[T, B, C, H, W]``; the loss is the binary cross-entropy of a pixel, in nats, with a
    brightness from 0 to 1 as the target.
    """

    length: int = 51
    """Frames of a sequence; the last is target alone."""

    feed_in: int = 15
    """True frames fed before the model is left to its own predictions."""

    rollout: int = 35
    """Frames predicted then; the first of them from true frames alone."""

    def __post_init__(self) -> None:
        for field in ("length", "feed_in", "rollout"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; expected at least 1")
        if self.feed_in + self.rollout > self.length:
            raise ValueError(
                f"feed_in is {self.feed_in} and rollout {self.rollout}; expected at most length, "
                f"{self.length}, together"
            )

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, as_floats(batch.targets))


def roll_out(
    model: Model, frames: UInt8[Tensor, "F B C H W"], steps: int
) -> tuple[Float[Tensor, "S B C H W"], Float[Tensor, "S B C H W"]]:
    """Feed ``frames``, then what the model predicts (as probabilities), until ``steps`` frames beyond those
    are predicted.

    Returns the F + steps - 1 = S frames that went in and the logits that came out at each; the last ``steps``
    logits are the rollout.
    """
    outputs, state = model(frames)
    fed, found = [as_floats(frames)], [outputs]
    for _ in range(steps - 1):
        fed.append(found[-1][-1:].sigmoid())
        outputs, state = model(fed[-1], state)
        found.append(outputs)
    return torch.cat(fed), torch.cat(found)
