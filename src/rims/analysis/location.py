"""Is a RIM active when there is something to see where it looks? (paper D.4, Figure 6)

Shapes: T time, B batch, K RIMs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rims.analysis.usage import Trace


def location_correlation(trace: Trace, seen: Float[Tensor, "T B K"]) -> Float[Tensor, "T K"]:
    """Pearson's correlation, over the rows of a step, of whether RIM k is active with ``seen``: how much is
    in its own part of the input, such as the brightness of the strip of the frame that it is shown.

    NaN where a RIM is active in all rows or in none, or all rows show it the same. Float64.

    Raises ValueError when ``seen`` is not of the trace's shape.
    """
    if seen.shape != trace.active.shape:
        raise ValueError(f"seen has shape {tuple(seen.shape)}; expected {tuple(trace.active.shape)}")
    active, shown = trace.active.double(), seen.double()
    active, shown = active - active.mean(1, keepdim=True), shown - shown.mean(1, keepdim=True)
    together = (active * shown).mean(1)
    apart = active.square().mean(1).sqrt() * shown.square().mean(1).sqrt()
    # Rounding leaves a constant's deviation from its mean a little above zero.
    return torch.where(apart > 1e-9, together / apart, torch.nan)
