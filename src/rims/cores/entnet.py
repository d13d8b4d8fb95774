"""The recurrent entity network: slots with learned keys, each with a gate and a state of its own, all with
the same weights (Henaff et al. 2017, arXiv 1612.03969; the authors' released code).

Shapes: T time, B batch, I input size, S slots, D slot size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rims.cores.base import Core, CoreConfig, register
from rims.cores.steps import run_steps
from rims.nn.checks import check_positive


class EntNetCore(Core):
    """Recurrent entity network, its dynamic memory (equations 2 to 5). The state is ``[B, S, D]``.

    One step of slot j, with state h_j and key w_j, on the input x:

        s   = W_s x + b_s
        g_j = sigmoid(s . (h_j + w_j) + b_j)
        c_j = PReLU(U h_j + V s + W w_j + b)
        h_j <- h_j + g_j c_j
        h_j <- h_j / |h_j|                      (divided by 1 where the norm is 0)

    The slots share U, V, W, b and the PReLU's slopes, one for each of the D numbers. They differ by their
    keys, which are learned, and by b_j, which the released code has and the paper has not. A slot starts at
    its key, h_j = w_j, not normalised. Parameters start from N(0, 0.1), the slopes at 1, where PReLU is the
    identity.

    Differences from the source: s is a projection of the input, there an encoding of a sentence; the state is
    read flattened, ``[B, S * D]``, as RIM's is, there by attention with a question.
    """

    def __init__(self, input_size: int, num_slots: int, slot_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, num_slots * slot_size
        self.input = nn.Linear(input_size, slot_size)
        self.keys = nn.Parameter(torch.empty(num_slots, slot_size))
        self.gate_bias = nn.Parameter(torch.empty(num_slots))
        self.from_state = nn.Linear(slot_size, slot_size, bias=False)  # U
        self.from_input = nn.Linear(slot_size, slot_size)  # V and b
        self.from_key = nn.Linear(slot_size, slot_size, bias=False)  # W
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)
        self.slope = nn.Parameter(torch.ones(slot_size))

    def initial_state(self, batch_size: int) -> Float[Tensor, "B S D"]:
        """The keys; gradients flow into them."""
        return self.keys.expand(batch_size, -1, -1)

    def forward(
        self,
        x: Float[Tensor, "T B I"],
        state: Float[Tensor, "B S D"] | None = None,
        reset: Bool[Tensor, "T B"] | None = None,
    ) -> tuple[Float[Tensor, "T B O"], Float[Tensor, "B S D"]]:
        self.check_input(x, reset)
        initial = self.initial_state(x.shape[1])
        s = self.input(x)
        gate = F.linear(s, self.keys, self.gate_bias)  # s . w_j + b_j
        candidate = self.from_input(s)[:, :, None] + self.from_key(self.keys)  # V s + W w_j + b
        inputs = (s[..., None], gate[..., None], candidate)
        return run_steps(self._step, inputs, self.start(state, initial), initial, reset)

    def _step(self, s: Tensor, gate: Tensor, candidate: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        g = torch.baddbmm(gate, h, s).sigmoid()
        c = torch.addmm(candidate.flatten(0, 1), h.flatten(0, 1), self.from_state.weight.t())
        h = torch.addcmul(h, g, F.prelu(c, self.slope).view_as(h))
        norm = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
        h = h / norm.masked_fill(norm == 0, 1.0)
        return h.flatten(1), h

    @property
    def flops_per_step(self) -> int:
        """As for any core, without W w_j, which is made once for a sequence and all its rows."""
        return super().flops_per_step - 2 * self.from_key.weight.numel() * len(self.keys)


@register
@dataclass
class EntNetConfig(CoreConfig):
    """A recurrent entity network; the paper on RIMs gives no sizes."""

    name: ClassVar[str] = "entnet"
    size: ClassVar[str] = "slot_size"

    num_slots: int = 20
    """Slots (memories)."""

    slot_size: int = 60
    """Numbers of a slot."""

    def build(self, input_size: int) -> EntNetCore:
        check_positive(input_size=input_size, **vars(self))
        return EntNetCore(input_size, **vars(self))
