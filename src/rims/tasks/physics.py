"""Elastic discs in a box, from collision to collision: exact but for rounding, many sequences at once.

Shapes: T frames, B sequences, N discs, P pairs of them. Lengths are in any unit, times in frames. A disc that
is absent is NaN throughout; one that is fixed has no velocity and an infinite mass.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from rims.errors import UserError

APPROACH = 1e-12
"""Two discs whose distance times approaching speed is less than this are not approaching: after a collision
the product is zero but for rounding, which must not make another collision, and another, at the same time."""

TRIES = 32
"""Places tried at once for each disc."""

ROUNDS = 1000
"""Beginnings tried for a sequence before it is said that there is no room."""

COLLISIONS = 100
"""Of a disc and frame, over a sequence: more have only discs that are squeezed into no space at all."""


class Motion(NamedTuple):
    """What discs did, NaN or False where there is none."""

    positions: Float[np.ndarray, "T B N 2"]
    """Centres (x, y) at each frame."""
    velocities: Float[np.ndarray, "T B N 2"]
    """Right after the frame."""
    collisions: Bool[np.ndarray, "T B N"]
    """Whether the disc hit a wall or another disc after the frame before, up to this one."""


def place(
    random: np.random.Generator,
    radii: Float[np.ndarray, "B N"],
    box: tuple[float, float],
    given: Float[np.ndarray, "B G 2"],
) -> Float[np.ndarray, "B N 2"]:
    """Centres of discs inside the box (width, height), none on another: one disc after the other, each
    uniform where there is room. ``given`` are the places of the first G of them.

    Raises UserError when a sequence has no room for its discs, or next to none.
    """
    batch, discs = radii.shape
    positions = np.full((batch, discs, 2), np.nan)
    positions[:, : given.shape[1]] = given
    pending = np.arange(batch)
    for _ in range(ROUNDS):
        trial, row, radius = positions[pending], np.arange(len(pending)), radii[pending]
        placed = np.ones(len(pending), bool)
        for disc in range(given.shape[1], discs):
            own = radius[:, disc, None, None]
            tries = own + random.random((len(pending), TRIES, 2)) * (np.array(box) - 2 * own)
            apart = tries[:, :, None] - trial[:, None, :disc]
            reach = own + radius[:, None, :disc]
            taken = (np.square(apart).sum(-1) < np.square(reach)).any(-1)  # false where a disc is absent
            first = taken.argmin(1)
            trial[:, disc] = tries[row, first]
            placed &= ~taken[row, first]
        positions[pending[placed]] = trial[placed]
        pending = pending[~placed]
        if not pending.size:
            return positions
    worst = radii[pending[0]]
    raise UserError(
        f"no room for {np.isfinite(worst).sum()} balls with radii up to {np.nanmax(worst):.1f} "
        f"in a box of {box[0]:g} x {box[1]:g}; expected fewer or smaller ones"
    )


def simulate(
    positions: Float[np.ndarray, "B N 2"],
    velocities: Float[np.ndarray, "B N 2"],
    radii: Float[np.ndarray, "B N"],
    masses: Float[np.ndarray, "B N"],
    box: tuple[float, float],
    frames: int,
) -> Motion:
    """What becomes of discs that start so, inside the box (width, height) and none on another.

    Between collisions all move on straight lines. The next collision of a sequence is the least root of the
    equations "disc touches wall" and "disc touches disc"; there the velocities change as energy and momentum
    demand. Each sequence goes from collision to collision by itself, and its frames are read off the lines.

    Raises UserError when discs are packed so tightly that their collisions do not end.
    """
    batch, discs, _ = positions.shape
    motion = Motion(
        np.empty((frames, batch, discs, 2)),
        np.empty((frames, batch, discs, 2)),
        np.zeros((frames, batch, discs), bool),
    )
    first, second = np.triu_indices(discs, 1)
    numbers = np.arange(frames)
    rows, now = np.arange(batch), np.zeros(batch)
    x, v, inverse = positions, velocities, 1 / masses
    for _ in range(COLLISIONS * discs * frames):
        wait, which = _next_collision(x, v, radii, np.array(box), first, second)
        then = now + wait
        frame, row = np.nonzero((numbers[:, None] >= now) & (numbers[:, None] < then))
        motion.positions[frame, rows[row]] = x[row] + (frame - now[row])[:, None, None] * v[row]
        motion.velocities[frame, rows[row]] = v[row]
        on = then <= frames - 1
        rows, now, which = rows[on], then[on], which[on]
        x, v, radii, inverse = x[on] + wait[on, None, None] * v[on], v[on], radii[on], inverse[on]
        frame = np.ceil(now).astype(int)
        walls, pairs = np.flatnonzero(which < 2 * discs), np.flatnonzero(which >= 2 * discs)
        disc, axis = np.divmod(which[walls], 2)
        v[walls, disc, axis] *= -1
        motion.collisions[frame[walls], rows[walls], disc] = True
        one, two = (end[which[pairs] - 2 * discs] for end in (first, second))
        _bounce(x, v, inverse, pairs, one, two)
        for disc in (one, two):
            motion.collisions[frame[pairs], rows[pairs], disc] = True
        if not rows.size:
            return motion
    raise UserError(
        f"balls of a sequence collide more than {COLLISIONS * discs * frames} times in {frames} frames; "
        "expected room to move, or less speed"
    )


def _next_collision(
    x: Float[np.ndarray, "B N 2"],
    v: Float[np.ndarray, "B N 2"],
    radii: Float[np.ndarray, "B N"],
    box: Float[np.ndarray, " 2"],
    first: Int[np.ndarray, " P"],
    second: Int[np.ndarray, " P"],
) -> tuple[Float[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """The time until each sequence's next collision, and which it is: disc i with a wall across axis k is
    2 i + k, a pair is 2 N + its number. Infinite when there is none."""
    speed = np.abs(v)
    ahead = np.where(v > 0, box - x, x) - radii[:, :, None]
    d, w = x[:, second] - x[:, first], v[:, second] - v[:, first]
    # |d + w t| = reach: a t^2 + 2 b t + c = 0
    a, b = np.einsum("bpk,bpk->bp", w, w), np.einsum("bpk,bpk->bp", d, w)
    c = np.einsum("bpk,bpk->bp", d, d) - np.square(radii[:, first] + radii[:, second])
    root = b * b - a * c
    meet = (b < -APPROACH) & (root > 0)
    below = np.sqrt(np.maximum(root, 0)) - b  # c over this, and not (-b - sqrt) / a, which cancels
    with np.errstate(over="ignore"):  # in a time that is as good as never
        # Rounding may have put a disc some 1e-15 beyond a wall or into another: then it hits at once.
        walls = np.divide(np.maximum(ahead, 0), speed, out=np.full_like(speed, np.inf), where=speed > 0)
        pairs = np.divide(np.maximum(c, 0), below, out=np.full_like(below, np.inf), where=meet)
    times = np.concatenate([walls.reshape(len(x), -1), pairs], axis=1)
    which = times.argmin(1)
    return times[np.arange(len(x)), which], which


def _bounce(
    x: Float[np.ndarray, "B N 2"],
    v: Float[np.ndarray, "B N 2"],
    inverse: Float[np.ndarray, "B N"],
    row: Int[np.ndarray, " C"],
    one: Int[np.ndarray, " C"],
    two: Int[np.ndarray, " C"],
) -> None:
    """The elastic impulse between discs ``one`` and ``two`` of the sequences ``row``, along the line of their
    centres; into ``v``."""
    normal = x[row, two] - x[row, one]
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    closing = ((v[row, two] - v[row, one]) * normal).sum(-1)
    impulse = (2 * closing / (inverse[row, one] + inverse[row, two]))[:, None] * normal
    v[row, one] += inverse[row, one, None] * impulse
    v[row, two] -= inverse[row, two, None] * impulse
