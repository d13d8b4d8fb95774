"""Colliding discs against textbook formulas, small steps, conservation laws and time reversal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rims.errors import UserError
from rims.tasks.physics import Motion, place, simulate

BOX = (64.0, 48.0)


def start(discs, seed, batch=1, box=BOX, radii=(2.0, 6.0), fixed=False):
    """Positions, velocities, radii and masses of a random beginning; disc 0 fixed in the middle or not."""
    random = np.random.default_rng(seed)
    r = random.uniform(*radii, (batch, discs))
    middle = np.tile(np.array(box) / 2, (batch, 1, 1)) if fixed else np.empty((batch, 0, 2))
    x, v = place(random, r, box, middle), random.uniform(-6, 6, (batch, discs, 2))
    m = random.uniform(0.5, 4, (batch, discs))
    if fixed:
        v[:, 0], m[:, 0] = 0, np.inf
    return x, v, r, m


def energy(motion: Motion, masses):
    moving = np.where(np.isfinite(masses), masses, 0)
    return 0.5 * np.einsum("bn,tbnk,tbnk->tb", moving, motion.velocities, motion.velocities)


def gaps(positions, radii):
    """The least distance between the edges of any two discs."""
    first, second = np.triu_indices(radii.shape[1], 1)
    apart = np.linalg.norm(positions[:, :, first] - positions[:, :, second], axis=-1)
    return apart - radii[:, first] - radii[:, second]


def check_lawful(motion, radii, masses, box=BOX):
    inside = np.minimum(motion.positions, np.array(box) - motion.positions) - radii[..., None]
    assert np.nanmin(inside) > -1e-6
    if radii.shape[1] > 1 and np.isfinite(gaps(motion.positions, radii)).any():
        assert np.nanmin(gaps(motion.positions, radii)) > -1e-6
    joules = energy(motion, masses)
    assert np.allclose(joules, joules[0], rtol=1e-9, atol=1e-12)


@given(
    st.integers(1, 6), st.booleans(), st.integers(0, 10**6), st.floats(0.1, 3), st.sampled_from([2, 11, 51])
)
@settings(deadline=None, max_examples=40)
def test_energy_is_kept_and_no_disc_overlaps_or_leaves(discs, fixed, seed, speed, frames):
    x, v, r, m = start(discs + fixed, seed, batch=3, fixed=fixed)
    motion = simulate(x, speed * v, r, m, BOX, frames)
    check_lawful(motion, r, m)
    assert (motion.positions[0] == x).all()
    assert (motion.velocities[0] == speed * v).all()
    if fixed:
        assert (motion.positions[:, :, 0] == x[:, 0]).all()


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_momentum_is_kept_between_walls(seed):
    x, v, r, m = start(5, seed)
    far = (1e6, 1e6)
    motion = simulate(x + 5e5, v, r, m, far, 30)
    momentum = np.einsum("bn,tbnk->tbk", m, motion.velocities)
    assert np.allclose(momentum, momentum[0], rtol=0, atol=1e-9)
    # Discs that never meet keep their velocities, so at least one of these examples has met.
    assert (motion.velocities[-1] != v).any() == motion.collisions.any()


@pytest.mark.parametrize(("m1", "m2", "v1", "v2"), [(1, 1, 3, 0), (2, 1, 3, -1), (1, 5, 2, -2), (4, 1, 4, 0)])
def test_two_discs_on_a_line(m1, m2, v1, v2):
    x, v = np.array([[[20.0, 24], [40, 24]]]), np.array([[[float(v1), 0], [v2, 0]]])
    r, m = np.array([[3.0, 5]]), np.array([[float(m1), m2]])
    motion = simulate(x, v, r, m, BOX, 8)
    meeting = (40 - 20 - 8) / (v1 - v2)
    after = (
        ((m1 - m2) * v1 + 2 * m2 * v2) / (m1 + m2),
        ((m2 - m1) * v2 + 2 * m1 * v1) / (m1 + m2),
    )
    frame = int(np.ceil(meeting))
    assert motion.velocities[frame, 0, :, 0] == pytest.approx(after, abs=1e-12)
    assert (motion.velocities[frame, 0, :, 1] == 0).all()
    expected = [
        20 + v1 * meeting + after[0] * (frame - meeting),
        40 + v2 * meeting + after[1] * (frame - meeting),
    ]
    assert motion.positions[frame, 0, :, 0] == pytest.approx(expected, abs=1e-12)
    assert motion.collisions[: frame + 1, 0].tolist() == [[False, False]] * frame + [[True, True]]


@pytest.mark.parametrize("offset", [0.0, 1.0, -3.5, 5.9])
def test_an_oblique_hit_changes_the_part_along_the_centres_alone(offset):
    x, v = np.array([[[10.0, 24], [40, 24 + offset]]]), np.array([[[4.0, 0], [0, 0]]])
    r, m = np.array([[3.0, 3]]), np.array([[1.0, 3]])
    found = simulate(x, v, r, m, BOX, 10).velocities[-1, 0]
    normal = np.array([np.sqrt(36 - offset**2), offset]) / 6  # at the touch the centres are 6 apart
    along, across = normal * normal[0] * 4, np.array([4.0, 0]) - normal * normal[0] * 4
    assert found[0] == pytest.approx(across - 0.5 * along, abs=1e-9)  # (1 - 3) / (1 + 3)
    assert found[1] == pytest.approx(0.5 * along, abs=1e-9)


def test_a_fixed_disc_reflects():
    x, v = np.array([[[32.0, 24], [10, 24]]]), np.array([[[0.0, 0], [5, 0]]])
    motion = simulate(x, v, np.full((1, 2), 4.0), np.array([[np.inf, 1]]), BOX, 6)
    assert motion.velocities[-1, 0].tolist() == [[0, 0], [-5, 0]]
    assert motion.positions[-1, 0, 1] == pytest.approx([24 - (25 - 14), 24])
    assert motion.collisions[3, 0].all()


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_simulation_with_tiny_steps(seed):
    x, v, r, m = start(4, seed, fixed=seed % 2 == 1)
    frames, steps = 6, 4000
    motion = simulate(x, v, r, m, BOX, frames)
    assert motion.collisions.any()
    x, v, r, m = x[0].copy(), v[0].copy(), r[0], m[0]
    hit = np.zeros(4, bool)
    for step in range(1, (frames - 1) * steps + 1):
        x += v / steps
        out = ((x < r[:, None]) & (v < 0)) | ((x > np.array(BOX) - r[:, None]) & (v > 0))
        if out.any():
            v[out] *= -1
            hit |= out.any(-1)
        for i in range(4):
            for j in range(i):
                d = x[j] - x[i]
                near = d @ d < (r[i] + r[j]) ** 2
                if near and (v[j] - v[i]) @ d < 0:
                    n = d / np.sqrt(d @ d)
                    share = 1 / m[i] + 1 / m[j]
                    change = 2 * ((v[j] - v[i]) @ n) / share
                    v[i] += change / m[i] * n
                    v[j] -= change / m[j] * n
                    hit[[i, j]] = True
        if step % steps == 0:
            assert x == pytest.approx(motion.positions[step // steps, 0], abs=0.02)
            assert v == pytest.approx(motion.velocities[step // steps, 0], abs=0.02)
            assert (hit == motion.collisions[step // steps, 0]).all()
            hit[:] = False


@given(st.integers(1, 5), st.booleans(), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_time_runs_backwards_too(discs, fixed, seed):
    x, v, r, m = start(discs + fixed, seed, fixed=fixed)
    there = simulate(x, v, r, m, BOX, 9)
    back = simulate(there.positions[-1], -there.velocities[-1], r, m, BOX, 9)
    # Each meeting of discs multiplies an error, by ten or so.
    assert back.positions[::-1] == pytest.approx(there.positions, abs=1e-5)
    assert -back.velocities[-1] == pytest.approx(v, abs=1e-4)


@given(st.integers(2, 4), st.integers(1, 5), st.integers(1, 3), st.data())
@settings(deadline=None, max_examples=40)
def test_hits_at_once_in_corners_and_in_passing_end(columns, speed, radius, data):
    """Discs on a grid, touching each other and two of the walls, with velocities of few kinds."""
    box = (2.0 * radius * columns + 1, 4.0 * radius + 1)
    places = [(radius * (2 * i + 1), radius * (2 * j + 1)) for i in range(columns) for j in range(2)]
    chosen = data.draw(st.lists(st.sampled_from(places), min_size=1, unique=True))
    ways = st.sampled_from([-1.0, -1e-9, -1e-300, 0.0, 0.5, 1.0])
    v = speed * np.array([[data.draw(st.tuples(ways, ways)) for _ in chosen]])
    m = np.array([[data.draw(st.sampled_from([1.0, 3.0])) for _ in chosen]])
    x, r = np.array([chosen], float), np.full((1, len(chosen)), float(radius))
    check_lawful(simulate(x, v, r, m, box, 5), r, m, box)


def test_discs_without_room_to_move_are_an_error():
    """Two discs as high as the box collide at once, and again, for ever."""
    x, v = np.array([[[2.0, 2], [2, 6]]]), np.array([[[0.0, 1], [0, 0]]])
    with pytest.raises(UserError, match=r"balls of a sequence collide more than 1000 times in 5 frames; .*"):
        simulate(x, v, np.full((1, 2), 2.0), np.ones((1, 2)), (20.0, 8.0), 5)


def test_into_a_corner():
    x, v = np.array([[[10.0, 10]]]), np.array([[[-4.0, -4]]])
    motion = simulate(x, v, np.array([[2.0]]), np.ones((1, 1)), BOX, 4)
    assert motion.positions[-1, 0, 0] == pytest.approx([6, 6])
    assert motion.velocities[-1, 0, 0].tolist() == [4, 4]


def test_in_passing():
    """Two edges touch in one point, along which both move."""
    x, v = np.array([[[10.0, 20], [40, 28]]]), np.array([[[3.0, 0], [-3, 0]]])
    motion = simulate(x, v, np.full((1, 2), 4.0), np.ones((1, 2)), BOX, 10)
    assert motion.velocities[-1] == pytest.approx(v[0][None])


def test_what_hits_two_at_once_is_symmetric():
    x = np.array([[[10.0, 24], [40, 20], [40, 28]]])
    v = np.array([[[4.0, 0], [0, 0], [0, 0]]])
    found = simulate(x, v, np.full((1, 3), 4.0), np.ones((1, 3)), BOX, 8)
    check_lawful(found, np.full((1, 3), 4.0), np.ones((1, 3)))
    assert found.collisions[:, 0].any(0).all()


def test_rows_and_absent_discs_do_not_matter_to_each_other():
    x, v, r, m = start(4, 3, batch=5)
    together = simulate(x, v, r, m, BOX, 20)
    for row in range(5):
        one = slice(row, row + 1)
        for a, b in zip(together, simulate(x[one], v[one], r[one], m[one], BOX, 20), strict=True):
            assert np.array_equal(a[:, one], b)
    rest = [0, 1, 3]
    without = simulate(x[:, rest], v[:, rest], r[:, rest], m[:, rest], BOX, 20)
    for part in (x, v, r, m):
        part[:, 2] = np.nan
    gone = simulate(x, v, r, m, BOX, 20)
    assert np.array_equal(gone.positions[:, :, rest], without.positions)
    assert np.isnan(gone.positions[:, :, 2]).all()
    assert not gone.collisions[:, :, 2].any()


def test_places_are_inside_apart_and_everywhere():
    random = np.random.default_rng(0)
    r = np.tile([5.0, 3, 4, np.nan], (2000, 1))
    given_places = np.tile([20.0, 20], (2000, 1, 1))
    x = place(random, r, BOX, given_places)
    assert (x[:, 0] == [20, 20]).all()
    assert np.isnan(x[:, 3]).all()
    check_lawful(Motion(x[None], np.zeros((1, *x.shape)), np.zeros(0)), r, np.ones_like(r))
    for disc in (1, 2):  # up to every wall
        assert x[:, disc].min(0) == pytest.approx(r[0, [disc, disc]], abs=0.2)
        assert x[:, disc].max(0) == pytest.approx(np.array(BOX) - r[0, disc], abs=0.2)


def test_no_room_is_said():
    radii = np.full((2, 9), 9.0)
    with pytest.raises(UserError) as caught:
        place(np.random.default_rng(0), radii, (40.0, 40.0), np.empty((2, 0, 2)))
    assert str(caught.value) == (
        "no room for 9 balls with radii up to 9.0 in a box of 40 x 40; expected fewer or smaller ones"
    )
