"""Positions of objects in frames, against discs that are drawn where one knows, and brute force."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rims.tasks.blobs import Blobs, connected, of_objects, position_errors
from tests.tasks.moving import discs

CAP = 30.0


def draw(centres: list[tuple[float, float]], radii: list[float] | float = 4.0, side: int = 48) -> np.ndarray:
    """One frame ``[1, side, side]`` from 0 to 1."""
    positions = torch.tensor(centres).view(1, -1, 2)
    sizes = torch.as_tensor(radii).expand(1, len(centres))
    return discs(positions, sizes, side)[:, 0].numpy() / 255


def error(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(position_errors(connected(predicted), connected(true), 1, CAP)[0])


def blobs(centres: np.ndarray, mass: np.ndarray | None = None) -> Blobs:
    count = len(centres)
    return Blobs(np.zeros(count, np.intp), np.ones(count) if mass is None else mass, centres)


def test_a_disc_is_found_where_it_was_drawn_to_a_part_of_a_pixel() -> None:
    centres = torch.rand(200, 1, 2) * 20 + 14
    frames = discs(centres, torch.full((200, 1), 4.0), 48)[:, 0].numpy() / 255
    found = connected(frames)
    assert found.frame.tolist() == list(range(200))
    assert np.abs(found.centre - centres[:, 0].numpy()).max() < 0.12
    assert np.abs(found.mass / (np.pi * 16) - 1).max() < 0.122


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.0, 0.0), (0.0, -2.0), (0.3, 0.4), (-3.0, 4.0)])
def test_a_shift_is_the_error(shift) -> None:
    centres = [(12.0, 12.0), (35.5, 12.25), (20.0, 37.0)]
    moved = [(x + shift[0], y + shift[1]) for x, y in reversed(centres)]
    assert error(draw(moved), draw(centres)) == pytest.approx(np.hypot(*shift), abs=0.1)


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_as_many_as_there_should_be_are_matched_as_by_brute_force(count, seed) -> None:
    true, predicted = np.random.default_rng(seed).uniform(0, 20, (2, count, 2))
    by_hand = min(
        np.linalg.norm(true - predicted[list(order)], axis=1).mean()
        for order in itertools.permutations(range(count))
    )
    found = position_errors(blobs(predicted), blobs(true), 1, CAP)
    assert found[0] == pytest.approx(by_hand)


def test_what_is_missing_lies_where_its_neighbour_is_predicted() -> None:
    three = [(10.0, 10.0), (10.0, 20.0), (40.0, 40.0)]
    # Of the two left, one is right; the other's neighbour was 10 away: half for each, none for the third.
    assert error(draw([three[0], three[2]]), draw(three)) == pytest.approx((5 + 5 + 0) / 3, abs=0.05)
    assert error(np.zeros((1, 48, 48)), draw(three)) == CAP
    assert error(draw([(10.0, 10.0)]), draw([(44.0, 44.0)])) == CAP


def test_what_should_not_be_pulls_by_its_mass() -> None:
    true, predicted = (
        np.array([[10.0, 10.0], [30.0, 10.0]]),
        np.array([[10.0, 10.0], [30.0, 10.0], [10.0, 18.0]]),
    )
    found = position_errors(blobs(predicted, np.array([3.0, 4.0, 1.0])), blobs(true), 1, CAP)
    assert found[0] == pytest.approx((8 * 1 / 4 + 0) / 2)


def test_empty_frames_have_no_error_and_shift_nobody_elses() -> None:
    empty, one, two = np.zeros((1, 48, 48)), draw([(10.0, 10.0)]), draw([(13.0, 14.0)])
    true, predicted = np.concatenate([empty, one, empty, one]), np.concatenate([two, two, empty, one])
    found = position_errors(connected(predicted), connected(true), 4, CAP)
    assert np.isnan(found[[0, 2]]).all()
    assert found[[1, 3]] == pytest.approx([5.0, 0.0], abs=1e-6)


def scenes(seed: int, frames: int = 20, count: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames of discs of several sizes that do not overlap, and of which each after the first touches an
    earlier one half of the time; their positions and radii."""
    random = np.random.default_rng(seed)
    positions, radii = np.zeros((frames, count, 2)), random.uniform(2.0, 7.0, (frames, count))
    for where, sizes in zip(positions, radii):
        placed = 0
        while placed < count:
            point = random.uniform(sizes[placed], 48 - sizes[placed], 2)
            if placed and random.random() < 0.5:
                angle, other = random.uniform(0, 2 * np.pi), random.integers(placed)
                reach = sizes[placed] + sizes[other]
                point = where[other] + reach * np.array([np.cos(angle), np.sin(angle)])
            gaps = np.linalg.norm(where[:placed] - point, axis=1) - sizes[:placed] - sizes[placed]
            inside = (point > sizes[placed]).all() and (point < 48 - sizes[placed]).all()
            if inside and (gaps > -1e-6).all():
                where[placed] = point
                placed += 1
    drawn = discs(torch.from_numpy(positions), torch.from_numpy(radii), 48)[:, 0].numpy() / 255
    return drawn, positions, radii


def test_the_truth_has_no_error_even_where_balls_touch() -> None:
    frames, positions, radii = scenes(0, frames=100)
    objects = of_objects(frames, positions, radii)
    assert len(objects.frame) == 500
    assert np.linalg.norm(objects.centre - positions.reshape(-1, 2), axis=1).max() < 0.35
    regions = connected(frames)
    assert len(regions.frame) < 450, "hardly any touch"
    found = position_errors(regions, objects, 100, CAP)
    assert found.max() < 1e-9


def test_touching_balls_that_part_or_meet_in_a_prediction_are_not_a_large_error() -> None:
    touching, apart = [(16.0, 24.0), (24.0, 24.0)], [(15.5, 24.0), (24.5, 24.0)]
    for true, predicted in ((touching, apart), (apart, touching)):
        objects = of_objects(draw(true), np.array([true]), np.array([[4.0, 4.0]]))
        assert position_errors(connected(draw(predicted)), objects, 1, CAP)[0] < 0.55


def test_an_object_that_is_hidden_or_absent_is_left_out() -> None:
    positions = np.array([[[10.0, 10.0], [30.0, 30.0], [np.nan, np.nan], [90.0, 10.0]]])
    frame = draw([(10.0, 10.0)])
    objects = of_objects(frame, positions, np.array([[4.0, 4.0, np.nan, 4.0]]))
    np.testing.assert_allclose(objects.centre, [[10, 10]], atol=0.1)
    assert not len(of_objects(0 * frame, positions, np.full((1, 4), np.nan)).frame)


@pytest.mark.slow
def test_a_test_batch_takes_seconds() -> None:
    frames, positions, radii = scenes(1, frames=64, count=4)
    frames, positions, radii = (np.tile(x, (140, *[1] * (x.ndim - 1))) for x in (frames, positions, radii))
    frames = np.pad(frames, ((0, 0), (0, 16), (0, 16)))
    start = time.perf_counter()
    found = position_errors(connected(frames), of_objects(frames, positions, radii), len(frames), CAP)
    assert time.perf_counter() - start < 15
    assert len(found) == 256 * 35
