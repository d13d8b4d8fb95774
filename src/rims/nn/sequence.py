"""The cell over a sequence, one step after another: the reference that every faster path must equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rims.nn.cell import RIMCell, StepTrace
from rims.nn.trace import Trace


class How(NamedTuple):
    """How a sequence is run, weights, input and state aside."""

    reset: Bool[Tensor, "T B"] | None = None
    """Where true, the row's state becomes zero before the step."""
    mask: Bool[Tensor, "T B S"] | None = None
    """Which of the slots or private inputs are present."""
    valid: Bool[Tensor, "T B"] | None = None
    """Where false, the row's state stands still and its output is zero (padding)."""
    disabled: Bool[Tensor, " K"] | None = None
    """The RIMs that are removed."""
    reverse: bool = False
    """From the last step to the first; y stays in the order of time."""
    return_trace: bool = False

    @property
    def fresh(self) -> Bool[Tensor, "T B"] | None:
        """``reset`` in the order of computation: where the state becomes zero before step t is computed."""
        if not self.reverse or self.reset is None:
            return self.reset
        # Nothing may cross from t back to t - 1 where t begins anew.
        return torch.cat([self.reset[1:], torch.zeros_like(self.reset[:1])])


PLAIN = How()
"""Nothing special: a whole sequence, forwards."""


def run_cell(
    cell: RIMCell,
    x: Tensor,
    h: Float[Tensor, "B H"],
    c: Float[Tensor, "B H"],
    how: How = PLAIN,
) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "B H"], Float[Tensor, "B H"], Trace | None]:
    """The cell over ``x [T, B, ...]``.

    Returns ``y``, the last ``h`` and ``c``, and the trace if asked for.
    """
    fresh, valid = how.fresh, how.valid
    outputs: list[Tensor] = []
    trace: list[StepTrace] = []
    for t in range(len(x))[:: -1 if how.reverse else 1]:
        if fresh is not None:
            h = h.masked_fill(fresh[t, :, None], 0.0)
            c = c.masked_fill(fresh[t, :, None], 0.0)
        mask = None if how.mask is None else how.mask[t]
        h_new, c_new, step = cell.step(x[t], h, c, mask, how.disabled)
        if valid is None:
            h, c, y = h_new, c_new, h_new
        else:
            now = valid[t, :, None]
            h, c, y = torch.where(now, h_new, h), torch.where(now, c_new, c), h_new.masked_fill(~now, 0.0)
            step = StepTrace(step.active & now, *step[1:])
        outputs.append(y)
        if how.return_trace:
            trace.append(step)
    if how.reverse:
        outputs.reverse()
        trace.reverse()
    return torch.stack(outputs), h, c, stack_trace(trace) if how.return_trace else None


def stack_trace(steps: Sequence[StepTrace]) -> Trace:
    """Steps in the order of time to one trace."""

    def stack(parts: Sequence[Tensor | None]) -> Any:
        return None if parts[0] is None else torch.stack(parts)  # type: ignore[arg-type]

    return Trace(*map(stack, zip(*steps)))
