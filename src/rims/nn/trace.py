"""What a run over a sequence says about itself."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


class Trace(NamedTuple):
    """What happened in one layer and direction, step by step. Time comes first, with ``batch_first`` too."""

    active: Bool[Tensor, "T B K"]
    """Which RIMs were active."""
    input_attention: Float[Tensor, "T B H K S+1"] | None
    """Attention of every RIM on the null slot (index 0) and the input's slots; None without input
    attention."""
    communication: Float[Tensor, "T B H K K"] | None
    """How much of each RIM (last) each active RIM heard; zero rows for inactive RIMs; None without
    communication."""

    def __repr__(self) -> str:
        """Shapes, not values: a trace of one batch prints as thousands of lines otherwise."""
        fields = ", ".join(f"{name}={_shape(value)}" for name, value in self._asdict().items())
        return f"{type(self).__name__}({fields})"


def _shape(value: Tensor | None) -> str:
    return "None" if value is None else f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
