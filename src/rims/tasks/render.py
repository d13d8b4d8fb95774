"""Discs as pixels: each as bright as the part of the pixel that it covers, nearly.

Shapes: T time, B batch, N discs, C channels, H height, W width. A disc that is absent has NaN for its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy.lib.stride_tricks import sliding_window_view

PALETTE = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], bool)
"""Red, green, blue and yellow."""


def render(
    positions: Float[np.ndarray, "T B N 2"],
    radii: Float[np.ndarray, "B N"],
    size: tuple[int, int],
    colours: Int[np.ndarray, "B N"] | None = None,
    curtain: Float[np.ndarray, "B 4"] | None = None,
) -> UInt8[np.ndarray, "T B C H W"]:
    """Frames of ``size`` (height, width); what of a disc lies outside is not seen.

    Across the edge of a disc the brightness falls from 255 to 0 within one pixel, linearly with the distance
    from the centre; where discs overlap the brighter counts. ``colours`` are rows of :data:`PALETTE`;
    without, there is one channel. ``curtain`` (left, top, right, bottom), in whole pixels, is as black as the
    background and hides what is behind it; NaN where there is none.
    """
    steps, batch = positions.shape[:2]
    channels = 1 if colours is None else PALETTE.shape[1]
    frames = np.zeros((steps * batch, channels, *size), np.uint8)
    for disc, rows, coverage, windows, top, left in _discs(positions, radii, frames):
        inks = np.ones((len(rows), 1), bool) if colours is None else PALETTE[colours[rows % batch, disc]]
        seen, channel = np.nonzero(inks)
        place = (rows[seen], channel, top[seen], left[seen])
        windows[place] = np.maximum(windows[place], coverage[seen])
    frames = frames.reshape(steps, batch, channels, *size)
    return frames if curtain is None else _hide(frames, curtain)


def owners(
    positions: Float[np.ndarray, "T B N 2"],
    radii: Float[np.ndarray, "B N"],
    size: tuple[int, int],
    curtain: Float[np.ndarray, "B 4"] | None = None,
) -> UInt8[np.ndarray, "T B 1 H W"]:
    """Which disc, from 1, is seen at each pixel's centre; 0 where there is none, or a curtain."""
    steps, batch = positions.shape[:2]
    numbers = np.zeros((steps * batch, 1, *size), np.uint8)
    for disc, rows, coverage, windows, top, left in _discs(positions, radii, numbers):
        place = (rows, 0, top, left)
        windows[place] = np.where(coverage >= 128, np.uint8(disc + 1), windows[place])
    numbers = numbers.reshape(steps, batch, 1, *size)
    return numbers if curtain is None else _hide(numbers, curtain)


def _discs(
    positions: Float[np.ndarray, "T B N 2"],
    radii: Float[np.ndarray, "B N"],
    frames: UInt8[np.ndarray, "M C H W"],
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Disc by disc: its number; the R frames in which it is; how much of the pixels around it it covers, as
    bytes ``[R, h, w]``; and where these pixels are: all windows of that size in ``frames``, the top and the
    left of those of the disc ``[R]``."""
    batch, discs = radii.shape
    height, width = frames.shape[2:]
    around = math.ceil(2 * np.nanmax(radii, initial=0) + 1)
    sides = min(around, height), min(around, width)
    windows = sliding_window_view(frames, sides, axis=(2, 3), writeable=True)
    for disc in range(discs):
        centres = positions[:, :, disc].reshape(-1, 2)
        rows = np.flatnonzero(np.isfinite(centres[:, 0]))
        (x, y), radius = centres[rows].T, radii[rows % batch, disc]
        # A window that would stand out of the frame is moved into it, and still has all that is seen.
        top, left = (
            np.clip(np.floor(centre - radius), 0, full - side).astype(int)
            for centre, full, side in zip((y, x), (height, width), sides)
        )
        down, right = (
            np.square(np.arange(side) + (start + 0.5 - centre)[:, None]).astype(np.float32)
            for centre, start, side in zip((y, x), (top, left), sides)
        )
        distance = down[:, :, None] + right[:, None, :]
        np.sqrt(distance, out=distance)
        distance *= -255
        distance += (255 * (radius + 0.5) + 0.5).astype(np.float32)[:, None, None]  # rounded by the cast
        np.clip(distance, 0, 255, out=distance)
        yield disc, rows, distance.astype(np.uint8), windows, top, left


def _hide(
    frames: UInt8[np.ndarray, "T B C H W"], curtain: Float[np.ndarray, "B 4"]
) -> UInt8[np.ndarray, "T B C H W"]:
    """The frames with every curtain drawn, in place."""
    for row in np.flatnonzero(np.isfinite(curtain[:, 0])):
        left, top, right, bottom = curtain[row].astype(int)
        frames[:, row, :, top:bottom, left:right] = 0
    return frames
