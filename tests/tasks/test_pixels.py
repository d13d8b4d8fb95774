"""Pixels, against scikit-learn and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn import metrics

from rims.tasks.pixels import (
    EPSILON,
    FRAME,
    SEQUENCE,
    as_logits,
    balanced_accuracy,
    counts,
    cross_entropy,
    f1,
)

TRUTH = torch.randint(0, 256, (3, 4, 2, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
LOGITS = torch.randn(3, 4, 2, 5, 6, generator=torch.Generator().manual_seed(2)) + (TRUTH > 127) - 0.5


@pytest.mark.parametrize(
    ("ours", "theirs"), [(f1, metrics.f1_score), (balanced_accuracy, metrics.balanced_accuracy_score)]
)
def test_classes_of_pixels_as_scikit_learn_counts_them(ours, theirs) -> None:
    by_sequence, by_frame = (ours(counts(LOGITS, TRUTH, over)) for over in (SEQUENCE, FRAME))
    for b in range(4):
        pair = TRUTH[:, b].flatten() > 127, LOGITS[:, b].flatten() > 0
        assert by_sequence[b] == pytest.approx(theirs(*pair))
        for t in range(3):
            pair = TRUTH[t, b].flatten() > 127, LOGITS[t, b].flatten() > 0
            assert by_frame[t, b] == pytest.approx(theirs(*pair))


def test_classes_that_do_not_occur() -> None:
    black, white = torch.zeros(1, 1, 1, 2, 2, dtype=torch.uint8), torch.full((1, 1, 1, 2, 2), 255).byte()
    corner = torch.tensor([1.0, -1, -1, -1]).view(1, 1, 1, 2, 2)
    for truth, logits, score, balanced in (
        (black, -corner.abs(), 1, 1),
        (black, corner, 0, 3 / 4),
        (white, corner.abs(), 1, 1),
        (white, corner, 2 / 5, 1 / 4),
        (white, -corner.abs(), 0, 0),
    ):
        assert f1(counts(logits, truth, FRAME)).item() == pytest.approx(score)
        assert balanced_accuracy(counts(logits, truth, FRAME)).item() == pytest.approx(balanced)


def test_cross_entropy_is_by_the_pixel_and_sure_frames_are_not_too_sure() -> None:
    p, y = LOGITS.double().sigmoid(), TRUTH.double() / 255
    by_hand = -(y * p.log() + (1 - y) * (1 - p).log())
    torch.testing.assert_close(cross_entropy(LOGITS, TRUTH, FRAME).double(), by_hand.mean((2, 3, 4)))
    torch.testing.assert_close(cross_entropy(LOGITS, TRUTH, SEQUENCE).double(), by_hand.mean((0, 2, 3, 4)))

    white = torch.full((1, 1, 1, 2, 2), 255).byte()
    right, wrong = (cross_entropy(as_logits(x), white, FRAME).item() for x in (white, 0 * white))
    assert right == pytest.approx(-math.log(1 - EPSILON), rel=1e-4)
    assert wrong == pytest.approx(-math.log(EPSILON), rel=1e-4)
    assert torch.equal(as_logits(TRUTH) > 0, TRUTH > 127)
