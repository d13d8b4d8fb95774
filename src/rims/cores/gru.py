"""torch.nn.GRU behind the Core contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from rims.cores.base import Core, CoreConfig, register
from rims.cores.segments import run_segments
from rims.nn.checks import check_positive


class GRUCore(Core):
    """Gated recurrent unit (Cho et al. 2014) as torch.nn.GRU has it: one layer, zero initial state. The state
    is ``[B, H]``."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.gru = nn.GRU(input_size, hidden_size)
        self.input_size = input_size
        self.output_size = hidden_size

    def initial_state(self, batch_size: int) -> Float[Tensor, "B H"]:
        return next(self.parameters()).new_zeros(batch_size, self.output_size)

    def forward(
        self,
        x: Float[Tensor, "T B I"],
        state: Float[Tensor, "B H"] | None = None,
        reset: Bool[Tensor, "T B"] | None = None,
    ) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "B H"]]:
        self.check_input(x, reset)
        initial = self.initial_state(x.shape[1])

        def segment(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            output, h = self.gru(x, state[None])
            return output, h[0]

        return run_segments(segment, x, self.start(state, initial), initial, reset)


@register
@dataclass
class GRUConfig(CoreConfig):
    """A GRU, one layer."""

    name: ClassVar[str] = "gru"

    hidden_size: int = 600
    """Units."""

    def build(self, input_size: int) -> GRUCore:
        check_positive(input_size=input_size, hidden_size=self.hidden_size)
        return GRUCore(input_size, self.hidden_size)
