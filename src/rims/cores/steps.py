"""A sequence as a loop over steps, with resets, for cores that are defined by one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from rims.cores.base import reset_state

S = TypeVar("S")


def run_steps(
    step: Callable[..., tuple[Tensor, S]],
    inputs: Sequence[Tensor],
    state: S,
    initial: S,
    reset: Tensor | None,
) -> tuple[Tensor, S]:
    """``output, state = step(*inputs at t, state)`` over the first dimension of ``inputs``; rows of
    ``reset [T, B]`` that are true start step t from ``initial``.

    What does not depend on the state belongs into ``inputs``, computed for all steps at once. Returns the
    outputs, stacked, and the last state.
    """
    outputs = []
    for t, parts in enumerate(zip(*(part.unbind(0) for part in inputs))):
        if reset is not None:
            state = reset_state(state, initial, reset[t])
        output, state = step(*parts, state)
        outputs.append(output)
    return torch.stack(outputs), state
