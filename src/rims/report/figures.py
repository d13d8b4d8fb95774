"""The plots, each small enough to be read on a phone.

Only matplotlib's object interface is used, within a style context: nothing global is changed for other plots.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import matplotlib.lines
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from torch import Tensor

from rims.report import words
from rims.report.activity import Activity
from rims.report.results import MANY, Group, Section
from rims.report.statistics import Estimate, estimate
from rims.report.video import Rollout

INK, MUTED, FAINT = "#1c1e21", "#6b7178", "#d9dce0"
DASHES = ((0, (6, 1.5, 1, 1.5)), (0, (3, 1)), (0, (1, 1.2)))
"""Lines of the references, one after the other."""
WIDTH = 4.4
"""Inches. A column of the page on a desk, a phone's width when scaled by four fifths."""

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": MUTED,
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#eceef0",
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.color": FAINT,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
    "ytick.minor.left": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
    "legend.borderaxespad": 0.1,
    "figure.constrained_layout.use": True,
    # The browser's own fonts stay sharp, small and selectable.
    "svg.fonttype": "none",
    "svg.hashsalt": "rims",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw within the style."""

    def within(*arguments: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*arguments)

    within.__doc__ = draw.__doc__
    return within


@styled
def by_condition(section: Section, metric: str) -> Figure:
    """A test metric against the condition: mean, 95 % interval, seeds; chance, references and training are
    marked. Kinds of conditions stand side by side, unconnected."""
    groups = [group for group in section.groups if group.measured(metric)]
    references = section.referred(metric)
    figure, axes = _axes(
        groups, metric, markers=True, references=[*references], joined=not section.task.categorical
    )
    many = len(groups) > MANY
    task, seen = section.task, {c for group in groups for c in group.measured(metric)} | {*section.trained}
    conditions = [c for c in section.conditions if c in seen] if task.categorical else sorted(seen)
    if task.categorical:
        _kinds(axes, groups, metric, conditions, references)
    else:
        for group in groups:
            measured = group.measured(metric)
            _curve(
                axes,
                group,
                list(measured),
                list(measured.values()),
                faint=0.05 if many else 0.15,
                marker=group.marker,
                clip_on=False,
            )
            for result in group.results if group.seeds > 1 and not many else ():
                seed = {
                    c: values[metric] for c, values in sorted(result.evaluation.items()) if metric in values
                }
                axes.plot(list(seed), list(seed.values()), color=group.colour, linewidth=0.7, alpha=0.45)
        for dashes, values in zip(DASHES, references.values()):
            axes.plot(*zip(*sorted(values.items())), color=MUTED, linewidth=1.0, linestyle=dashes)
        if len(conditions) > 1 and conditions[0] > 0 and conditions[-1] / conditions[0] >= 4:
            axes.set_xscale("log", base=2)
    places = dict(zip(conditions, range(len(conditions)) if task.categorical else conditions))
    axes.set_xticks(
        list(places.values()),
        labels=[task.label(c) + "\ntrained" * (c in section.trained) for c in conditions],
    )
    axes.minorticks_off()
    if not task.categorical:
        axes.margins(x=0.06)
    _value_axis(axes, section, metric)
    for trained in section.trained:
        axes.axvline(places[trained], color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    axes.set_xlabel(task.condition_name)
    return figure


def _kinds(
    axes: Axes,
    groups: list[Group],
    metric: str,
    conditions: list[int],
    references: dict[str, dict[int, float]],
) -> None:
    """At each of the conditions, evenly spaced: a point with its interval for each group, and its seeds."""
    place = {condition: index for index, condition in enumerate(conditions)}
    step = 0.6 / len(groups)
    for index, group in enumerate(groups):
        aside = step * (index - (len(groups) - 1) / 2)
        measured = group.measured(metric)
        axes.errorbar(
            [place[c] + aside for c in measured],
            [value.mean for value in measured.values()],
            [value.half_width or 0.0 for value in measured.values()],
            color=group.colour,
            marker=group.marker,
            markeredgecolor="white",
            linestyle="",
            elinewidth=1.4,
            clip_on=False,
        )
        for result in group.results if group.seeds > 1 else ():
            seed = {c: values[metric] for c, values in result.evaluation.items() if metric in values}
            axes.plot(
                [place[c] + aside + 0.25 * step for c in seed],
                list(seed.values()),
                color=group.colour,
                marker="_",
                markersize=4,
                linestyle="",
                alpha=0.6,
            )
    for dashes, values in zip(DASHES, references.values()):
        for condition, value in values.items():
            if condition in place:
                ends = [place[condition] - 0.4, place[condition] + 0.4]
                axes.plot(ends, [value, value], color=MUTED, linewidth=1.0, linestyle=dashes)
    axes.set_xlim(-0.5, len(conditions) - 0.5)


@styled
def learning(section: Section, metric: str) -> Figure:
    """A measurement against updates: validation solid with its interval and seeds, training dotted."""
    splits = ("training", "validation")
    groups = [group for group in section.groups if any(group.curve(split, metric)[0] for split in splits)]
    figure, axes = _axes(groups, metric, markers=False)
    many = len(groups) > MANY
    # Losses often fall by decades, and an interval around their mean could reach below zero: take logarithms.
    seen = [
        value for group in groups for split in splits for at in group.curve(split, metric)[1] for value in at
    ]
    decades = bool(seen) and 0 < 10 * min(seen) <= max(seen) < math.inf
    into, back = (math.log, math.exp) if decades and not words.is_score(metric) else (float, float)
    for group in groups:
        for split in splits:
            updates, values = group.curve(split, metric)
            estimates = [estimate([into(value) for value in at]) for at in values]
            if split == "training":
                means = [back(value.mean) for value in estimates]
                axes.plot(
                    updates, means, color=group.colour, linewidth=1.0, linestyle=(0, (1, 1.2)), alpha=0.8
                )
            else:
                _curve(axes, group, updates, estimates, back, 0.05 if many else 0.15)
        if group.seeds > 1 and not many:
            for result in group.results:
                axes.plot(*result.curve("validation", metric), color=group.colour, linewidth=0.7, alpha=0.45)
    if into is math.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        # With few seeds a band may span more decades than the values themselves; these decide the range.
        drawn = _drawn(axes)
        axes.set_ylim(min(drawn) / 1.5, max(drawn) * 1.5)
    else:
        _value_axis(axes, section, metric)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    thousands = axes.get_xlim()[1] >= 5000
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if thousands and x else f"{x:g}")
    axes.set_xlabel("updates")
    return figure


@styled
def over_frames(rollouts: list[Rollout], metric: str, feed_in: int) -> Figure:
    """A measurement of each predicted frame: a line a core, grey ones for predictors that learn nothing, and
    a mark at the first frame that follows no true one but the fed."""
    references = {
        name: curves[metric]
        for name, curves in rollouts[0].curves.items()
        if name != "model" and not curves[metric].isnan().all()
    }
    figure, axes = _axes([rollout.group for rollout in rollouts], metric, False, [*references])
    frames = range(1, 1 + len(rollouts[0].predicted))
    for dashes, values in zip(DASHES, references.values()):
        axes.plot(frames, values.tolist(), color=MUTED, linewidth=1.0, linestyle=dashes)
    for rollout in rollouts:
        axes.plot(frames, rollout.curves["model"][metric].tolist(), color=rollout.group.colour)
    if words.is_score(metric):
        axes.set_ylim(0, 1.04)
    else:
        axes.set_ylim(0, 1.1 * max(_drawn(axes), default=1.0) or 1.0)
    _frames_axis(axes, "frame", feed_in)
    return figure


@styled
def correlation(values: Tensor, feed_in: int) -> Figure:
    """``values [S, K]``: how each RIM's activity goes with the brightness of its strip; thick, their mean."""
    figure = Figure(figsize=(WIDTH, 2.6))
    axes = figure.add_subplot()
    axes.set_title("correlation over sequences")
    axes.plot(values, color=MUTED, linewidth=0.7, alpha=0.6)
    axes.plot(values.nanmean(1), color=INK)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_ylim(-1.04, 1.04)
    axes.set_xlim(0, len(values) - 1)
    _frames_axis(axes, "frame that goes in", feed_in)
    return figure


def _frames_axis(axes: Axes, name: str, feed_in: int) -> None:
    """Whole numbers, and a line before the first frame that is not fed."""
    at = feed_in - 0.5
    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(8, integer=True))
    axes.axvline(at, color="#c2410c", linewidth=0.8, alpha=0.7)
    axes.annotate(
        "left to itself",
        (at, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(3, 0),
        textcoords="offset points",
        verticalalignment="top",
        color=MUTED,
        fontsize=8.5,
    )


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


def svg_file(figure: Figure) -> bytes:
    """The figure as a file of its own, the same bytes each time."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(file, metadata=nothing)
    return file.getvalue()


def svg(figure: Figure, title: str) -> str:
    """The figure as an inline element called ``title``: no fixed size, no ids that could meet others."""
    text = svg_file(figure).decode()
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    rest = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", rest)
    return f'<svg {box[0]} role="img" aria-label="{html.escape(title)}">{rest}'


def png(figure: Figure) -> bytes:
    """The figure at 200 dots an inch."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.set_dpi(200)
        FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _axes(
    groups: list[Group],
    metric: str,
    markers: bool,
    references: Sequence[str] = (),
    joined: bool = True,
) -> tuple[Figure, Axes]:
    """The legend names groups, as points that a line joins or not, and references."""
    labels = [*(group.label for group in groups), *references]
    size = 8.0 if len(groups) > MANY else 9.5
    columns = max(1, min(len(labels), int(456 / size / (max(map(len, labels)) + 7))))
    rows = math.ceil(len(labels) / columns)
    figure = Figure(figsize=(WIDTH, 3.0 + 0.02 * size * max(0, rows - 3)))  # a long legend takes no plot
    axes = figure.add_subplot()
    unit = words.unit(metric)
    axes.set_title(words.title(metric) + (f", {unit}" if unit else ""))
    handles = [
        matplotlib.lines.Line2D(
            [],
            [],
            color=group.colour,
            marker=group.marker if markers else "",
            markeredgecolor="white",
            linestyle="-" if joined else "",
        )
        for group in groups
    ]
    handles += [
        matplotlib.lines.Line2D([], [], color=MUTED, linewidth=1.0, linestyle=dashes)
        for dashes, _ in zip(DASHES, references)
    ]
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=size)
    return figure, axes


def _curve(
    axes: Axes,
    group: Group,
    x: list[int],
    values: list[Estimate],
    back: Callable[[float], float] = float,
    faint: float = 0.15,
    **style: Any,
) -> None:
    """A mean, and a band where there is an interval; ``back`` undoes what was done to the values."""
    axes.plot(x, [back(value.mean) for value in values], color=group.colour, markeredgecolor="white", **style)
    if group.seeds > 1:
        low = [back(value.mean - (value.half_width or 0.0)) for value in values]
        high = [back(value.mean + (value.half_width or 0.0)) for value in values]
        axes.fill_between(x, low, high, color=group.colour, alpha=faint, linewidth=0)


def _value_axis(axes: Axes, section: Section, metric: str) -> None:
    """The whole range for scores, in per cent for accuracies; from 0 for everything else; the chance line."""
    if words.is_score(metric):
        ticks = [0, 0.25, 0.5, 0.75, 1]
        axes.set_ylim(0, 1.04)
        axes.set_yticks(ticks, labels=[f"{(100 if words.unit(metric) == '%' else 1) * y:g}" for y in ticks])
    else:
        drawn = _drawn(axes)
        if drawn and min(drawn) >= 0:
            # An interval may reach below zero, where no value can be; the values decide the range.
            axes.set_ylim(0, 1.2 * max([*drawn, section.chance.get(metric, 0.0)], default=1.0) or 1.0)
    if metric in section.chance:
        level, below = section.chance[metric], words.is_score(metric)
        axes.axhline(level, color=MUTED, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
        axes.annotate(
            f"chance {words.with_unit(metric, level)}",
            (1, level),
            xycoords=("axes fraction", "data"),
            # Models at chance hug the line; below a score's and above a loss's there is room.
            xytext=(0, -3 if below else 3),
            textcoords="offset points",
            horizontalalignment="right",
            verticalalignment="top" if below else "bottom",
            color=MUTED,
            fontsize=8.5,
        )


def _drawn(axes: Axes) -> list[float]:
    """The finite heights of all lines."""
    data = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    return [y for line in data for y in line.tolist() if math.isfinite(y)]


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
            axes.axvline(start, color="#c2410c", linewidth=0.8, alpha=0.7)


def _runs(active: list[bool]) -> list[tuple[int, int]]:
    """(start, length) of each unbroken run of true."""
    edges = [
        t for t in range(len(active) + 1) if (t > 0 and active[t - 1]) != (t < len(active) and active[t])
    ]
    return [(start, stop - start) for start, stop in zip(edges[::2], edges[1::2])]
