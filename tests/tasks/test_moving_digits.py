"""Digits that fly: seen in the frames themselves, against the scene that comes with them."""

import itertools

import numpy as np
import pytest
import torch

from rims.errors import UserError
from rims.tasks import TASKS, DatasetTask, Frames, MovingDigits, moving_digits
from rims.tasks.moving_digits import Pictures, fly
from rims.tasks.video import VideoTask

from .helpers import write_mnist

ROOM, SQUARE = 36, 28


def frames_of(batch):
    return torch.cat([batch.inputs, batch.targets[-1:]])


@pytest.fixture(scope="module")
def one():
    """Sequences of one digit, which nothing hides."""
    return MovingDigits(source="digits", digits=1).examples("training", torch.arange(40))


def test_positions_are_centres_of_brightness(one):
    frames = frames_of(one)[:, :, 0].double().numpy()
    at = np.arange(64) + 0.5
    total = frames.sum((2, 3))
    x, y = (frames.sum(2) * at).sum(2) / total, (frames.sum(3) * at).sum(2) / total
    found = np.stack([x, y], -1)[:, :, None]
    np.testing.assert_allclose(one.details.positions.numpy(), found, atol=1e-4)
    assert (one.details.radii == SQUARE / 2).all()


def test_no_part_of_a_digit_leaves_the_frame(one):
    totals = frames_of(one).long().sum((2, 3, 4))
    assert (totals == totals[0]).all()


def test_speed_is_constant_between_hits_and_drawn_anew_at_them(one):
    positions, velocities = one.details.positions[:, :, 0], one.details.velocities[:, :, 0]
    frames = frames_of(one)[:, :, 0] > 0
    x, y = frames.any(2), frames.any(3)
    moved = positions[1:] - positions[:-1]
    same = (velocities[1:] == velocities[:-1]).all(-1)
    assert torch.allclose(moved[same], velocities[:-1][same], atol=1e-4)
    assert velocities.abs().max() == 4
    assert (velocities != 0).any(-1).all()
    # A digit may be narrower than its square, by some pixels on either side, so it turns near a wall.
    changed = (~same).nonzero().tolist()
    assert len(changed) > 40
    new = set()
    for t, row in changed:
        columns, rows = x[t + 1, row].nonzero().flatten(), y[t + 1, row].nonzero().flatten()
        gaps = [columns.min(), 63 - columns.max(), rows.min(), 63 - rows.max()]
        assert min(gaps) < 10
        assert (moved[t, row].abs() <= velocities[t, row].abs() + 1e-4).all()
        new.add(tuple(velocities[t + 1, row].int().tolist()))
    assert len(new) > 20


def test_a_path_turns_at_walls_alone_and_away_from_them():
    turns = 0
    for seed in range(50):
        corner, velocity = fly(np.random.RandomState(seed), 60, 3, ROOM, 4)
        assert corner.min() >= 0
        assert corner.max() <= ROOM
        at_wall = (corner == 0) | (corner == ROOM)
        assert not at_wall[0].any()
        assert (velocity[corner == 0] > 0).all()
        assert (velocity[corner == ROOM] < 0).all()
        free = ~at_wall[1:].any(-1)
        assert (velocity[1:][free] == velocity[:-1][free]).all()
        assert (corner[1:][free] == (corner[:-1] + velocity[:-1])[free]).all()
        turns += (~free).sum()
    assert turns > 500


def test_the_brighter_of_two_digits_is_seen(monkeypatch):
    """Squares of one brightness each: some choice of them, painted where the scene says, is every frame."""
    levels = (100, 200)
    pixels = torch.tensor(levels, dtype=torch.uint8)[:, None, None].expand(2, SQUARE, SQUARE)
    pictures = Pictures(pixels, torch.full((2, 2), SQUARE / 2))
    monkeypatch.setattr(moving_digits, "_load", lambda *_: {"test": pictures})
    batch = MovingDigits(source="digits").examples("test", torch.arange(10))
    frames = frames_of(batch)[:, :, 0].numpy()
    corners = (batch.details.positions - SQUARE / 2).int().tolist()
    seen = set()
    for row in range(10):
        fits = []
        for chosen in itertools.product(levels, levels):
            painted = np.zeros((31, 64, 64), int)
            for t in range(31):
                for level, (x, y) in sorted(zip(chosen, corners[t][row])):  # the brighter is painted last
                    painted[t, y : y + SQUARE, x : x + SQUARE] = level
            fits.append((painted == frames[:, row]).all())
        assert sum(fits) == 1
        seen.add(fits.index(True))
    assert len(seen) > 1


def test_a_sequence_is_the_same_in_any_company():
    task = MovingDigits(source="digits", side=32)
    many = task.examples("test", torch.arange(12), 3)
    for index in (0, 7, 11):
        single = task.examples("test", torch.tensor([index]), 3)
        assert torch.equal(single.inputs[:, 0], many.inputs[:, index])
        assert torch.equal(single.details.velocities[:, 0], many.details.velocities[:, index])
    assert many.details.positions.shape == (31, 12, 3, 2)
    others = task.examples("validation", torch.arange(12), 3)
    assert not torch.equal(others.details.velocities, many.details.velocities)


def test_each_split_has_its_own_images(tmp_path, monkeypatch):
    arrays = write_mnist(tmp_path, monkeypatch)
    monkeypatch.setenv("RIMS_DATA", str(tmp_path))
    task = MovingDigits(digits=1)
    known = {image.tobytes() for image in arrays["train-images-idx3-ubyte"]}
    seen = {}
    for split in ("training", "validation", "test"):
        batch = task.examples(split, torch.arange(60))
        first = batch.inputs[0, :, 0]
        seen[split] = set()
        for image in first:
            # Noise fills a square to its edges, so the first and last bright pixels are the square's.
            rows, columns = image.sum(1).nonzero().flatten(), image.sum(0).nonzero().flatten()
            cut = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            seen[split].add(cut.numpy().tobytes())
    assert seen["test"] == {image.tobytes() for image in arrays["t10k-images-idx3-ubyte"]}
    assert len(seen["training"]) == 8
    assert len(seen["validation"]) == 2
    assert seen["training"] | seen["validation"] == known


def test_other_sides_are_the_same_in_proportion():
    batch = MovingDigits(source="digits", side=32, digits=1).examples("training", torch.arange(20))
    assert batch.inputs.shape == (30, 20, 1, 32, 32)
    assert batch.details.velocities.abs().max() == 2
    assert (batch.details.radii == 7).all()


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RIMS_DATA", str(tmp_path))
    with pytest.raises(UserError, match="has no MNIST file train-images-idx3-ubyte"):
        MovingDigits().prepare()


def test_wrong_options_are_named():
    for options, message in (
        ({"side": 40}, "side is 40; expected a multiple of 16"),
        ({"side": 0}, "side is 0; expected a multiple of 16"),
        ({"digits": 0}, "digits is 0; expected at least 1"),
        ({"test_digits": (1, -1)}, "digits is -1; expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            MovingDigits(**options)
    with pytest.raises(ValueError, match="digits is 0; expected at least 1"):
        MovingDigits(source="digits").examples("test", torch.arange(2), 0)


@pytest.mark.without_shape_checks
def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="source is 'letters'; expected 'mnist' or 'digits'"):
        MovingDigits(source="letters")


def test_registered():
    task = TASKS["moving-digits"]()
    assert isinstance(task, DatasetTask)
    assert isinstance(task, VideoTask)
    assert task.input == Frames(64, 64)
    assert (task.training_condition, task.test_conditions) == (2, (1, 2, 3))
    assert (task.length, task.feed_in, task.rollout) == (31, 5, 25)
