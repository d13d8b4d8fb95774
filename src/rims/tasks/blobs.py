"""Where the objects of a predicted frame are, and how far from where they should be.

Shapes: M frames, H height, W width, N objects. Lengths are in pixels: a pixel's centre lies at its index plus
one half, x to the right and y downwards.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

THRESHOLD = 0.5
"""What is brighter is part of an object."""

ALONE = np.array([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])
"""Pixels of one frame that touch, at corners too, belong together."""


class Blobs(NamedTuple):
    """Objects of frames, sorted by their frames."""

    frame: NDArray[np.intp]
    """``[N]``: the frame that an object is in."""
    mass: NDArray[np.float64]
    """``[N]``: the sum of its pixels' brightness."""
    centre: NDArray[np.float64]
    """``[N, 2]``: its centre of mass (x, y)."""


def connected(frames: NDArray[np.floating]) -> Blobs:
    """The connected regions above :data:`THRESHOLD` of ``frames [M, H, W]``."""
    labels, count = ndimage.label(frames > THRESHOLD, ALONE)
    places = np.nonzero(labels)
    return _blobs(frames, places, labels[places] - 1, count)


def of_objects(
    frames: NDArray[np.floating], positions: NDArray[np.floating], radii: NDArray[np.floating]
) -> Blobs:
    """What is seen of each object of ``positions [M, N, 2]`` and ``radii [M, N]`` (0 or NaN where unknown):
    the pixels above :data:`THRESHOLD` that belong to it and no other.

    A pixel belongs to the object with the least |distance|^2 - radius^2; for discs that touch, but do not
    overlap, the one that covers it. Objects with no such pixel, hidden or out of the frame, are left out, and
    so are those whose position is NaN.
    """
    places = np.nonzero(frames > THRESHOLD)
    objects = positions.shape[1]
    least, owner = np.full(len(places[0]), np.inf), np.full(len(places[0]), -1)
    for i in range(objects):
        x, y = positions[places[0], i].T
        power = (places[2] + 0.5 - x) ** 2 + (places[1] + 0.5 - y) ** 2
        power -= np.nan_to_num(radii[places[0], i]) ** 2
        nearer = power < least  # false for NaN
        least[nearer], owner[nearer] = power[nearer], i
    owned = owner >= 0
    places = tuple(axis[owned] for axis in places)
    return _blobs(frames, places, places[0] * objects + owner[owned], len(frames) * objects)


def _blobs(
    frames: NDArray[np.floating], places: tuple[NDArray[np.intp], ...], owner: NDArray[np.integer], count: int
) -> Blobs:
    """The blobs from pixels at ``places`` (frame, row, column), each part of blob ``owner`` < ``count``.
    Blobs are numbered along the frames."""
    brightness = frames[places]
    mass = np.bincount(owner, brightness, count).astype(np.float64)
    here = np.flatnonzero(mass > 0)
    frame = np.zeros(count, np.intp)
    frame[owner] = places[0]
    moments = [np.bincount(owner, brightness * (axis + 0.5), count)[here] for axis in (places[2], places[1])]
    return Blobs(frame[here], mass[here], np.stack(moments, axis=1) / mass[here, None])


def position_errors(predicted: Blobs, true: Blobs, frames: int, cap: float) -> NDArray[np.float64]:
    """``[frames]``: the mean distance, over the true objects of a frame, between them and what is predicted
    for them; NaN in frames without objects.

    True objects and predicted blobs are matched one to one with the least sum of distances. Those left over,
    on the side that has more, join the pair of the nearest on the other side (nearest by its rim, that of a
    disc of its mass), and the error of all objects
    that are then together is the distance between the centres of mass of both sides: balls that touch, and so
    are one blob, are measured by their common centre; a missed object counts as lying where its nearest
    neighbour is predicted; a blob where nothing should be pulls at its nearest object by its mass. A frame
    that equals the true one has error 0, whatever touches in it, unless an object is seen in several pieces.

    No error is above ``cap``, which is that of every object of a frame where nothing is predicted.
    """
    found = np.full(frames, np.nan)
    numbers = np.arange(frames + 1)
    true_at, predicted_at = (np.searchsorted(blobs.frame, numbers) for blobs in (true, predicted))
    for number in np.unique(true.frame):
        t = slice(true_at[number], true_at[number + 1])
        p = slice(predicted_at[number], predicted_at[number + 1])
        found[number] = _error(predicted.mass[p], predicted.centre[p], true.mass[t], true.centre[t], cap)
    return found


def _error(
    mass: NDArray[np.float64],
    centre: NDArray[np.float64],
    true_mass: NDArray[np.float64],
    true_centre: NDArray[np.float64],
    cap: float,
) -> float:
    """Of one frame, with at least one true object."""
    if not len(mass):
        return cap
    distance = np.linalg.norm(true_centre[:, None] - centre, axis=2)
    rows, columns = linear_sum_assignment(distance)
    if len(mass) == len(true_mass):
        return float(np.minimum(distance[rows, columns], cap).mean())
    # groups are numbered by the side that has fewer, all of which are matched
    if len(true_mass) > len(mass):
        group, true_group = np.arange(len(mass)), (distance - _radii(mass)).argmin(axis=1)
        true_group[rows] = columns
    else:
        gap = distance - _radii(true_mass)[:, None]
        group, true_group = gap.argmin(axis=0), np.arange(len(true_mass))
        group[columns] = rows
    offset = _centres(group, mass, centre) - _centres(true_group, true_mass, true_centre)
    return float(np.minimum(np.linalg.norm(offset, axis=1), cap)[true_group].mean())


def _radii(mass: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of white discs of the masses."""
    return np.sqrt(mass / np.pi)


def _centres(
    group: NDArray[np.intp], mass: NDArray[np.float64], centre: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Centres of mass of groups."""
    moments = [np.bincount(group, mass * axis) for axis in centre.T]
    return np.stack(moments, axis=1) / np.bincount(group, mass)[:, None]
