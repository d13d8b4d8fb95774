"""Plots of who is active when: a row for each RIM.

Shapes: T time, K RIMs.
"""

from __future__ import annotations

import math

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rims.report.activity import Activity
from rims.report.style import INK, MUTED, ORANGE, WIDTH, styled


@styled
def raster(active: Tensor, phases: dict[str, tuple[int, int]]) -> Figure:
    """One sequence, ``active [T, K]``: a row a RIM, dark where it is active; the phases below."""
    figure, axes = _rims_axes(*active.shape)
    for rim, steps in enumerate(active.T.tolist()):
        axes.broken_barh(_runs(steps), (rim - 0.36, 0.72), facecolor=INK, linewidth=0)
    _phases(axes, phases, len(active))
    return figure


@styled
def mean_activity(activity: Activity) -> Figure:
    """Many sequences: a row a RIM, white where it is never active and black where always; phases below."""
    steps = len(activity.mean)
    figure, axes = _rims_axes(steps, activity.num_rims)
    _shade(axes, activity.mean, 2.5)
    _phases(axes, activity.phases, steps)
    return figure


@styled
def activity_by_kind(activity: Activity) -> Figure:
    """The same for each kind of sequences, in two columns: a row a RIM, the first above."""
    kinds, columns = activity.by_kind, 2
    rows = math.ceil(len(kinds) / columns)
    figure = Figure(figsize=(WIDTH, 0.4 + rows * (0.3 + 0.09 * activity.num_rims)))
    every = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for axes in every:
        axes.grid(False)
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="x", length=0)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, integer=True))
    for axes, (name, mean) in zip(every, kinds.items()):
        _shade(axes, mean, 0.8)
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    for axes in every[len(kinds) :]:
        axes.set_axis_off()
    return figure


def _shade(axes: Axes, mean: Tensor, gap: float) -> None:
    """``mean [T, K]`` as shades, 0 white and 1 black, with white lines between the RIMs."""
    steps, rims = mean.shape
    axes.imshow(
        mean.T.numpy(),
        cmap="Greys",
        vmin=0,
        vmax=1,
        aspect="auto",
        interpolation="none",
        extent=(0, steps, rims - 0.5, -0.5),
    )
    for rim in range(1, rims):
        axes.axhline(rim - 0.5, color="white", linewidth=gap)


def _rims_axes(steps: int, rims: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 0.75 + 0.2 * rims))
    axes = figure.add_subplot()
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, steps)
    axes.set_ylim(rims - 0.5, -0.5)
    every = max(1, math.ceil(rims / 12))
    axes.set_yticks(range(0, rims, every), labels=[f"RIM {rim}" for rim in range(0, rims, every)])
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0)
    return figure, axes


def _phases(axes: Axes, phases: dict[str, tuple[int, int]], steps: int) -> None:
    """A line under the time steps of each phase, and its name."""
    height = (0, -4)
    last = len(phases) - 1
    for index, (name, (start, stop)) in enumerate(phases.items()):
        axes.annotate(
            "",
            (start, 0),
            (stop, 0),
            xycoords=axes.get_xaxis_transform(),
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 1.6, "shrinkA": 1.5, "shrinkB": 1.5},
            annotation_clip=False,
        )
        # The first and the last phase are often short: their names start and end with the axis.
        side = "left" if index == 0 else "right" if index == last else "center"
        at = {"left": start, "right": stop, "center": (start + stop) / 2}[side]
        axes.annotate(
            name,
            (at, 0),
            xycoords=axes.get_xaxis_transform(),
            xytext=height,
            textcoords="offset points",
            horizontalalignment=side,
            verticalalignment="top",
            color=MUTED,
            fontsize=9,
            annotation_clip=False,
        )
        if 0 < start < steps:
            axes.axvline(start, color=ORANGE, linewidth=0.8, alpha=0.7)


def _runs(active: list[bool]) -> list[tuple[int, int]]:
    """(start, length) of each unbroken run of true."""
    edges = [
        t for t in range(len(active) + 1) if (t > 0 and active[t - 1]) != (t < len(active) and active[t])
    ]
    return [(start, stop - start) for start, stop in zip(edges[::2], edges[1::2])]
