"""torch.nn.LSTM behind the Core contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn

from rims.cores.base import Core, CoreConfig, register
from rims.cores.segments import run_segments
from rims.nn.checks import check_positive


class LSTMState(NamedTuple):
    """Hidden and cell state, ``[B, H]`` each."""

    h: Float[Tensor, "B H"]
    c: Float[Tensor, "B H"]


class LSTMCore(Core):
    """Long short-term memory (Hochreiter & Schmidhuber 1997) as torch.nn.LSTM has it: one layer, zero initial
    state."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size)
        self.input_size = input_size
        self.output_size = hidden_size

    def initial_state(self, batch_size: int) -> LSTMState:
        zeros = next(self.parameters()).new_zeros(batch_size, self.output_size)
        return LSTMState(zeros, zeros)

    def forward(
        self,
        x: Float[Tensor, "T B I"],
        state: LSTMState | None = None,
        reset: Bool[Tensor, "T B"] | None = None,
    ) -> tuple[Float[Tensor, "T B H"], LSTMState]:
        self.check_input(x, reset)
        initial = self.initial_state(x.shape[1])

        def segment(x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
            output, (h, c) = self.lstm(x, (state.h[None], state.c[None]))
            return output, LSTMState(h[0], c[0])

        return run_segments(segment, x, self.start(state, initial), initial, reset)


@register
@dataclass
class LSTMConfig(CoreConfig):
    """An LSTM, one layer."""

    name: ClassVar[str] = "lstm"

    hidden_size: int = 600
    """Units."""

    def build(self, input_size: int) -> LSTMCore:
        check_positive(input_size=input_size, hidden_size=self.hidden_size)
        return LSTMCore(input_size, self.hidden_size)
