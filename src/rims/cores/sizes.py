"""Sizes that make systems comparable: equal state, or equal parameters."""

from __future__ import annotations

from functools import cache
from typing import Literal, TypeVar

import torch

from rims.cores.base import CoreConfig

Match = Literal["state", "params"]
"""Equal state size, exactly; or parameters within :data:`TOLERANCE`."""

TOLERANCE = 0.05
"""By which part of the wanted parameters a match may miss them."""

MEASURES: dict[Match, tuple[str, str]] = {
    "state": ("state_size", "state size"),
    "params": ("num_parameters", "parameters"),
}

C = TypeVar("C", bound=CoreConfig)


def matched(config: C, like: CoreConfig, input_size: int, match: Match) -> C:
    """``config`` at the size that makes its core comparable with that of ``like``: only the option
    ``config.size`` is changed.

    Every value from 1 on is a possible size, and state and parameters grow with it (see
    :meth:`CoreConfig.sized`), so the size is found by bisection over cores without memory.

    Raises ValueError, naming the sizes on both sides, where no size has exactly that state, or none comes
    within 5 % of the parameters.
    """
    if match not in MEASURES:
        raise ValueError(f"match is {match!r}; expected {' or '.join(map(repr, MEASURES))}")
    attribute, words = MEASURES[match]
    wanted = measure(like, input_size, attribute)
    if measure(config, input_size, attribute) == wanted:  # also where the size would not change it
        return config

    @cache
    def found(size: int) -> int:
        return measure(config.sized(size), input_size, attribute)

    below, above = 0, 1
    while found(above) < wanted and (not below or found(below) < found(above)):
        below, above = above, 2 * above
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (middle, above) if found(middle) < wanted else (below, middle)
    sides = [size for size in (below, above) if size]
    best = min(sides, key=lambda size: abs(found(size) - wanted))
    if abs(found(best) - wanted) <= (TOLERANCE * wanted if match == "params" else 0):
        return config.sized(best)
    option = config.size
    raise ValueError(
        f"no {option} gives {config.name} the {words} of {like.name}, {wanted:,}"
        f"{' within 5 %' if match == 'params' else ''}: "
        + ", ".join(f"{option} {getattr(config.sized(size), option)} has {found(size):,}" for size in sides)
    )


def measure(config: CoreConfig, input_size: int, attribute: str) -> int:
    """``attribute`` of the core of ``config``, such as ``num_parameters``, without its memory."""
    with torch.device("meta"):
        return getattr(config.build(input_size), attribute)
