"""Frames as pictures: film strips, maps of attention and films that move.

Shapes: F frames, C channels, H height, W width.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rims.report.style import INK, MUTED, ORANGE, styled

GAP = 2
"""White pixels between the frames of a strip."""

TILE = 128
"""Pixels that a frame of a film takes on either side, or the next whole multiple of its own below."""

LETTERS = 24
"""Of a name's line beside a strip."""

SECONDS = 0.14
"""That a frame of a film is shown; the last one ten times as long."""


def pictures(frames: Tensor) -> np.ndarray:
    """Brightness ``[F, C, H, W]`` from 0 to 1 as colours ``[F, H, W, 3]``, bytes."""
    levels = (frames.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def columns(feed_in: int, last: int, most: int = 12) -> list[int]:
    """Numbers of at most ``most`` frames from 1 to ``last``, evenly spaced; the first that is not fed, number
    ``feed_in``, is one of them."""
    step = -(-last // most)
    return list(range(feed_in % step or step, last + 1, step))


@styled
def strip(rows: Mapping[str, np.ndarray], numbers: Sequence[int], feed_in: int) -> Figure:
    """A row of pictures ``[F, H, W, 3]`` for each name, of the frames with these numbers; a line where
    feeding ends."""
    (_, height, width, _) = next(iter(rows.values())).shape
    rows = {textwrap.fill(name, LETTERS, break_long_words=False): shown for name, shown in rows.items()}
    longest = max(len(line) for name in rows for line in name.splitlines())
    size = 9 if longest < 20 else 7
    left, top = 0.1 + 0.0088 * size * longest, 0.3  # inches for names of letters so wide, and for numbers
    across = 9.2 - left
    down = across * (len(rows) * (height + GAP) - GAP) / (len(numbers) * (width + GAP) - GAP)
    figure = Figure(figsize=(9.2, top + down))
    figure.set_layout_engine("none")
    axes = figure.add_axes((left / 9.2, 0, across / 9.2, down / (top + down)))
    _tiles(axes, rows, numbers)
    before = sum(number < feed_in for number in numbers)
    if before > 0:
        axes.axvline(before * (width + GAP) - GAP / 2, color=ORANGE, linewidth=1.6)
    axes.tick_params(axis="y", labelsize=size)
    return figure


@styled
def attention(frames: np.ndarray, maps: Tensor, numbers: Sequence[int], feed_in: int, mean: Tensor) -> Figure:
    """Where RIMs look: over ``frames [F, H, W, 3]`` in grey, a row for each RIM with ``maps [F, K, h, w]`` in
    orange; before them all ``mean [K, h, w]`` alone. The strongest of each is full orange."""
    rows = {}
    height, width = frames.shape[1:3]
    for rim in range(maps.shape[1]):
        over = _over(frames, maps[:, rim] / maps.max().clamp(min=1e-9))
        alone = _over(np.zeros_like(frames[:1]), mean[[rim]] / mean.max().clamp(min=1e-9))
        rows[f"RIM {rim}"] = np.concatenate([alone, over])
    figure = Figure(figsize=(9.2, 0.4 + 8.2 / (len(numbers) + 1) * len(rows) * height / width))
    axes = figure.add_subplot()
    _tiles(axes, rows, ["mean", *numbers])
    before = 1 + sum(number < feed_in for number in numbers)
    axes.axvline(before * (width + GAP) - GAP / 2, color=ORANGE, linewidth=1.6)
    return figure


def film(rows: Mapping[str, Sequence[np.ndarray]], feed_in: int, last: int) -> bytes:
    """An animated PNG: under each name its sequences side by side, each of pictures ``[F, H, W, 3]`` that
    begin with frame number 0; above, whether the frame is fed or the model is left to itself."""
    first = next(iter(rows.values()))
    height, width = first[0].shape[1:3]
    scale = max(1, TILE // max(height, width))
    tile = (width * scale, height * scale)
    bar, gap, line = 22, 4, 15
    across = len(first) * (tile[0] + gap) - gap
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 12)
    names = [_folded(name, font, across) for name in rows]
    size = (across, bar + sum(tile[1] + 5 + line * len(lines) for lines in names))
    coloured = any(np.ptp(sequence, -1).any() for row in rows.values() for sequence in row)
    images = []
    for number in range(last + 1):
        image = Image.new("RGB" if coloured else "L", size, "white")
        draw = ImageDraw.Draw(image)
        fed = number < feed_in
        state = f"frame {number}, fed" if fed else f"frame {number}, left to itself"
        draw.text((0, 0), state, MUTED if fed else INK, font)
        draw.rectangle((0, bar - 5, size[0], bar - 4), "#d9dce0")
        draw.rectangle((0, bar - 5, size[0] * (number + 1) // (last + 1), bar - 4), MUTED if fed else INK)
        top = bar
        for lines, sequences in zip(names, rows.values()):
            for text in lines:
                draw.text((0, top + 1), text, INK, font)
                top += line
            for column, sequence in enumerate(sequences):
                shown = Image.fromarray(sequence[number]).resize(tile, Image.Resampling.NEAREST)
                image.paste(shown.convert(image.mode), (column * (tile[0] + gap), top + 3))
            top += tile[1] + 5
        images.append(image)
    file = io.BytesIO()
    spans = [round(1000 * SECONDS)] * last + [round(10_000 * SECONDS)]
    images[0].save(file, "PNG", save_all=True, append_images=images[1:], duration=spans, loop=0)
    return file.getvalue()


def _folded(name: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The name as lines that are no wider than so many pixels; a single word may be."""
    lines: list[str] = []
    for word in name.split():
        longer = f"{lines[-1]} {word}" if lines else ""
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _tiles(axes: Axes, rows: Mapping[str, np.ndarray], names: Sequence[object]) -> None:
    """Rows of pictures with their names before, and names of the columns above."""
    count, height, width, _ = next(iter(rows.values())).shape
    across, down = width + GAP, height + GAP
    canvas = np.full((len(rows) * down - GAP, count * across - GAP, 3), 255, np.uint8)
    for row, pictured in enumerate(rows.values()):
        for column, picture in enumerate(pictured):
            canvas[row * down : row * down + height, column * across : column * across + width] = picture
    axes.imshow(canvas, interpolation="none", extent=(0, canvas.shape[1], canvas.shape[0], 0))
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([column * across + width / 2 for column in range(count)], labels=[str(n) for n in names])
    axes.set_yticks([row * down + height / 2 for row in range(len(rows))], labels=list(rows))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)


def _over(frames: np.ndarray, strength: Tensor) -> np.ndarray:
    """The frames, darker, with ``strength [F, h, w]`` from 0 to 1 laid over them in orange."""
    maps = F.interpolate(strength[:, None].float(), frames.shape[1:3], mode="nearest")
    amount = maps[:, 0, :, :, None].cpu().numpy()
    orange = np.array([255, 140, 40])
    return (0.5 * frames * (1 - amount) + amount * orange).round().astype(np.uint8)
