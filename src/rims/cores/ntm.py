"""The Neural Turing Machine behind the Core contract.

Shapes: B batch, H controller units, N slots of width W, K heads, the R that read before those that write.
Slots come last: elementwise work runs along the longer side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rims.cores.base import CoreConfig, register
from rims.cores.compiled import StepCore
from rims.nn.checks import check_positive

BLANK = 1e-6
"""What fresh memory holds."""
EPSILON = 1e-12
"""Added to squared lengths in the cosine."""
TINY = 1e-30
"""Keeps the logarithm of a weight finite."""


class NTMState(NamedTuple):
    """Controller, what was read, where the heads are, and memory."""

    h: Float[Tensor, "B H"]
    c: Float[Tensor, "B H"]
    reads: Float[Tensor, "B RW"]
    weights: Float[Tensor, "B K N"]
    memory: Float[Tensor, "B W N"]


def address(
    memory: Float[Tensor, "B W N"],
    previous: Float[Tensor, "B K N"],
    key: Float[Tensor, "B K W"],
    strength: Float[Tensor, "B K 1"],
    gate: Float[Tensor, "B K 1"],
    shift: Float[Tensor, "B K S"],
    sharpening: Float[Tensor, "B K 1"],
) -> Float[Tensor, "B K N"]:
    """The heads' weights, from their previous ones (Graves et al. 2014, equations 5 to 9)."""
    by_head = strength * ((key * key).sum(2, keepdim=True) + EPSILON).rsqrt()
    by_slot = ((memory * memory).sum(1, keepdim=True) + EPSILON).rsqrt()
    content = (key @ memory * by_head * by_slot).softmax(-1)
    gated = torch.lerp(previous, content, gate)
    reach = shift.shape[2] // 2
    moved = torch.stack([gated.roll(by, -1) for by in range(reach, -reach - 1, -1)], 2)
    shifted = (shift[..., None] * moved).sum(2)
    # w^y / sum w^y, as a softmax: a high power of many small weights would underflow in every slot.
    return (sharpening * (shifted + TINY).log()).softmax(-1)


def write(
    memory: Float[Tensor, "B W N"],
    weights: Float[Tensor, "B K N"],
    erase: Float[Tensor, "B K W"],
    add: Float[Tensor, "B K W"],
) -> Float[Tensor, "B W N"]:
    """Memory after all heads have erased, then all have added (equations 3 and 4)."""
    for w, e in zip(weights.unbind(1), erase.unbind(1)):
        memory = torch.addcmul(memory, memory * e[:, :, None], w[:, None], value=-1)
    for w, a in zip(weights.unbind(1), add.unbind(1)):
        memory = torch.addcmul(memory, a[:, :, None], w[:, None])
    return memory


class NTMCore(StepCore):
    """Neural Turing Machine (Graves, Wayne & Danihelka 2014, arXiv 1410.5401) with an LSTM controller,
    started as Collier & Beel 2018 (arXiv 1807.08518) found steadiest.

    One step, for an input x and memory M, each head with its own k, b, g, s, y and weights w over the slots:

        h, c       = LSTM([x, r], h, c)                            r: what was read in the step before
        k, b, g, s, y, e, a = clip(W_heads h + bias)               to -20 .. 20; e, a of writing heads alone
        content(i) = softmax_i( softplus(b) cos(k, M_i) )
        gated      = sigmoid(g) content + (1 - sigmoid(g)) w
        shifted(i) = sum_j softmax(s)_j gated(i - j)               j = 1, 0, -1; the slots form a circle
        w(i)       = shifted(i)^(1 + softplus(y)), normalised
        r          = sum_i w(i) M_i                                the heads that read, from M as it was
        M_i        = M_i prod(1 - w(i) sigmoid(e)) + sum w(i) a    then those that write
        output     = W_out [h, r] + bias                           r of all heads

    Memory starts at 1e-6. Controller and reads start at learned vectors, weights at the softmax of learned
    vectors. These are drawn at random: from equal weights all slots would stay equal for ever. The forget
    gate's bias starts at 1, all else as nn.Linear has it. Keys and what is added are linear, as in the paper;
    the code of Collier & Beel has a tanh on both, and writes head after head.

    The state carries 2 H + R W + K N + N W numbers: 3036 with the default sizes, which are the paper's for
    copying; 1200, as many as an LSTM RIM of 600 units, with 40 slots and 150 controller units.

    Example:
        >>> import torch
        >>> from rims.cores import NTMCore
        >>> output, state = NTMCore(input_size=8)(torch.randn(5, 3, 8))
        >>> output.shape, state.weights.shape, state.memory.shape
        (torch.Size([5, 3, 100]), torch.Size([3, 2, 128]), torch.Size([3, 20, 128]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 100,
        output_size: int = 100,
        memory_slots: int = 128,
        memory_width: int = 20,
        num_reads: int = 1,
        num_writes: int = 1,
        shift_taps: int = 3,
        clip: float = 20.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.input_size, self.output_size, self.hidden_size = input_size, output_size, hidden_size
        self.memory_slots, self.memory_width, self.num_reads = memory_slots, memory_width, num_reads
        self.clip, self.compile_step = clip, compile
        heads = num_reads + num_writes
        self.shapes = [
            (heads, memory_width),  # key
            (num_writes, memory_width),  # add
            (num_writes, memory_width),  # erase
            (heads, 1),  # gate
            (heads, 1),  # strength
            (heads, 1),  # sharpening
            (heads, shift_taps),  # shift
        ]
        """What ``heads`` gives, in this order."""
        self.input_gates = nn.Linear(input_size, 4 * hidden_size)
        """Input, forget, candidate, output: the part that depends on x alone."""
        self.state_gates = nn.Linear(num_reads * memory_width + hidden_size, 4 * hidden_size, bias=False)
        """The part that depends on [r, h]."""
        self.heads = nn.Linear(hidden_size, sum(map(math.prod, self.shapes)))
        self.out = nn.Linear(hidden_size + num_reads * memory_width, output_size)
        self.initial_h = nn.Parameter(torch.zeros(hidden_size))
        self.initial_c = nn.Parameter(torch.zeros(hidden_size))
        self.initial_reads = nn.Parameter(torch.randn(num_reads * memory_width))
        self.initial_logits = nn.Parameter(0.2 * torch.randn(heads, memory_slots))
        with torch.no_grad():
            self.input_gates.bias[hidden_size : 2 * hidden_size] = 1.0  # remember at first

    def initial_state(self, batch_size: int) -> NTMState:
        def repeat(row: Tensor) -> Tensor:
            return row.expand(batch_size, *row.shape)

        return NTMState(
            repeat(self.initial_h),
            repeat(self.initial_c),
            repeat(self.initial_reads),
            repeat(self.initial_logits.softmax(-1)),
            self.initial_h.new_full((batch_size, self.memory_width, self.memory_slots), BLANK),
        )

    def forward(
        self,
        x: Float[Tensor, "T B I"],
        state: NTMState | None = None,
        reset: Bool[Tensor, "T B"] | None = None,
    ) -> tuple[Float[Tensor, "T B O"], NTMState]:
        self.check_input(x, reset)
        initial = self.initial_state(x.shape[1])
        seen, last = self.run([self.input_gates(x)], state, initial, reset)
        return self.out(seen), last

    def step(self, gates: Float[Tensor, "B G"], state: NTMState) -> tuple[Float[Tensor, "B S"], NTMState]:
        """``[h, r]`` and the state after one step, for the input's part of the gates."""
        previous = torch.cat([state.reads, state.h], 1)
        gates = torch.addmm(gates, previous, self.state_gates.weight.t())
        i, f, candidate, o = gates.chunk(4, 1)
        c = torch.addcmul(f.sigmoid() * state.c, i.sigmoid(), candidate.tanh())
        h = o.sigmoid() * c.tanh()

        parts = self.heads(h).clamp(-self.clip, self.clip).split([a * b for a, b in self.shapes], 1)
        key, add, erase, gate, strength, sharpening, shift = (
            part.view(-1, *shape) for part, shape in zip(parts, self.shapes)
        )
        weights = address(
            state.memory,
            state.weights,
            key,
            F.softplus(strength),
            gate.sigmoid(),
            shift.softmax(-1),
            1 + F.softplus(sharpening),
        )
        reads = (state.memory @ weights[:, : self.num_reads].mT).mT.flatten(1)
        memory = write(state.memory, weights[:, self.num_reads :], erase.sigmoid(), add)
        return torch.cat([h, reads], 1), NTMState(h, c, reads, weights, memory)


@register
@dataclass
class NTMConfig(CoreConfig):
    """A Neural Turing Machine; sizes are its paper's for copying."""

    name: ClassVar[str] = "ntm"

    hidden_size: int = 100
    """Units of the controller, an LSTM."""

    output_size: int = 100
    """Size of what the core puts out."""

    memory_slots: int = 128
    """Slots of the memory; 40, with 150 units, make the state as large as that of an LSTM RIM of 600."""

    memory_width: int = 20
    """Numbers in a slot."""

    num_reads: int = 1
    """Heads that read."""

    num_writes: int = 1
    """Heads that write."""

    shift_taps: int = 3
    """How many ways a head can move in a step: 3 are one slot back, none, one slot on."""

    clip: float = 20.0
    """Largest magnitude of a head's parameters, before their sigmoid, softplus or softmax."""

    compile: bool = False
    """Whether the step runs under torch.compile: about twice as fast, after tens of seconds at the start and
    for each new batch size."""

    def build(self, input_size: int) -> NTMCore:
        check_positive(
            input_size=input_size,
            hidden_size=self.hidden_size,
            output_size=self.output_size,
            memory_slots=self.memory_slots,
            memory_width=self.memory_width,
            num_reads=self.num_reads,
            num_writes=self.num_writes,
        )
        if self.shift_taps % 2 == 0 or not 3 <= self.shift_taps <= self.memory_slots:
            raise ValueError(
                f"shift_taps is {self.shift_taps}; expected an odd number from 3 to memory_slots, which is "
                f"{self.memory_slots}"
            )
        if not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; expected above 0")
        return NTMCore(input_size, **vars(self))
