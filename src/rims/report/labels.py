"""What tells groups apart: names, colours, markers, and the settings in which they differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rims.report.groups import Group

COLOURS = {
    "rim": "#0072b2",
    "lstm": "#d55e00",
    "gru": "#e69f00",
    "ntm": "#009e73",
    "dnc": "#cc79a7",
    "rmc": "#56b4e9",
    "entnet": "#7a5195",
    "transformer": "#222222",
    "slstm": "#8c564b",
    "mingru": "#9a9a00",
    "feedforward": "#999999",
}
"""A core keeps its colour in every report: Okabe and Ito's palette for colour-blind readers, and five."""

SPELLING = {"entnet": "EntNet", "feedforward": "Feed-forward", "mingru": "minGRU", "slstm": "sLSTM"}
"""Names of cores that their papers write in a way of their own."""

LEGIBLE = 24
"""Letters of a label that a plot's legend has room for."""

MARKERS = "osD^vPX*"
"""A group's marker, so that colour is never the only difference."""


def display_name(core: str) -> str:
    """How a core is written in prose: abbreviations in capitals (LSTM), words as words (Transformer)."""
    return SPELLING.get(core) or (core.upper() if len(core) <= 4 else core.capitalize())


def short(name: str) -> str:
    """An option's name without its part: ``core.num_active`` is ``num_active``."""
    return name.partition(".")[2]


def differing(groups: Sequence[Group]) -> list[str]:
    """The options, by dotted name, in which the groups are not all alike."""
    names = dict.fromkeys(name for group in groups for name in group.options)
    return [name for name in names if len({repr(group.options.get(name)) for group in groups}) > 1]


def key_settings(group: Group, groups: Sequence[Group]) -> dict[str, Any]:
    """What a reader must know to tell this row from others.

    How many RIMs there are and how many are active, options of the core that are not its defaults, and
    whatever else differs between the rows of one table. What the row's label says is left out.
    """
    core = group.first.config.core
    chosen: dict[str, Any] = {}
    for option in dataclasses.fields(core):
        value = getattr(core, option.name)
        if option.default_factory is not dataclasses.MISSING:
            default = option.default_factory()
        else:
            default = option.default
        if option.name != "hidden_size" and (option.name in ("num_rims", "num_active") or value != default):
            chosen[f"core.{option.name}"] = value
    for name in differing(groups):
        if not name.startswith("core.") and name in group.options:
            chosen[name] = group.options[name]
    return {short(name): value for name, value in chosen.items() if name not in group.named}


def label(groups: list[Group]) -> None:
    """Name each group by its core, what tells it from others of that core, and at last by its folder."""
    for core in {group.core for group in groups}:
        alike = [group for group in groups if group.core == core]
        names = differing(alike)
        for group in alike:
            group.named = [name for name in names if name in group.options]
            details = [f"{short(name)}={group.options[name]}" for name in group.named]
            group.label = " ".join([display_name(core), *details])
        for group in alike:
            if sum(other.options == group.options for other in alike) > 1:
                group.label += f" {group.first.name}"
    # In a grid of many cores and options, its rows' own names say more in less.
    arms = {arm for group in groups if (arm := _arm(group))}
    longest = max(len(group.label) for group in groups)
    if len(arms) == len(groups) and max(map(len, arms)) < longest > LEGIBLE:
        for group in groups:
            group.label, group.named = str(_arm(group)), []


def colour(groups: list[Group]) -> None:
    """Give each group a marker, and its core's colour or another that none of the others has."""
    free = [own for core, own in COLOURS.items() if core not in {group.core for group in groups}]
    taken: set[str] = set()
    for index, group in enumerate(groups):
        own = COLOURS.get(group.core)
        if own is None or own in taken:
            own = free.pop(0) if free else _shade(own, taken)
        group.colour = own
        group.marker = MARKERS[index % len(MARKERS)]
        taken.add(own)


def _arm(group: Group) -> str | None:
    """The group's name where all its folders are called by it and their seeds, as those of grids are."""
    ends = all(result.name.endswith(f"-{result.seed}") for result in group.results)
    names = {result.name.removesuffix(f"-{result.seed}") for result in group.results}
    return names.pop() if ends and len(names) == 1 else None


def _shade(colour: str | None, taken: set[str]) -> str:
    """A lighter or darker form of the colour that no other group has; grey where there is none."""
    channels = [int((colour or "#777777")[i : i + 2], 16) for i in (1, 3, 5)]
    for part, towards in ((0.35, 255), (0.35, 0), (0.6, 255), (0.6, 0), (0.2, 255), (0.2, 0), (0.75, 255)):
        shade = "#" + "".join(f"{round(c + part * (towards - c)):02x}" for c in channels)
        if shade not in taken:
            return shade
    return "#777777"
