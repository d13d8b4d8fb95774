"""How well the pixels of predicted frames agree with the true ones.

Shapes: T time, B batch, C channels, H height, W width. Every measure is taken over some dimensions, ``over``,
and comes as one number for each index of the others.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

Logits = Float[Tensor, "T B C H W"]
Bytes = UInt8[Tensor, "T B C H W"]

FRAME = (-3, -2, -1)
"""Measures of each frame, ``[T, B]``."""
SEQUENCE = (0, *FRAME)
"""Measures of each sequence, ``[B]``."""

EPSILON = 0.01
"""Frames that are taken as predictions are this far from certain: about the part of the pixels that change
from one frame to the next. With 0, one wrong pixel would cost infinitely much."""


def as_floats(frames: Tensor) -> Float[Tensor, "*shape"]:
    """Bytes as brightness from 0 to 1; floats as they are."""
    return frames / 255 if frames.dtype == torch.uint8 else frames


def as_logits(frames: Bytes) -> Logits:
    """Frames as the predictions of one who is sure of them, to :data:`EPSILON`."""
    return torch.logit(as_floats(frames), EPSILON)


def cross_entropy(logits: Logits, truth: Bytes, over: tuple[int, ...]) -> Float[Tensor, "*rest"]:
    """Binary cross-entropy of a pixel, in nats; the target is a brightness from 0 to 1."""
    target = as_floats(truth).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(over)


class Counts(NamedTuple):
    """Pixels by what they are and what they were predicted to be: bright, above 1/2, or dark."""

    hits: Int[Tensor, "*rest"]
    """Bright ones that were predicted so."""
    predicted: Int[Tensor, "*rest"]
    """Predicted to be bright."""
    bright: Int[Tensor, "*rest"]
    pixels: int


def counts(logits: Logits, truth: Bytes, over: tuple[int, ...]) -> Counts:
    """The counts over those dimensions."""
    predicted, bright = logits > 0, truth > 127
    hits, predicted, bright = (
        x.sum(over, dtype=torch.int32) for x in (predicted & bright, predicted, bright)
    )
    return Counts(hits, predicted, bright, math.prod(truth.shape[i] for i in over))


def f1(counts: Counts) -> Float[Tensor, "*rest"]:
    """F1 of the bright pixels: 2 hits / (2 hits + false alarms + misses). 1 where there are none, in truth
    and prediction."""
    both = counts.predicted + counts.bright
    return torch.where(both > 0, 2 * counts.hits / both, 1.0)


def balanced_accuracy(counts: Counts) -> Float[Tensor, "*rest"]:
    """The mean of the parts of the bright and of the dark pixels that are predicted so. The part of one kind
    alone where the other does not occur."""
    hits, predicted, bright, pixels = counts
    parts = torch.stack([hits / bright, (pixels - predicted - bright + hits) / (pixels - bright)])
    return parts.nanmean(0)  # nothing of nothing is NaN
