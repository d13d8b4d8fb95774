"""Plots of measurements: by condition, over updates, over the frames of a video."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.lines
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rims.report import words
from rims.report.groups import MANY, Group, Section
from rims.report.statistics import Estimate, estimate
from rims.report.style import INK, MUTED, ORANGE, WIDTH, styled
from rims.report.video import Rollout

DASHES = ((0, (6, 1.5, 1, 1.5)), (0, (3, 1)), (0, (1, 1.2)))
"""Lines of the references, one after the other."""


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
    # Points too: where RIMs are active in all sequences or in none there is no value, and no line.
    axes.plot(values, color=MUTED, linewidth=0.7, alpha=0.6, marker=".", markersize=3)
    axes.plot(values.nanmean(1), color=INK, marker=".", markersize=5)
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
    axes.axvline(at, color=ORANGE, linewidth=0.8, alpha=0.7)
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
