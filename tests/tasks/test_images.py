"""Scaling, scanning and splitting against torch's own scaling and loops."""

import collections

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rims.tasks.images import Images, divide, nearest, raster_scan, split

SIDES = {28: (14, 16, 19, 24, 28), 32: (16, 19, 24, 32), 8: (8, 9, 11, 14, 16)}


@pytest.mark.parametrize(("side", "resolution"), [(side, to) for side in SIDES for to in SIDES[side]])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_scaling_equals_interpolate_where_it_is_used(side, resolution, channels):
    pixels = torch.randint(256, (4, side, side, *channels), dtype=torch.uint8)
    channels_first = pixels.reshape(4, side, side, -1).permute(0, 3, 1, 2).float()
    expected = F.interpolate(channels_first, size=(resolution, resolution), mode="nearest")
    scaled = nearest(pixels, resolution)
    assert scaled.shape == (4, resolution, resolution, *channels)
    assert torch.equal(scaled.reshape(4, resolution, resolution, -1).permute(0, 3, 1, 2).float(), expected)


@given(st.integers(1, 30), st.integers(1, 50))
@settings(deadline=None, max_examples=40)
def test_scaling_takes_the_floor_of_the_exact_position(side, resolution):
    """Where torch's own, whose positions are rounded to float32, is now and then a pixel off (14 to 46)."""
    pixels = torch.arange(side * side).remainder(251).to(torch.uint8).view(1, side, side)
    scaled = nearest(pixels, resolution)
    for i in range(resolution):
        for j in range(resolution):
            assert scaled[0, i, j] == pixels[0, i * side // resolution, j * side // resolution]


def test_binarising_before_or_after_nearest_scaling_is_the_same():
    pixels = torch.randint(256, (4, 28, 28), dtype=torch.uint8)
    for resolution in SIDES[28]:
        before = nearest((pixels >= 128).to(torch.uint8), resolution)
        assert torch.equal(before, (nearest(pixels, resolution) >= 128).to(torch.uint8))


@pytest.mark.parametrize("channels", [(), (3,)])
def test_the_scan_goes_row_by_row(channels):
    pixels = torch.randint(256, (2, 5, 5, *channels), dtype=torch.uint8)
    sequence = raster_scan(pixels)
    assert sequence.shape == (25, 2, *channels)
    assert sequence.dtype == torch.long
    for step in range(25):
        for row in range(2):
            assert sequence[step, row].tolist() == pixels[row, step // 5, step % 5].tolist()


@given(st.integers(5, 400))
@settings(deadline=None, max_examples=30)
def test_a_division_holds_every_image_once_and_is_always_the_same(count):
    images = Images(torch.zeros(count, 1, 1, dtype=torch.uint8), torch.arange(count))
    rest, fifth = divide(images)
    assert len(fifth.labels) == count // 5
    assert collections.Counter([*rest.labels.tolist(), *fifth.labels.tolist()]) == collections.Counter(
        range(count)
    )
    assert torch.equal(divide(images)[1].labels, fifth.labels)


def test_pixels_and_labels_stay_together():
    labels = torch.arange(50)
    images = Images(labels.to(torch.uint8).view(50, 1, 1), labels)
    splits = split(images, images)
    for part in splits.values():
        assert torch.equal(part.pixels.flatten().long(), part.labels)
    assert torch.equal(splits["test"].labels, labels)


def test_the_split_of_mnist_stays_what_it_was():
    """Images that moved into training would be tested on by runs of earlier versions."""
    labels = torch.arange(60_000)
    parts = split(*[Images(torch.zeros(60_000, 1, 1, dtype=torch.uint8), labels)] * 2)
    assert [len(parts[name].labels) for name in ("training", "validation")] == [48_000, 12_000]
    assert parts["validation"].labels[:4].tolist() == [3048, 19563, 58303, 8870]
