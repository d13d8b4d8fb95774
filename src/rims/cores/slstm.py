"""The sLSTM of xLSTM (Beck et al. 2024, arXiv 2405.04517, section 2.2).

Shapes: T time, B batch, I input, N heads, D units of a head, H = N D units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from rims.cores.base import Core, CoreConfig, register
from rims.cores.steps import run_steps
from rims.nn.checks import check_positive


class SLSTMState(NamedTuple):
    """Hidden state, cell, normaliser and stabiliser, ``[B, N, D]`` each. What the paper calls c and n is
    exp(m) times what is kept here."""

    h: Float[Tensor, "B N D"]
    c: Float[Tensor, "B N D"]
    n: Float[Tensor, "B N D"]
    m: Float[Tensor, "B N D"]


class SLSTMCore(Core):
    """An LSTM whose input gate is an exponential, so that what is stored can be revised; its cell is an
    average, weighted by the gates (equations 8 to 14)::

        z~, i~, f~, o~ = W x_t + R h_{t-1} + b
        c_t = f c_{t-1} + i z       i = exp(i~)    f = sigmoid(f~) or exp(f~)    z = tanh(z~)
        n_t = f n_{t-1} + i         h_t = sigmoid(o~) c_t / n_t

    R is block-diagonal: a unit hears those of its own head only. Initially c = n = h = 0, so ``c / n`` is the
    average of all z so far.

    Exponentials overflow, so c and n are kept divided by exp(m) (equations 15 to 17), which the quotient does
    not notice::

        m_t = max(log f + m_{t-1}, i~)     i' = exp(i~ - m_t)     f' = exp(log f + m_{t-1} - m_t)

    m_0 is log 0 = -inf, the scale of an empty memory: so m_1 = i~ and n_1 = 1 whatever the gates, and since
    one of i' and f' is always 1, n stays at 1 or above. With m_0 = 0 a first i~ of -1000 would give 0 / 0.
    The paper names no m_0; the released code takes m = i~ while all n are zero, which comes to the same.

    The paper leaves f to be a sigmoid or an exponential; the released code has the sigmoid, the default here.
    This is the cell alone: the block that xLSTM builds around it (normalisation, convolution, projections) is
    left out. Biases of f start between 3 and 6, the others at zero, one of the released code's choices.
    """

    def __init__(
        self,
        input_size: int,
        head_size: int,
        num_heads: int = 4,
        forget_gate: Literal["sigmoid", "exp"] = "sigmoid",
    ) -> None:
        super().__init__()
        check_positive(input_size=input_size, head_size=head_size, num_heads=num_heads)
        if forget_gate not in ("sigmoid", "exp"):
            raise ValueError(f"forget_gate is {forget_gate!r}; expected 'sigmoid' or 'exp'")
        self.head_size = head_size
        self.num_heads = num_heads
        self.forget_gate = forget_gate
        self.input_size = input_size
        self.output_size = num_heads * head_size
        # Rows by head, then by gate: z, i, f, o.
        self.input = nn.Linear(input_size, 4 * self.output_size)
        self.recurrent = nn.Parameter(torch.empty(num_heads, head_size, 4 * head_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from U(-1/sqrt(H), 1/sqrt(H)), as nn.LSTM's; biases of f from 3 to 6 within a head."""
        bound = 1 / math.sqrt(self.output_size)
        nn.init.uniform_(self.input.weight, -bound, bound)
        nn.init.uniform_(self.recurrent, -bound, bound)
        nn.init.zeros_(self.input.bias)
        with torch.no_grad():
            forget = self.input.bias.view(self.num_heads, 4, self.head_size)[:, 2]
            forget.copy_(torch.linspace(3, 6, self.head_size))

    def initial_state(self, batch_size: int) -> SLSTMState:
        zeros = self.recurrent.new_zeros(batch_size, self.num_heads, self.head_size)
        return SLSTMState(zeros, zeros, zeros, torch.full_like(zeros, -torch.inf))

    def forward(
        self,
        x: Float[Tensor, "T B I"],
        state: SLSTMState | None = None,
        reset: Bool[Tensor, "T B"] | None = None,
    ) -> tuple[Float[Tensor, "T B H"], SLSTMState]:
        self.check_input(x, reset)
        initial = self.initial_state(x.shape[1])
        # Heads before the batch, as the batched product with R wants them.
        inputs = self.input(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2).contiguous()
        output, after = run_steps(self._step, (inputs,), self.start(state, initial), initial, reset)
        return output.flatten(2), after

    def _step(
        self, inputs: Float[Tensor, "N B G"], state: SLSTMState
    ) -> tuple[Float[Tensor, "B N D"], SLSTMState]:
        h, c, n, m = (part.transpose(0, 1) for part in state)
        z, i, f, o = torch.baddbmm(inputs, h, self.recurrent).chunk(4, dim=-1)
        log_f = F.logsigmoid(f) if self.forget_gate == "sigmoid" else f
        kept = log_f + m
        m = torch.maximum(kept, i)
        i = torch.exp(i - m)
        f = torch.exp(kept - m)
        c = f * c + i * torch.tanh(z)
        n = f * n + i
        h = torch.sigmoid(o) * c / n
        after = SLSTMState(*(part.transpose(0, 1) for part in (h, c, n, m)))
        return after.h, after


@register
@dataclass
class SLSTMConfig(CoreConfig):
    """The sLSTM of xLSTM, one layer."""

    name: ClassVar[str] = "slstm"
    size: ClassVar[str] = "head_size"

    head_size: int = 150
    """Units of a head."""

    num_heads: int = 4
    """Heads; a unit hears those of its own head."""

    forget_gate: Literal["sigmoid", "exp"] = "sigmoid"
    """Activation of the forget gate."""

    def build(self, input_size: int) -> SLSTMCore:
        return SLSTMCore(input_size, **vars(self))
