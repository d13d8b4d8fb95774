"""Discs as pixels against samples taken in each pixel."""

import numpy as np
import pytest

from rims.tasks.render import PALETTE, owners, render

SIZE = (24, 40)


def sampled(x, y, radius, size=SIZE, samples=16):
    """The part of each pixel that a disc covers, by a grid of samples in it."""
    rows, columns = ((np.arange(side * samples) + 0.5) / samples for side in size)
    inside = (columns - x) ** 2 + (rows[:, None] - y) ** 2 <= radius**2
    return inside.reshape(size[0], samples, size[1], samples).mean((1, 3))


def discs(*centres, radius=5.0):
    positions = np.array(centres, float)[None, None]
    return positions, np.full((1, len(centres)), radius)


@pytest.mark.parametrize("radius", [2.0, 3.3, 4.0, 5.49, 7.0])
def test_brightness_is_the_part_that_is_covered(radius):
    random = np.random.default_rng(0)
    for x, y in random.uniform(radius, np.array(SIZE[::-1]) - radius, (6, 2)):
        frame = render(*discs((x, y), radius=radius), SIZE)[0, 0, 0] / 255
        truth = sampled(x, y, radius)
        edge = (truth > 0) & (truth < 1)
        assert np.abs(frame - truth)[edge].mean() < 0.04
        assert np.abs(frame - truth).max() < 0.13
        assert (frame[truth == 1] > 0.88).all()
        assert frame.sum() == pytest.approx(np.pi * radius**2, rel=0.01 if radius >= 4 else 0.04)
        weights = frame / frame.sum()
        centre = weights.sum(0) @ (np.arange(40) + 0.5), weights.sum(1) @ (np.arange(24) + 0.5)
        assert centre == pytest.approx((x, y), abs=0.02)


@pytest.mark.parametrize(
    "centre", [(0, 0), (-3, 12), (41.5, 20), (20, 27.2), (39.9, 23.9), (-60, 5), (20, 1e5)]
)
def test_what_lies_outside_is_not_seen(centre):
    frame = render(*discs(centre, radius=6.0), SIZE)[0, 0, 0] / 255
    assert np.abs(frame - sampled(*centre, 6.0)).max() < 0.13
    assert (frame.sum() > 0) == (sampled(*centre, 6.0).sum() > 0)


def test_a_disc_larger_than_the_frame():
    frame = render(*discs((20, 12), radius=18.0), SIZE)[0, 0, 0] / 255
    assert np.abs(frame - sampled(20, 12, 18.0)).max() < 0.13


def test_frames_sequences_and_discs_are_drawn_where_they_belong():
    random = np.random.default_rng(1)
    positions, radii = random.uniform(0, 40, (3, 4, 2, 2)), random.uniform(2, 6, (4, 2))
    together = render(positions, radii, SIZE)
    assert together.shape == (3, 4, 1, *SIZE)
    for t in range(3):
        for b in range(4):
            each = [render(*discs(positions[t, b, n], radius=radii[b, n]), SIZE) for n in range(2)]
            assert (together[t, b] == np.maximum(*each)[0, 0]).all()


def test_absent_discs_leave_no_mark():
    positions, radii = discs((10, 10), (np.nan, np.nan), (30, 12))
    radii[0, 1] = np.nan
    expected = render(*discs((10, 10), (30, 12)), SIZE)
    assert (render(positions, radii, SIZE) == expected).all()
    nothing = render(np.full((2, 1, 1, 2), np.nan), np.full((1, 1), np.nan), SIZE)
    assert (nothing == 0).all()


def test_colours():
    positions, radii = discs((6, 12), (15, 12), (24, 12), (33, 12), radius=4.0)
    colours = np.array([[2, 3, 1, 0]])
    frame = render(positions, radii, SIZE, colours)[0, 0]
    grey = render(positions, radii, SIZE)[0, 0, 0]
    assert frame.shape == (3, *SIZE)
    for column, colour in ((6, 2), (15, 3), (24, 1), (33, 0)):
        assert (frame[:, 12, column] == 255 * PALETTE[colour]).all()
    assert (frame.max(0) == grey).all()


def test_a_curtain_hides_what_is_behind_it_and_nothing_else():
    positions, radii = discs((10, 10), (25, 14))
    positions, radii = np.repeat(positions, 2, axis=1), np.repeat(radii, 2, axis=0)
    curtain = np.array([[8, 3, 27, 12], [np.nan] * 4])
    open_ = render(positions, radii, SIZE)
    frames = render(positions, radii, SIZE, curtain=curtain)
    assert (frames[0, 0, 0, 3:12, 8:27] == 0).all()
    assert open_[0, 0, 0, 3:12, 8:27].any()
    open_[0, 0, 0, 3:12, 8:27] = 0
    assert (frames == open_).all()


def test_owners_are_the_discs_at_the_centres_of_pixels():
    positions, radii = discs((10, 10), (20.2, 14), (3, 20))
    found = owners(positions, radii, SIZE, np.array([[0.0, 0, 4, 24]]))[0, 0, 0]
    x, y = np.meshgrid(np.arange(40) + 0.5, np.arange(24) + 0.5)
    for number, (u, v) in enumerate(positions[0, 0], 1):
        inside = np.hypot(x - u, y - v) - 5
        assert (found[(inside < -0.01) & (x > 4)] == number).all()
        assert (found[inside > 0.01] != number).all()
    assert (found[:, :4] == 0).all()
