"""Images as sequences: a pixel a step, in a model that has seen one resolution and is tested at others
(paper 4.1, D.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

from rims.tasks.base import Batch, DatasetTask, Split


class Images(NamedTuple):
    """Images of one size with what they show."""

    pixels: UInt8[Tensor, "N H W *C"]
    labels: Int[Tensor, " N"]


Splits = dict[Split, Images]


def divide(images: Images) -> tuple[Images, Images]:
    """Four fifths and one fifth of the images, by a fixed permutation."""
    # This generator's numbers are frozen for ever (NEP 19), which torch's are not: no upgrade moves an image
    # from one split to another.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(images.labels)))
    fifth, rest = order[: len(order) // 5], order[len(order) // 5 :]
    return Images(*(part[rest] for part in images)), Images(*(part[fifth] for part in images))


def split(known: Images, test: Images) -> Splits:
    """A fifth of the known images for validation, the rest for training; the test images as they are."""
    training, validation = divide(known)
    return {"training": training, "validation": validation, "test": test}


def nearest(pixels: UInt8[Tensor, "B H W *C"], resolution: int) -> UInt8[Tensor, "B R R *C"]:
    """Square images scaled to ``resolution`` as F.interpolate(mode="nearest") scales them: pixel i is pixel
    floor(i * H / R) of the original, the upper left of those it stands for, and not the middle one."""
    index = torch.arange(resolution) * pixels.shape[1] // resolution
    return pixels[:, index][:, :, index]


def raster_scan(pixels: UInt8[Tensor, "B H W *C"]) -> Int[Tensor, "T B *C"]:
    """Row by row, from the upper left: T = H * W steps."""
    return pixels.flatten(1, 2).transpose(0, 1).long()


@dataclass
class ImageTask(DatasetTask):
    """What is in the image? One of ten classes, answered at the last step; seen at ``resolution`` squared
    pixels in training and at others in tests.

    Targets are ``[B]``; the outputs before the last step count for nothing.
    """

    condition_name: ClassVar[str] = "resolution"
    classes: ClassVar[int] = 10

    resolution: int
    test_resolutions: tuple[int, ...]

    def __post_init__(self) -> None:
        for resolution in (self.resolution, *self.test_resolutions):
            self._check(resolution)

    @staticmethod
    def _check(resolution: int) -> None:
        if resolution < 1:
            raise ValueError(f"resolution is {resolution}; expected at least 1")

    def splits(self) -> Splits:
        """All images. Raises UserError when their files are missing or damaged."""
        raise NotImplementedError

    def pixels(self, split: Split, indices: Int[Tensor, " B"]) -> UInt8[Tensor, "B H W *C"]:
        """The images at ``indices``, in their own resolution."""
        return self.splits()[split].pixels[indices]

    @property
    def output_size(self) -> int:
        return self.classes

    @property
    def training_condition(self) -> int:
        return self.resolution

    @property
    def test_conditions(self) -> tuple[int, ...]:
        return self.test_resolutions

    def size(self, split: Split) -> int:
        return len(self.splits()[split].labels)

    def examples(self, split: Split, indices: Tensor, condition: int | None = None) -> Batch:
        resolution = self.resolution if condition is None else condition
        self._check(resolution)
        labels = self.splits()[split].labels[indices]
        return Batch(raster_scan(nearest(self.pixels(split, indices), resolution)), labels)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs[-1], batch.targets)

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {
            "cross_entropy": self.loss(outputs, batch),
            "accuracy": (outputs[-1].argmax(-1) == batch.targets).float().mean(),
        }

    def kinds(self, batch: Batch) -> dict[str, Tensor]:
        return {str(label): batch.targets == label for label in range(self.classes)}

    def chance(self) -> dict[str, float]:
        return {"cross_entropy": math.log(self.classes), "accuracy": 1 / self.classes}
