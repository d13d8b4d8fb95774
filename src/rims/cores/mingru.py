"""The minGRU (Feng et al. 2024, arXiv 2410.01201): a GRU whose gate does not see the state.

Shapes: T time, B batch, I input, L layers, H units of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rims.cores.base import Core, CoreConfig, register
from rims.cores.steps import run_steps
from rims.nn.checks import check_positive


class MinGRULayer(nn.Module):
    """The recurrence of section 3.1::

        z_t = sigmoid(W_z x_t + b_z)     h~_t = W_h x_t + b_h     h_t = (1 - z_t) h_{t-1} + z_t h~_t

    With ``candidate="positive"``, h~ is g(W_h x + b_h), g(v) = v + 1/2 for v >= 0 and sigmoid(v) below: the
    paper's form for computing in log space (appendix B), the only one of the authors' code.

    Only the last equation is left to the loop over time: one fused operation a step. Parallel scans, by which
    the paper computes it, were slower on a CPU (docs/log.md), where they read and write all of memory again
    and again. Nothing is divided by a product of coefficients or taken to log space: any length is safe.
    """

    def __init__(self, input_size: int, hidden_size: int, candidate: Literal["linear", "positive"]) -> None:
        super().__init__()
        self.candidate = candidate
        self.input = nn.Linear(input_size, 2 * hidden_size)  # z, then h~

    def forward(
        self,
        x: Float[Tensor, "T B I"],
        state: Float[Tensor, "B H"],
        initial: Float[Tensor, "B H"],
        reset: Bool[Tensor, "T B"] | None,
    ) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "B H"]]:
        z, new = self.input(x).chunk(2, dim=-1)
        if self.candidate == "positive":
            new = torch.where(new >= 0, new + 0.5, torch.sigmoid(new))

        # sigmoid(-z) is 1 - sigmoid(z) without cancellation.
        return run_steps(move, (torch.sigmoid(-z), torch.sigmoid(z) * new), state, initial, reset)


def move(
    keep: Float[Tensor, "B H"], write: Float[Tensor, "B H"], h: Float[Tensor, "B H"]
) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]:
    """h after a step, as the step's output and as its state."""
    h = torch.addcmul(write, keep, h)
    return h, h


class MinGRUCore(Core):
    """Layers of :class:`MinGRULayer`, each as in the authors' code::

        x <- x + W_out minGRU(RMSNorm(x)) + b_out     for each layer;     output = RMSNorm(x)

    The gates of a layer do not see its state, so that what it stores cannot depend on what it holds already;
    those of the next layer see what this one holds. One layer does not learn to copy (docs/log.md). The state
    is ``[B, L, H]``, initially zero; the output has the size of the input. Left out: the convolution and the
    feed-forward network that the authors' code has as options of a layer.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 3,
        candidate: Literal["linear", "positive"] = "linear",
    ) -> None:
        super().__init__()
        check_positive(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        if candidate not in ("linear", "positive"):
            raise ValueError(f"candidate is {candidate!r}; expected 'linear' or 'positive'")
        self.input_size = self.output_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.norms = nn.ModuleList(nn.RMSNorm(input_size) for _ in range(num_layers))
        self.layers = nn.ModuleList(
            MinGRULayer(input_size, hidden_size, candidate) for _ in range(num_layers)
        )
        self.outputs = nn.ModuleList(nn.Linear(hidden_size, input_size) for _ in range(num_layers))
        self.last_norm = nn.RMSNorm(input_size)

    def initial_state(self, batch_size: int) -> Float[Tensor, "B L H"]:
        return self.last_norm.weight.new_zeros(batch_size, self.num_layers, self.hidden_size)

    def forward(
        self,
        x: Float[Tensor, "T B I"],
        state: Float[Tensor, "B L H"] | None = None,
        reset: Bool[Tensor, "T B"] | None = None,
    ) -> tuple[Float[Tensor, "T B I"], Float[Tensor, "B L H"]]:
        self.check_input(x, reset)
        initial = self.initial_state(x.shape[1])
        before = self.start(state, initial).unbind(1)
        after = []
        for i, (norm, layer, output) in enumerate(zip(self.norms, self.layers, self.outputs)):
            hidden, last = layer(norm(x), before[i], initial[:, i], reset)
            x = x + output(hidden)
            after.append(last)
        return self.last_norm(x), torch.stack(after, dim=1)


@register
@dataclass
class MinGRUConfig(CoreConfig):
    """A minGRU of several layers."""

    name: ClassVar[str] = "mingru"

    hidden_size: int = 600
    """Units of a layer."""

    num_layers: int = 3
    """Layers (the paper: up to 3)."""

    candidate: Literal["linear", "positive"] = "linear"
    """What is stored: any number, or a positive one as in the paper's log space."""

    def build(self, input_size: int) -> MinGRUCore:
        return MinGRUCore(input_size, **vars(self))
