"""A small video task: discs that move over a torus, each at its own constant velocity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rims.tasks import Batch, Frames
from rims.tasks.video import Scene, VideoTask


def discs(positions: Tensor, radii: Tensor, side: int, torus: bool = False) -> Tensor:
    """Bytes ``[..., 1, side, side]`` of white discs at ``positions [..., N, 2]`` (x, y) with
    ``radii [..., N]``: each pixel as bright as the part of it that is covered, nearly."""
    places = torch.arange(side) + 0.5
    offset = places - positions[..., None]  # [..., N, 2, side]
    if torus:
        offset = (offset + side / 2) % side - side / 2
    distance = (offset[..., 0, None, :].square() + offset[..., 1, :, None].square()).sqrt()
    covered = (radii[..., None, None] + 0.5 - distance).clamp(0, 1).nan_to_num(0.0).amax(-3)
    return (covered * 255).round().to(torch.uint8)[..., None, :, :]


@dataclass
class Moving(VideoTask):
    name: ClassVar[str] = "moving"
    condition_name: ClassVar[str] = "discs"

    length: int = 7
    feed_in: int = 3
    rollout: int = 4
    side: int = 16
    radius: float = 2.5
    speed: float = 1.5
    in_training: int = 1

    @property
    def input(self) -> Frames:
        return Frames(self.side, self.side)

    @property
    def training_condition(self) -> int:
        return self.in_training

    @property
    def test_conditions(self) -> tuple[int, ...]:
        return (1, 2)

    def batch(self, batch_size: int, generator: torch.Generator, condition: int | None = None) -> Batch:
        shape = (batch_size, self.in_training if condition is None else condition, 2)
        start = torch.rand(shape, generator=generator) * self.side
        angle = torch.rand(shape[:2], generator=generator) * 2 * torch.pi
        velocity = torch.stack([angle.cos(), angle.sin()], dim=-1) * self.speed
        positions = (start + velocity * torch.arange(self.length)[:, None, None, None]) % self.side
        radii = torch.full(shape[:2], self.radius)
        scene = Scene(positions, velocity.expand_as(positions), radii)
        return self.clips(discs(positions, radii.expand(self.length, -1, -1), self.side, torus=True), scene)

    def extrapolated(self, batch: Batch, steps: int) -> Tensor:
        positions, velocities, radii, *_ = batch.details
        last, moved = self.feed_in - 1, torch.arange(1, steps + 1)[:, None, None, None]
        positions = positions[last] + moved * velocities[last]
        return discs(positions, radii.expand(steps, -1, -1), self.side, torus=True)
