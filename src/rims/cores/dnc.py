"""The Differentiable Neural Computer behind the Core contract.

Shapes: B batch, H controller units, N slots of width W, R heads that read, K that write.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rims.cores.base import CoreConfig, register
from rims.cores.compiled import StepCore
from rims.nn.checks import check_positive

EPSILON = 1e-6
"""The released code's, in cosines and in the usage."""


class DNCState(NamedTuple):
    """Controller, what was read, memory, and what decides where to write and read next."""

    h: Float[Tensor, "B H"]
    c: Float[Tensor, "B H"]
    reads: Float[Tensor, "B RW"]
    memory: Float[Tensor, "B N W"]
    usage: Float[Tensor, "B N"]
    """How much of a slot is in use, 0 to 1."""
    link: Float[Tensor, "B K N N"]
    """[i, j]: how surely slot i was the next that the head wrote to after slot j."""
    precedence: Float[Tensor, "B K N"]
    """How surely the head's last write was to a slot."""
    read_weights: Float[Tensor, "B R N"]
    write_weights: Float[Tensor, "B K N"]


def content(
    memory: Float[Tensor, "B N W"], key: Float[Tensor, "B X W"], strength: Float[Tensor, "B X 1"]
) -> Float[Tensor, "B X N"]:
    """Weights of X heads by the cosine between key and slot."""
    lengths = [((v * v).sum(2, keepdim=True) + EPSILON).sqrt() for v in (key, memory)]
    cosine = key @ memory.mT / (lengths[0] * lengths[1].mT + EPSILON)
    return (strength * cosine).softmax(-1)


def allocation(usage: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Weights of slots to write to: the least used as far as it is free, then the next with what remains."""
    free = 1 - (EPSILON + (1 - EPSILON) * usage)  # rounded as in the released code, which decides near ties
    free, slots = free.sort(dim=1, descending=True, stable=True)  # all slots tie at first: in their order
    taken_before = F.pad(1 - free[:, :-1], (1, 0), value=1.0).cumprod(1)
    return torch.zeros_like(usage).scatter(1, slots, free * taken_before)


def write(
    memory: Float[Tensor, "B N W"],
    weights: Float[Tensor, "B K N"],
    erase: Float[Tensor, "B K W"],
    value: Float[Tensor, "B K W"],
) -> Float[Tensor, "B N W"]:
    """Memory after all heads have erased, then all have added."""
    for w, e in zip(weights.unbind(1), erase.unbind(1)):
        memory = torch.addcmul(memory, memory * e[:, None], w[:, :, None], value=-1)
    return torch.baddbmm(memory, weights.mT, value)


def follow(
    link: Float[Tensor, "B K N N"], precedence: Float[Tensor, "B K N"], weights: Float[Tensor, "B K N"]
) -> tuple[Float[Tensor, "B K N N"], Float[Tensor, "B K N"]]:
    """Link and precedence after a write; the link is to what was written before, hence the old precedence."""
    to, other = weights[..., None], weights[..., None, :]
    link = torch.addcmul((1 - to - other) * link, to, precedence[..., None, :])
    link = link * (1 - torch.eye(weights.shape[2], dtype=link.dtype, device=link.device))
    return link, torch.addcmul(weights, 1 - weights.sum(2, keepdim=True), precedence)


class DNCCore(StepCore):
    """Differentiable Neural Computer (Graves et al. 2016, Nature 538, pages 471 to 476), as its authors'
    released code computes it, with an LSTM controller.

    One step, for an input x and memory M; C(M, k, b) = softmax( strength(b) cos(k, M_i) ):

        h, c  = clip(LSTM([x, r], h, c))                        r: what was read in the step before
        interface = W h + bias                                  all that follows in capitals:
        u     = u + (1 - u) (1 - prod_w(1 - w_w))               no gradient into the last write w_w
        u     = u prod_r(1 - sigmoid(F_r) w_r)                  free what was read
        a     = (1 - u_i) prod(u_j: j less used than i)         allocation
        w_w   = sigmoid(G) (sigmoid(A) a + (1 - sigmoid(A)) C(M, K_w, B_w))
        M     = M prod_w(1 - w_w sigmoid(E)^T) + sum_w w_w V^T
        L_ij  = (1 - w_i - w_j) L_ij + w_i p_j,  L_ii = 0       w = w_w, p: precedence before this write
        p     = (1 - sum w) p + w
        w_r   = P_1 L^T w_r + P_2 L w_r + P_3 C(M, K_r, B_r)    P = softmax; the memory just written
        r     = w_r M
        output = clip(W_out [h, r] + bias)

    With several write heads u += (1 - u) sigmoid(G) sigmoid(A) a between one head's allocation and the next;
    each has its own L, p and pair of modes P. ``strength`` is softplus, as in the released code, or
    "oneplus", 1 + softplus, as in the paper. The state starts at zero. The forget gate's bias starts at 1;
    the released code has one that starts at 0, and adds 1 at every step.

    The state carries 2 H + R W + N W + N + K N (N + 2) + R N numbers: 1200 with the default sizes, as many as
    an LSTM RIM of 600 units. Memory and heads are those of the released example (repeated copying), whose
    controller has 64 units. The link costs N^2: 64 slots are ample.

    Example:
        >>> import torch
        >>> from rims.cores import DNCCore
        >>> output, state = DNCCore(input_size=8)(torch.randn(5, 3, 8))
        >>> output.shape, state.memory.shape, state.link.shape
        (torch.Size([5, 3, 100]), torch.Size([3, 16, 16]), torch.Size([3, 1, 16, 16]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 256,
        output_size: int = 100,
        memory_slots: int = 16,
        memory_width: int = 16,
        num_reads: int = 4,
        num_writes: int = 1,
        strength: Literal["softplus", "oneplus"] = "softplus",
        clip: float = 20.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.input_size, self.output_size, self.hidden_size = input_size, output_size, hidden_size
        self.memory_slots, self.memory_width = memory_slots, memory_width
        self.num_reads, self.num_writes = num_reads, num_writes
        self.strength, self.clip, self.compile_step = strength, clip, compile
        self.shapes = [
            (num_writes, memory_width),  # write key
            (num_writes, memory_width),  # value
            (num_writes, memory_width),  # erase
            (num_reads, memory_width),  # read key
            (num_writes, 1),  # write strength
            (num_reads, 1),  # read strength
            (num_reads, 1),  # free gate
            (num_writes, 1),  # allocation gate
            (num_writes, 1),  # write gate
            (num_reads, 2 * num_writes + 1),  # modes: backward and forward along each link, content
        ]
        """What ``interface`` gives, in this order."""
        self.input_gates = nn.Linear(input_size, 4 * hidden_size)
        """Input, forget, candidate, output: the part that depends on x alone."""
        self.state_gates = nn.Linear(num_reads * memory_width + hidden_size, 4 * hidden_size, bias=False)
        """The part that depends on [r, h]."""
        self.interface = nn.Linear(hidden_size, sum(map(math.prod, self.shapes)))
        self.out = nn.Linear(hidden_size + num_reads * memory_width, output_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the released code: truncated normal weights of deviation 1 / sqrt(fan-in), zero biases."""
        fan_in = self.input_size + self.state_gates.in_features
        for layer in (self.input_gates, self.state_gates, self.interface, self.out):
            gates = layer in (self.input_gates, self.state_gates)
            std = (fan_in if gates else layer.in_features) ** -0.5
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.input_gates.bias[self.hidden_size : 2 * self.hidden_size] = 1.0

    def initial_state(self, batch_size: int) -> DNCState:
        N, W, R, K = self.memory_slots, self.memory_width, self.num_reads, self.num_writes
        H = self.hidden_size
        shapes = [(H,), (H,), (R * W,), (N, W), (N,), (K, N, N), (K, N), (R, N), (K, N)]
        return DNCState(*(self.out.weight.new_zeros(batch_size, *shape) for shape in shapes))

    def forward(
        self,
        x: Float[Tensor, "T B I"],
        state: DNCState | None = None,
        reset: Bool[Tensor, "T B"] | None = None,
    ) -> tuple[Float[Tensor, "T B O"], DNCState]:
        self.check_input(x, reset)
        initial = self.initial_state(x.shape[1])
        seen, last = self.run([self.input_gates(x)], state, initial, reset)
        return self.out(seen).clamp(-self.clip, self.clip), last

    def step(self, gates: Float[Tensor, "B G"], state: DNCState) -> tuple[Float[Tensor, "B S"], DNCState]:
        """``[h, r]`` and the state after one step, for the input's part of the gates."""
        previous = torch.cat([state.reads, state.h], 1)
        i, f, g, o = torch.addmm(gates, previous, self.state_gates.weight.t()).chunk(4, 1)
        c = torch.addcmul(f.sigmoid() * state.c, i.sigmoid(), g.tanh()).clamp(-self.clip, self.clip)
        h = o.sigmoid() * c.tanh()  # within -1 .. 1: clipping it, as the released code does, changes nothing

        parts = self.interface(h).split([a * b for a, b in self.shapes], 1)
        (
            write_key, value, erase, read_key,
            write_strength, read_strength, free, allocate, write_gate, modes,
        ) = (part.view(-1, *shape) for part, shape in zip(parts, self.shapes))  # fmt: skip

        # As the released code: no gradient into the last write.
        written = 1 - (1 - state.write_weights.detach()).prod(1)
        usage = torch.addcmul(state.usage, 1 - state.usage, written)
        for kept in (1 - free.sigmoid() * state.read_weights).unbind(1):
            usage = usage * kept

        allocate, write_gate = allocate.sigmoid(), write_gate.sigmoid()
        found = content(state.memory, write_key, self.positive(write_strength))
        given = self.allocations(usage, allocate * write_gate)
        write_weights = write_gate * torch.lerp(found, given, allocate)
        memory = write(state.memory, write_weights, erase.sigmoid(), value)
        link, precedence = follow(state.link, state.precedence, write_weights)

        found = content(memory, read_key, self.positive(read_strength))
        *paths, by_content = modes.softmax(-1).split(1, -1)
        read_weights = by_content * found
        for one, backward, forward in zip(link.unbind(1), paths, paths[self.num_writes :]):
            read_weights = torch.baddbmm(read_weights, backward * state.read_weights, one)
            read_weights = torch.baddbmm(read_weights, forward * state.read_weights, one.mT)
        reads = (read_weights @ memory).flatten(1)
        seen = torch.cat([h, reads], 1)
        return seen, DNCState(h, c, reads, memory, usage, link, precedence, read_weights, write_weights)

    def allocations(
        self, usage: Float[Tensor, "B N"], gates: Float[Tensor, "B K 1"]
    ) -> Float[Tensor, "B K N"]:
        """One allocation a write head; what a head will take, by its gates, is in use for the next."""
        given = [allocation(usage)]
        for gate in gates.unbind(1)[:-1]:
            usage = torch.addcmul(usage, 1 - usage, gate * given[-1])
            given.append(allocation(usage))
        return torch.stack(given, 1)

    def positive(self, strength: Tensor) -> Tensor:
        """Key strengths: softplus, or oneplus from 1 on."""
        return F.softplus(strength) + 1 if self.strength == "oneplus" else F.softplus(strength)


@register
@dataclass
class DNCConfig(CoreConfig):
    """A Differentiable Neural Computer; memory and heads are those of the released example."""

    name: ClassVar[str] = "dnc"

    hidden_size: int = 256
    """Units of the controller, an LSTM."""

    output_size: int = 100
    """Size of what the core puts out."""

    memory_slots: int = 16
    """Slots of the memory; the cost of the links grows with their square."""

    memory_width: int = 16
    """Numbers in a slot."""

    num_reads: int = 4
    """Heads that read."""

    num_writes: int = 1
    """Heads that write."""

    strength: Literal["softplus", "oneplus"] = "softplus"
    """Key strengths: softplus, as the released code, or 1 + softplus, as the paper."""

    clip: float = 20.0
    """Largest magnitude of the controller's cell state and of the output."""

    compile: bool = False
    """Whether the step runs under torch.compile: faster, after tens of seconds at the start and for each new
    batch size."""

    def build(self, input_size: int) -> DNCCore:
        check_positive(
            input_size=input_size,
            hidden_size=self.hidden_size,
            output_size=self.output_size,
            memory_width=self.memory_width,
            num_reads=self.num_reads,
            num_writes=self.num_writes,
        )
        for name, value, least in (("memory_slots", self.memory_slots, 2), ("clip", self.clip, 1)):
            if not value >= least:
                raise ValueError(f"{name} is {value}; expected at least {least}")
        if self.strength not in ("softplus", "oneplus"):
            raise ValueError(f"strength is {self.strength!r}; expected 'softplus' or 'oneplus'")
        return DNCCore(input_size, **vars(self))
