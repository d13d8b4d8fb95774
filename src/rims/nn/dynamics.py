"""The RIMs' own recurrent networks: K LSTMs or GRUs of D units that share nothing (paper 2.3, equation 3).

Shapes: B batch, K RIMs, D units of a RIM, N inputs of a RIM. Weights are ``[K, in, gates * D]``, used as ``y
= x @ w``; gates are in torch's order (LSTM: input, forget, cell, output; GRU: reset, update, new).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Dynamics(nn.Module):
    """Weights of K independent networks; subclasses say how they move the state."""

    gates: int

    def __init__(
        self,
        input_size: int,
        rim_size: int,
        num_rims: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(num_rims, *shape, device=device, dtype=dtype))

        self.weight_ih = empty(input_size, self.gates * rim_size)
        self.weight_hh = empty(rim_size, self.gates * rim_size)
        # Two biases, one of them redundant, because nn.LSTM and the released code have two.
        self.bias_ih = empty(self.gates * rim_size) if bias else None
        self.bias_hh = empty(self.gates * rim_size) if bias else None

    def extra_repr(self) -> str:
        num_rims, input_size, _ = self.weight_ih.shape
        return f"{input_size}, {self.weight_hh.shape[1]}, num_rims={num_rims}"

    def preactivations(
        self, u: Float[Tensor, "B K N"], h: Float[Tensor, "B K D"]
    ) -> tuple[Float[Tensor, "B K GD"], Float[Tensor, "B K GD"]]:
        """Every gate's sum over the input and over the state."""
        from_input = torch.einsum("bkn,kng->bkg", u, self.weight_ih)
        from_state = torch.einsum("bkd,kdg->bkg", h, self.weight_hh)
        if self.bias_ih is None or self.bias_hh is None:
            return from_input, from_state
        return from_input + self.bias_ih, from_state + self.bias_hh


class LSTMDynamics(Dynamics):
    """Long short-term memory (Hochreiter & Schmidhuber 1997), as torch.nn.LSTMCell."""

    gates = 4

    def forward(
        self, u: Float[Tensor, "B K N"], h: Float[Tensor, "B K D"], c: Float[Tensor, "B K D"]
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B K D"]]:
        """The next hidden and cell state."""
        from_input, from_state = self.preactivations(u, h)
        i, f, g, o = (from_input + from_state).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class GRUDynamics(Dynamics):
    """Gated recurrent unit (Cho et al. 2014), as torch.nn.GRUCell."""

    gates = 3

    def forward(
        self, u: Float[Tensor, "B K N"], h: Float[Tensor, "B K D"]
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B K D"]]:
        """The next hidden state, and how far the update gate lets anything new be written (1 - z)."""
        from_input, from_state = self.preactivations(u, h)
        r_input, z_input, n_input = from_input.chunk(3, dim=-1)
        r_state, z_state, n_state = from_state.chunk(3, dim=-1)
        z = torch.sigmoid(z_input + z_state)
        n = torch.tanh(n_input + torch.sigmoid(r_input + r_state) * n_state)
        return (1 - z) * n + z * h, 1 - z
