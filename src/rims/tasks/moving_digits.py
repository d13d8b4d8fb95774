"""Stochastic moving digits: where will a digit fly after it has hit the wall? (paper E.3, after Denton and
Fergus, 2018)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from rims.tasks import digits, files, smnist
from rims.tasks.base import Batch, DatasetTask, Frames, Split, register
from rims.tasks.video import Scene, VideoTask

SEQUENCES: dict[Split, int] = {"training": 1_000_000, "validation": 2_048, "test": 2_048}
"""Sequences of each split. One could generate more; that they are numbered gives each its split for ever."""


class Pictures(NamedTuple):
    """The digits of a split."""

    pixels: UInt8[Tensor, "N S S"]
    centres: Float[Tensor, "N 2"]
    """Centre (x, y) of each one's brightness."""


@register
@dataclass
class MovingDigits(DatasetTask, VideoTask):
    """Handwritten digits fly straight and at constant speed; one that reaches a wall stays inside and gets a
    new velocity, drawn at random. Where two overlap, the brighter is seen.

    In a frame of 64 pixels a digit is a square of 28 and moves by whole pixels, -4 to 4 a frame along each
    axis, never 0 along both; other frames are the same in proportion. (Denton and Fergus scale the digits to
    32 pixels.) Each split has its own images, as in the tasks ``smnist`` and ``digits``, and its own
    sequences. The scene's positions are the centres of brightness, its radii half the side of the square.
    """

    name: ClassVar[str] = "moving-digits"
    condition_name: ClassVar[str] = "digits"

    length: int = 31
    """Frames of a sequence; the last is target alone."""

    feed_in: int = 5
    """True frames fed before the model is left to its own predictions."""

    rollout: int = 25
    """Frames predicted then; the first of them from true frames alone."""

    side: int = 64
    """Side of the frames in pixels."""

    digits: int = 2
    """Digits in a frame in training, as in the paper."""

    test_digits: tuple[int, ...] = (1, 2, 3)
    """Numbers of digits to test with."""

    source: Literal["mnist", "digits"] = "mnist"
    """MNIST, from the official files, or scikit-learn's digits of 8 x 8 pixels, scaled up: offline."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side < 16 or self.side % 16:
            raise ValueError(f"side is {self.side}; expected a multiple of 16, such as 64")
        if self.source not in ("mnist", "digits"):
            raise ValueError(f"source is {self.source!r}; expected 'mnist' or 'digits'")
        for number in (self.digits, *self.test_digits):
            self._check(number)

    @staticmethod
    def _check(number: int) -> None:
        if number < 1:
            raise ValueError(f"digits is {number}; expected at least 1")

    @property
    def input(self) -> Frames:
        return Frames(self.side, self.side)

    @property
    def training_condition(self) -> int:
        return self.digits

    @property
    def test_conditions(self) -> tuple[int, ...]:
        return self.test_digits

    def prepare(self) -> None:
        self._pictures("training")

    def size(self, split: Split) -> int:
        return SEQUENCES[split]

    def examples(self, split: Split, indices: Tensor, condition: int | None = None) -> Batch:
        number = self.digits if condition is None else condition
        self._check(number)
        pictures = self._pictures(split)
        steps, square, fastest = self.length, 7 * self.side // 16, self.side // 16
        # NumPy's frozen generator, as for the splits: no upgrade changes a sequence.
        order = list(SEQUENCES).index(split)
        draws = [np.random.RandomState([order, number, index]) for index in indices.tolist()]
        chosen = np.stack([draw.randint(len(pictures.pixels), size=number) for draw in draws])
        paths = [fly(draw, steps, number, self.side - square, fastest) for draw in draws]
        corners = np.stack([path for path, _ in paths], 1)
        velocities = np.stack([velocity for _, velocity in paths], 1)
        frames = np.zeros((steps, len(draws), 1, self.side, self.side), np.uint8)
        pixels = pictures.pixels.numpy()
        for (t, b, n), picture in np.ndenumerate(np.broadcast_to(chosen, (steps, *chosen.shape))):
            x, y = corners[t, b, n]
            window = frames[t, b, 0, y : y + square, x : x + square]
            np.maximum(window, pixels[picture], out=window)
        scene = Scene(
            torch.from_numpy(corners).float() + pictures.centres[torch.from_numpy(chosen)],
            torch.from_numpy(velocities).float(),
            torch.full(chosen.shape, square / 2),
        )
        return self.clips(torch.from_numpy(frames), scene)

    def _pictures(self, split: Split) -> Pictures:
        folder = files.data_dir() if self.source == "mnist" else None
        return _load(self.source, folder, 7 * self.side // 16)[split]


def fly(
    random: np.random.RandomState, steps: int, number: int, room: int, fastest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Upper left corners, from 0 to ``room``, and velocities of ``number`` squares at each of ``steps``
    frames: integers ``[T, N, 2]``. A velocity is that right after the frame."""
    corners, velocities = np.empty((2, steps, number, 2), np.int64)
    corner = random.randint(1, room, size=(number, 2))
    velocity = random.randint(-fastest, fastest + 1, size=(number, 2))
    while (still := ~velocity.any(1)).any():
        velocity[still] = random.randint(-fastest, fastest + 1, size=(still.sum(), 2))
    inwards = random.randint(1, fastest + 1, size=(steps, number, 2))
    along = random.randint(-fastest, fastest + 1, size=(steps, number, 2))
    for t in range(steps):
        corners[t], velocities[t] = corner, velocity
        corner = (corner + velocity).clip(0, room)
        low, high = corner == 0, corner == room
        hit = (low | high).any(1, keepdims=True)
        new = np.where(low, inwards[t], np.where(high, -inwards[t], along[t]))
        velocity = np.where(hit, new, velocity)
    return corners, velocities


@functools.lru_cache(maxsize=2)
def _load(source: str, folder: Path | None, square: int) -> dict[Split, Pictures]:
    splits, brightest = (smnist.grey(folder), 255) if source == "mnist" else (digits.grey(), 16)
    return {name: _scaled(images.pixels, square, brightest) for name, images in splits.items()}


def _scaled(pixels: UInt8[Tensor, "N H W"], square: int, brightest: int) -> Pictures:
    images = pixels[:, None].float() / brightest
    if images.shape[-1] != square:
        images = F.interpolate(images, (square, square), mode="bilinear", antialias=True)
    scaled = (255 * images[:, 0]).round().to(torch.uint8)
    weights = scaled.double() / scaled.double().sum((1, 2), keepdim=True)
    at = torch.arange(square) + 0.5
    centres = torch.stack([(weights.sum(1) * at).sum(1), (weights.sum(2) * at).sum(1)], 1)
    return Pictures(scaled, centres.float())
