"""The relational memory core: memory slots that attend to each other and to the input at every step
(Santoro et al. 2018, arXiv 1806.01822; the authors' released code).

Shapes: T time, B batch, I input size, S slots, E key size of a head, F numbers of a slot (heads * head size).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rims.cores.base import Core, CoreConfig, register
from rims.cores.steps import run_steps
from rims.nn.checks import check_choice, check_positive

INPUT_BIAS, FORGET_BIAS = 0.0, 1.0
"""Added to the gates before the sigmoid: constants of the released code, not parameters."""


class RMCCore(Core):
    """Relational memory core. The state is the memory ``[B, S, F]``; it is read flattened, ``[B, S * F]``.

    One step, from memory M and input x (sections 3.1 to 3.3, figure 1):

        xi  = W_in x                            the input as one more row
        M+  = [M; xi]
        for each block:
            q, k, v = LN(W_qkv M+)              normalised together, before they are split into heads
            M+ = LN(M+ + softmax(q k^T / sqrt(E)) v)
            M+ = LN(M+ + MLP(M+))               ReLU between the MLP's layers, none after the last
        M~  = M+ without its last row
        i, f = W_x xi + W_m tanh(M)
        M'  = sigmoid(i + 0) * tanh(M~) + sigmoid(f + 1) * M

    ``gate="unit"`` has a gate for each number of a slot, ``"memory"`` one for each slot, ``"none"`` keeps
    M~ as it is. As in the released code, blocks have W_qkv and norms of their own and share the MLP, nothing
    is projected after the heads, and there is no output gate, which the paper's equations have.

    The memory starts as the identity, cut or padded with zeros. By this alone slots differ, for they share
    all weights; if there are more slots than F, the surplus ones start and remain equal.

    Weights start as the released code's: from a normal distribution of deviation 1 / sqrt(numbers read), cut
    at two deviations; biases at 0. That the norm's shift on keys cancels in the softmax is the source's
    redundancy, kept for its recorded weights.
    """

    def __init__(
        self,
        input_size: int,
        num_slots: int,
        num_heads: int,
        head_size: int,
        key_size: int,
        num_blocks: int,
        mlp_layers: int,
        gate: Literal["unit", "memory", "none"],
    ) -> None:
        super().__init__()
        features = num_heads * head_size
        self.num_slots, self.features, self.num_heads = num_slots, features, num_heads
        self.head_sizes = (key_size, key_size, head_size)
        self.input_size, self.output_size = input_size, num_slots * features
        self.input = nn.Linear(input_size, features)
        qkv = num_heads * sum(self.head_sizes)
        blocks = range(num_blocks)
        self.qkv = nn.ModuleList(nn.Sequential(nn.Linear(features, qkv), nn.LayerNorm(qkv)) for _ in blocks)
        self.attention_norm = nn.ModuleList(nn.LayerNorm(features) for _ in blocks)
        self.mlp_norm = nn.ModuleList(nn.LayerNorm(features) for _ in blocks)
        self.mlp = nn.Sequential(nn.Linear(features, features))
        for _ in range(mlp_layers - 1):
            self.mlp.extend((nn.ReLU(), nn.Linear(features, features)))
        self.gate = gate
        if gate != "none":
            gates = 2 * (features if gate == "unit" else 1)
            self.input_gates, self.memory_gates = nn.Linear(features, gates), nn.Linear(features, gates)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                deviation = 1 / math.sqrt(module.in_features)
                nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
                nn.init.zeros_(module.bias)

    def initial_state(self, batch_size: int) -> Float[Tensor, "B S F"]:
        weight = self.input.weight
        identity = torch.eye(self.num_slots, self.features, dtype=weight.dtype, device=weight.device)
        return identity.expand(batch_size, -1, -1)

    def forward(
        self,
        x: Float[Tensor, "T B I"],
        state: Float[Tensor, "B S F"] | None = None,
        reset: Bool[Tensor, "T B"] | None = None,
    ) -> tuple[Float[Tensor, "T B O"], Float[Tensor, "B S F"]]:
        self.check_input(x, reset)
        initial = self.initial_state(x.shape[1])
        # What the input's row says in the first block and to the gates does not wait for the memory.
        row = self.input(x)
        inputs = [row, self.qkv[0](row)]
        if self.gate != "none":
            i, f = self.input_gates(row).chunk(2, dim=-1)
            inputs.append(torch.cat([i + INPUT_BIAS, f + FORGET_BIAS], dim=-1))
        return run_steps(self._step, inputs, self.start(state, initial), initial, reset)

    def _step(self, row: Tensor, row_qkv: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        """``rest``: the input's part of the gates, if there are gates, and the memory."""
        *gates, memory = rest
        new = self._relate(memory, row, row_qkv)
        if gates:
            i, f = (gates[0][:, None] + self.memory_gates(memory.tanh())).sigmoid().chunk(2, dim=-1)
            new = i * new.tanh() + f * memory
        return new.flatten(1), new

    def _relate(self, memory: Tensor, row: Tensor, row_qkv: Tensor) -> Tensor:
        """M~ from M, xi and what the first block makes of xi."""
        rows = torch.cat([memory, row[:, None]], dim=1)
        qkv = torch.cat([self.qkv[0](memory), row_qkv[:, None]], dim=1)
        for n, (attention_norm, mlp_norm) in enumerate(zip(self.attention_norm, self.mlp_norm)):
            if n > 0:
                qkv = self.qkv[n](rows)
            if n == len(self.qkv) - 1:  # from here on nobody hears the input's row
                rows = rows[:, : self.num_slots]
            rows = attention_norm(rows + self._attend(qkv, rows.shape[1]))
            rows = mlp_norm(rows + self.mlp(rows))
        return rows

    def _attend(self, qkv: Tensor, readers: int) -> Tensor:
        """What the first ``readers`` rows hear of all rows, heads side by side."""
        heads = qkv.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        q, k, v = heads.split(self.head_sizes, dim=-1)
        heard = F.scaled_dot_product_attention(q[:, :, :readers], k, v)
        return heard.transpose(1, 2).flatten(2)


@register
@dataclass
class RMCConfig(CoreConfig):
    """A relational memory core; the paper on RIMs gives no sizes."""

    name: ClassVar[str] = "rmc"
    size: ClassVar[str] = "head_size"

    num_slots: int = 4
    """Memory slots."""

    num_heads: int = 4
    """Heads of the attention."""

    head_size: int = 75
    """Value size of a head; a slot has num_heads * head_size numbers."""

    key_size: int | None = None
    """Key size of a head; None: as head_size."""

    num_blocks: int = 1
    """Rounds of attention and MLP in a step."""

    mlp_layers: int = 2
    """Layers of the MLP, which the blocks share."""

    gate: Literal["unit", "memory", "none"] = "unit"
    """Gates for each number of a slot, for each slot, or none."""

    def build(self, input_size: int) -> RMCCore:
        options = {**vars(self), "key_size": self.head_size if self.key_size is None else self.key_size}
        sizes = {name: value for name, value in options.items() if name != "gate"}
        check_positive(input_size=input_size, **sizes)
        check_choice("gate", self.gate, ("unit", "memory", "none"))
        return RMCCore(input_size, **options)
