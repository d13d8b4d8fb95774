"""Resets inside a sequence for a layer that has none of its own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from rims.cores.base import reset_state

S = TypeVar("S")


def run_segments(
    run: Callable[[Tensor, S], tuple[Tensor, S]], x: Tensor, state: S, initial: S, reset: Tensor | None
) -> tuple[Tensor, S]:
    """``run(x, state)`` over ``x [T, B, I]``, cut where any row of ``reset [T, B]`` is true.

    A layer such as nn.LSTM takes its state only before the first step. Cutting keeps its fast sequence
    between resets, which are rare; reading where they are costs one synchronisation with the device a
    sequence.
    """
    if reset is None:
        return run(x, state)
    cuts = reset.any(dim=1).nonzero().flatten().tolist()
    bounds = sorted({0, *cuts, len(x)})
    outputs = []
    for start, end in pairwise(bounds):
        state = reset_state(state, initial, reset[start])
        output, state = run(x[start:end], state)
        outputs.append(output)
    return torch.cat(outputs), state
