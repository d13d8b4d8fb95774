"""Bouncing balls: what a batch shows, and which options it takes."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from rims.errors import UserError
from rims.tasks import TASKS, Balls, Frames
from rims.tasks.balls import kind
from rims.tasks.video import as_floats


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("condition", "numbers", "curtain", "label"),
    [
        (4, (4,), False, "4"),
        (678, (6, 7, 8), False, "6-8"),
        (123456, (1, 2, 3, 4, 5, 6), False, "1-6"),
        (40, (4,), True, "4, curtain"),
        (13, (1, 3), False, "1, 3"),
        (21, (1, 2), False, "1-2"),
        (6780, (6, 7, 8), True, "6-8, curtain"),
        (308, (3, 8), True, "3, 8, curtain"),
    ],
)
def test_conditions(condition, numbers, curtain, label):
    assert kind(condition) == (numbers, curtain)
    task = Balls(balls=condition, test_balls=(4,), length=3, feed_in=1, rollout=1)
    assert task.label(condition) == label
    inputs, targets, scene = task.batch(40, generator())
    assert inputs.shape == targets.shape == (2, 40, 1, 64, 64)
    assert inputs.dtype == torch.uint8
    assert torch.equal(inputs[1:], targets[:-1])
    assert scene.positions.shape == scene.velocities.shape == (3, 40, numbers[-1], 2)
    counts = scene.radii.isfinite().sum(1)
    assert set(counts.tolist()) == set(numbers)
    assert torch.equal(scene.positions.isfinite().all(-1).sum(-1), counts.expand(3, 40))
    assert scene.curtain.isfinite().all() == curtain
    if not curtain:
        areas = torch.pi * scene.radii.square().nansum(1)
        assert as_floats(inputs).sum((0, 2, 3, 4)) / 2 == pytest.approx(areas, rel=0.02)


@pytest.mark.parametrize("condition", [0, -4, 44, 6786, 100])
def test_conditions_that_are_none(condition):
    message = f"balls is {condition}; expected each possible number of balls once, such as 4 or 678, .*"
    for options in ({"balls": condition}, {"test_balls": (4, condition)}):
        with pytest.raises(ValueError, match=message):
            Balls(**options)
    with pytest.raises(ValueError, match=message):
        Balls().batch(2, generator(), condition)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 60}, "side is 60; expected a multiple of 8"),
        ({"side": 0}, "side is 0; expected a multiple of 8"),
        ({"radii": (0.0, 7.0)}, r"radii are \(0.0, 7.0\); expected 0 < smallest <= largest < 32"),
        ({"radii": (8.0, 7.0)}, r"radii are \(8.0, 7.0\); expected 0 < smallest <= largest < 32"),
        ({"radii": (4.0, 32.0)}, r"radii are \(4.0, 32.0\); expected 0 < smallest <= largest < 32"),
        ({"speeds": (-1.0, 7.0)}, r"speeds are \(-1.0, 7.0\); expected 0 <= smallest <= largest"),
        ({"speeds": (3.0, 2.0)}, r"speeds are \(3.0, 2.0\); expected 0 <= smallest <= largest"),
        ({"length": 20}, "feed_in is 15 and rollout 35; expected at most length, 20, together"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Balls(**options)


def test_balls_without_room_are_named():
    with pytest.raises(UserError, match=r"no room for 8 balls with radii up to .* in a box of 64 x 64"):
        Balls(balls=8, radii=(14.0, 16.0)).batch(2, generator())


def test_one_seed_one_batch():
    task = Balls(length=6, feed_in=2, rollout=3)
    one, two = (task.batch(5, generator(3), 678) for _ in range(2))
    assert torch.equal(one.inputs, two.inputs)
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one.details, two.details, strict=True)
    )
    assert not torch.equal(one.inputs, task.batch(5, generator(4), 678).inputs)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002  nobody else's random state counts
    torch.set_default_dtype(torch.float64)
    try:
        three = pickle.loads(pickle.dumps(task)).batch(5, generator(3), 678)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(one.inputs, three.inputs)
    assert three.details.positions.dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"centre": True}, {"colours": True}])
def test_the_same_physics_at_every_size(options):
    """But for what is drawn in whole pixels."""
    large, small = (Balls(side=size, balls=5, **options).batch(3, generator()) for size in (64, 24))
    for name in ("positions", "velocities", "radii"):
        expected = getattr(large.details, name) * 24 / 64
        assert torch.allclose(getattr(small.details, name), expected, rtol=1e-5)
    assert torch.equal(small.details.colours, large.details.colours)
    blocks = as_floats(large.inputs).unflatten(-1, (8, 8)).unflatten(-3, (8, 8)).mean((-1, -3))
    same = as_floats(small.inputs).unflatten(-1, (8, 3)).unflatten(-3, (8, 3)).mean((-1, -3))
    assert (blocks - same).abs().max() < 0.08


def test_the_scene_is_what_the_frames_show():
    task = Balls(balls=1, length=30, feed_in=10, rollout=20)
    inputs, targets, scene = task.batch(6, generator())
    frames = as_floats(torch.cat([inputs, targets[-1:]]))[:, :, 0]
    place = torch.arange(64) + 0.5
    weight = frames.sum((-1, -2))
    centres = torch.stack([frames.sum(-2) @ place / weight, frames.sum(-1) @ place / weight], -1)
    assert (centres - scene.positions[:, :, 0]).abs().max() < 0.03
    # Velocities hold until something is hit, which one ball alone does at walls.
    straight = (scene.positions[1:] - scene.positions[:-1] - scene.velocities[:-1]).norm(dim=-1) < 1e-3
    edge = torch.minimum(scene.positions, 64 - scene.positions) - scene.radii[:, :, None]
    near = (edge[1:].amin(-1) < 6.5) | (edge[:-1].amin(-1) < 6.5)
    assert (straight | near).all()
    assert 0.5 < straight.float().mean() < 1


def test_speeds_and_sizes_are_those_asked_for():
    scene, _ = Balls(balls=8, radii=(2.0, 5.0), speeds=(1.0, 3.0), length=51).draw(
        np.random.default_rng(0), 200
    )
    speed = scene.velocities[0].norm(dim=-1)
    for found, low, high in ((scene.radii, 2, 5), (speed, 1, 3)):
        assert found.min().item() == pytest.approx(low, abs=0.02)
        assert found.max().item() == pytest.approx(high, abs=0.02)
    # Masses are the areas: with these the energy of a sequence is kept.
    energy = (scene.radii.square() * scene.velocities.square().sum(-1)).sum(-1)
    assert torch.allclose(energy, energy[0].expand_as(energy), rtol=1e-4)
    assert not torch.allclose(*scene.velocities[[0, -1]].square().sum((-1, -2)), rtol=1e-2)


def test_the_fixed_ball_is_in_the_middle_and_one_more():
    task = Balls(balls=13, test_balls=(123456,), side=48, centre=True)
    _, _, scene = task.batch(30, generator())
    assert scene.radii.shape == (30, 4)
    assert set(scene.radii.isfinite().sum(1).tolist()) == {2, 4}
    assert (scene.positions[:, :, 0] == 24).all()
    assert (scene.velocities[:, :, 0] == 0).all()
    frames = task.batch(30, generator()).inputs
    assert (frames[:, :, 0, 23:25, 23:25] == 255).all()
    assert (scene.velocities[-1, :, 1] != scene.velocities[0, :, 1]).any(-1).all()


def test_colours():
    task = Balls(colours=True, length=4, feed_in=1, rollout=1)
    assert task.input == Frames(64, 64, 3)
    inputs, _, scene = task.batch(20, generator())
    assert inputs.shape == (3, 20, 3, 64, 64)
    grey = dataclasses.replace(task, colours=False).batch(20, generator())
    assert torch.equal(inputs.amax(2, keepdim=True), grey.inputs)
    assert set(scene.colours.flatten().tolist()) == {0, 1, 2, 3}


def test_curtains_are_black_where_they_are_said_to_be_and_differ():
    inputs, _, scene = Balls(balls=40).batch(30, generator())
    left, top, right, bottom = scene.curtain.long().T
    for row in range(30):
        assert (inputs[:, row, :, top[row] : bottom[row], left[row] : right[row]] == 0).all()
    assert (torch.stack([right - left, bottom - top]) >= 16).all()
    assert (torch.stack([right - left, bottom - top]) <= 32).all()
    assert (torch.stack([left, top]) >= 0).all()
    assert (torch.stack([right, bottom]) <= 64).all()
    assert len(set(zip(left.tolist(), top.tolist()))) > 25
    # Balls vanish and come back: the pixels seen of a sequence change.
    lit = (inputs > 127).float().sum((2, 3, 4))
    assert ((lit.amax(0) - lit.amin(0)) > 40).float().mean() > 0.8


@pytest.mark.parametrize("options", [{}, {"balls": 40}, {"colours": True, "side": 32}, {"centre": True}])
def test_extrapolation_is_exact_until_something_is_hit(options):
    task = Balls(**options, length=30, feed_in=10, rollout=5)
    batch = task.batch(40, generator())
    frames = torch.cat([batch.inputs, batch.targets[-1:]])
    found = task.extrapolated(batch, 5)
    assert found.shape == (5, *frames.shape[1:])
    assert found.dtype == torch.uint8
    scene = batch.details
    since = torch.arange(1, 6).view(-1, 1, 1, 1)
    straight = (scene.positions[9] + since * scene.velocities[9] - scene.positions[10:15]).norm(dim=-1) < 1e-3
    free = straight.all(-1)
    assert free.any()
    assert not free.all()
    difference = (found.int() - frames[10:15].int()).abs().amax((2, 3, 4))
    assert (difference[free] <= 1).all()
    if "balls" not in options:  # a curtain may hide the difference
        assert (difference[~free] > 1).float().mean() > 0.95


def test_registered():
    task = TASKS["balls"]()
    assert task.input == Frames(64, 64, 1)
    assert (task.training_condition, task.test_conditions) == (4, (4, 678, 40))
    assert (task.condition_name, task.categorical) == ("balls", True)
