"""How well the pixels of predicted frames agree with the true ones.

Shapes: T time, B batch, C channels, H height, W width. Every measure is taken over the dimensions named by
``over``, and comes as one number for each index of the others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
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
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames


def as_logits(frames: Bytes) -> Logits:
    """Frames as the predictions of one who is sure of them, to :data:`EPSILON`."""
    return torch.logit(as_floats(frames), EPSILON)


def cross_entropy(logits: Logits, truth: Bytes, over: tuple[int, ...]) -> Float[Tensor, "*rest"]:
    """Binary cross-entropy of a pixel, in nats; the target is a brightness from 0 to 1."""
    target = as_floats(truth).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(over)


def f1(logits: Logits, truth: Bytes, over: tuple[int, ...]) -> Float[Tensor, "*rest"]:
    """F1 of the bright pixels, those above 1/2: 2 hits / (2 hits + false alarms + misses). 1 where there are
    none, in truth and prediction."""
    predicted, bright = logits > 0, as_floats(truth) > 0.5
    both = predicted.sum(over) + bright.sum(over)
    return torch.where(both > 0, 2 * (predicted & bright).sum(over) / both, 1.0)


def balanced_accuracy(logits: Logits, truth: Bytes, over: tuple[int, ...]) -> Float[Tensor, "*rest"]:
    """The mean of the parts of the bright and of the dark pixels, apart at 1/2, that are predicted so. The
    part of one kind alone where the other does not occur."""
    right, bright = (logits > 0) == (as_floats(truth) > 0.5), as_floats(truth) > 0.5
    parts = torch.stack([(right & kind).sum(over) / kind.sum(over) for kind in (bright, ~bright)])
    return parts.nanmean(0)  # nothing of nothing is NaN
