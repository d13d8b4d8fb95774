"""The control without memory behind the Core contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from rims.cores.base import Core, CoreConfig, register
from rims.nn.checks import check_positive


class FeedForwardCore(Core):
    """One layer of tanh units that sees each step alone: what a task needs no memory for, this learns too.
    The state is empty, ``[B, 0]``, so a reset changes nothing."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(input_size, hidden_size)
        self.input_size = input_size
        self.output_size = hidden_size

    def initial_state(self, batch_size: int) -> Float[Tensor, "B 0"]:
        return self.layer.weight.new_zeros(batch_size, 0)

    def forward(
        self,
        x: Float[Tensor, "T B I"],
        state: Float[Tensor, "B 0"] | None = None,
        reset: Bool[Tensor, "T B"] | None = None,
    ) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "B 0"]]:
        self.check_input(x, reset)
        return self.layer(x).tanh(), self.start(state, self.initial_state(x.shape[1]))


@register
@dataclass
class FeedForwardConfig(CoreConfig):
    """A layer without memory, the control."""

    name: ClassVar[str] = "feedforward"
    recurrent: ClassVar[bool] = False

    hidden_size: int = 600
    """Units."""

    def build(self, input_size: int) -> FeedForwardCore:
        check_positive(input_size=input_size, hidden_size=self.hidden_size)
        return FeedForwardCore(input_size, self.hidden_size)
