"""Bouncing balls: elastic discs of different sizes in a box, as R-NEM drew them (paper 4.2, D.4, D.5).

Shapes: T frames, B sequences, N balls.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from rims.tasks.base import Batch, Frames, register
from rims.tasks.physics import place, simulate
from rims.tasks.render import PALETTE, render
from rims.tasks.video import Scene, VideoTask

SIDE = 64.0
"""Side of the box in the units of radii and speeds; a frame shows all of it, at any size."""


class Kind(NamedTuple):
    """What the digits of a condition say."""

    numbers: tuple[int, ...]
    """The possible numbers of balls, ascending."""
    curtain: bool


def kind(condition: int) -> Kind:
    """Raises ValueError for a condition that is none."""
    digits = [int(digit) for digit in str(condition)] if condition > 0 else []
    numbers = tuple(sorted(set(digits) - {0}))
    if not numbers or len(set(digits)) < len(digits):
        raise ValueError(
            f"balls is {condition}; expected each possible number of balls once, such as 4 or 678, and a 0 "
            "for a curtain, such as 40"
        )
    return Kind(numbers, 0 in digits)


@register
@dataclass
class Balls(VideoTask):
    """Balls of different sizes and masses that bounce off each other and the walls.

    A condition is the possible numbers of balls, digit by digit: 4 is four, 678 six to eight, as many in each
    sequence as is drawn for it. A 0 among the digits puts them behind a curtain: a rectangle of the
    sequence's own size (each side a quarter to a half of the frame's) and place, as black as the background.

    R-NEM's generator was not released. What is chosen here: radii and speeds uniform in their ranges,
    directions uniform, masses proportional to the areas, and edges anti-aliased, where R-NEM's frames are
    black and white. All randomness of a batch comes from one number of its generator.
    """

    name: ClassVar[str] = "balls"
    condition_name: ClassVar[str] = "balls"
    categorical: ClassVar[bool] = True

    balls: int = 4
    """Numbers of balls in training, digit by digit; with a 0, behind a curtain."""

    test_balls: tuple[int, ...] = (4, 678, 40)
    """Numbers of balls to test with."""

    side: int = 64
    """Side of the frame in pixels, a multiple of 8. The paper's arena of D.5 has 48."""

    colours: bool = False
    """Whether each ball has one of four colours; else frames are grey."""

    centre: bool = False
    """Whether there is one more ball that is fixed in the middle."""

    radii: tuple[float, float] = (4.0, 7.0)
    """Smallest and largest radius, in 64ths of the frame's side."""

    speeds: tuple[float, float] = (3.2, 6.4)
    """Smallest and largest speed at first, in 64ths of the side a frame: 20 to 10 frames to cross it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for condition in (self.balls, *self.test_balls):
            kind(condition)
        if self.side < 8 or self.side % 8:
            raise ValueError(f"side is {self.side}; expected a multiple of 8")
        small, large = self.radii
        if not 0 < small <= large < SIDE / 2:
            raise ValueError(f"radii are {self.radii}; expected 0 < smallest <= largest < {SIDE / 2:g}")
        slow, fast = self.speeds
        if not 0 <= slow <= fast < float("inf"):
            raise ValueError(f"speeds are {self.speeds}; expected 0 <= smallest <= largest")

    @property
    def input(self) -> Frames:
        return Frames(self.side, self.side, PALETTE.shape[1] if self.colours else 1)

    @property
    def training_condition(self) -> int:
        return self.balls

    @property
    def test_conditions(self) -> tuple[int, ...]:
        return self.test_balls

    def label(self, condition: int) -> str:
        numbers, curtain = kind(condition)
        row = len(numbers) > 1 and all(b - a == 1 for a, b in itertools.pairwise(numbers))
        words = f"{numbers[0]}-{numbers[-1]}" if row else ", ".join(map(str, numbers))
        return f"{words}, curtain" if curtain else words

    def batch(self, batch_size: int, generator: torch.Generator, condition: int | None = None) -> Batch:
        """N is the largest number of the condition; of the fixed ball, which is the first, one more. Raises
        UserError when the box has no room for the balls."""
        seed = int(torch.randint(2**62, (), generator=generator))
        scene, _ = self.draw(np.random.default_rng(seed), batch_size, condition)
        return self.clips(self.render(scene), scene)

    def draw(
        self, random: np.random.Generator, batch_size: int, condition: int | None = None
    ) -> tuple[Scene, Bool[Tensor, "T B N"]]:
        """Fresh sequences, and which balls have hit something since the frame before."""
        numbers, curtain = kind(self.balls if condition is None else condition)
        fixed = int(self.centre)
        shape = (batch_size, fixed + numbers[-1])
        count = fixed + random.choice(numbers, batch_size)
        absent = np.arange(shape[1]) >= count[:, None]
        radii = np.where(absent, np.nan, random.uniform(*self.radii, shape))
        box = (SIDE, SIDE)
        positions = place(random, radii, box, np.full((batch_size, fixed, 2), SIDE / 2))
        angle, speed = random.uniform(0, 2 * np.pi, shape), random.uniform(*self.speeds, shape)
        velocities = np.stack([np.cos(angle), np.sin(angle)], -1) * (speed * (radii / radii))[..., None]
        masses = radii**2
        velocities[:, :fixed], masses[:, :fixed] = 0, np.inf
        motion = simulate(positions, velocities, radii, masses, box, self.length)
        curtains = self._curtains(random, batch_size) if curtain else np.full((batch_size, 4), np.nan)
        pixel = self.side / SIDE
        scene = Scene(
            torch.from_numpy(motion.positions * pixel).float(),
            torch.from_numpy(motion.velocities * pixel).float(),
            torch.from_numpy(radii * pixel).float(),
            torch.from_numpy(random.integers(len(PALETTE), size=shape)),
            torch.from_numpy(curtains).float(),
        )
        return scene, torch.from_numpy(motion.collisions)

    def _curtains(self, random: np.random.Generator, batch_size: int) -> np.ndarray:
        sides = random.integers(self.side // 4, self.side // 2, (batch_size, 2), endpoint=True)
        corner = random.integers(self.side - sides, endpoint=True)
        return np.concatenate([corner, corner + sides], axis=1).astype(float)

    def render(self, scene: Scene) -> UInt8[Tensor, "T B C H W"]:
        """The frames of a scene."""
        return show(scene, scene.positions, self.input)

    def extrapolated(self, batch: Batch, steps: int) -> UInt8[Tensor, "S B C H W"]:
        """The ``steps`` frames after the first ``feed_in`` if from there all balls went straight on, through
        each other and the walls."""
        return straight_on(batch.details, self.feed_in - 1, steps, self.input).to(batch.inputs.device)


def show(scene: Scene, positions: Tensor, frames: Frames) -> UInt8[Tensor, "T B C H W"]:
    """Frames of the scene's balls at ``positions [T, B, N, 2]``."""
    drawn = render(
        positions.double().cpu().numpy(),
        scene.radii.double().cpu().numpy(),
        (frames.height, frames.width),
        scene.colours.cpu().numpy() if frames.channels > 1 else None,
        scene.curtain.double().cpu().numpy(),
    )
    return torch.from_numpy(drawn)


def straight_on(scene: Scene, frame: int, steps: int, frames: Frames) -> UInt8[Tensor, "S B C H W"]:
    """The ``steps`` frames after ``frame`` if all balls kept the velocities that they have there."""
    since = torch.arange(1, steps + 1, device=scene.positions.device).view(-1, 1, 1, 1)
    return show(scene, scene.positions[frame] + since * scene.velocities[frame], frames)
