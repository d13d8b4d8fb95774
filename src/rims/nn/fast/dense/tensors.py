"""What goes into the dense sequence, what it leaves, and what a loop over time has to do.

Shapes: see :mod:`rims.nn.fast.dense`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Options:
    """What the sequence does, apart from its tensors. Hashable: with the tensors' shapes it is the key of a
    captured graph."""

    num_rims: int
    num_active: int
    gru: bool
    input_heads: int
    heads: int
    """Of the communication; 0 without it."""
    reverse: bool
    squash: bool
    """Whether the tanh of what is heard is added, rather than it."""
    product_dtype: torch.dtype
    """Of the operands of products; all else is in the dtype of the state."""
    input_scale: float = 1.0
    comm_scale: float = 1.0
    """What dropout multiplies by where it keeps."""

    def steps(self, length: int) -> range:
        """The steps in the order of computation."""
        return range(length)[::-1] if self.reverse else range(length)


class Inputs(NamedTuple):
    """All tensors of a call; gradients reach those up to ``out_bias``."""

    x: Tensor
    """``[T, B, I]``."""
    h0: Tensor
    c0: Tensor
    """``[B, K * D]``; with a GRU ``c0`` is not looked at."""
    input_query: Tensor
    input_key: Tensor
    input_value: Tensor
    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    out: Tensor | None
    out_bias: Tensor | None
    reset: Tensor | None = None
    """``[T, B]``: the state becomes zero before the computation of step t."""
    valid: Tensor | None = None
    """``[T, B]``: elsewhere rows stand still."""
    disabled: Tensor | None = None
    """``[K]``: removed RIMs."""
    input_keep: Tensor | None = None
    """``[T, B, K, R * V]``: what dropout keeps of what the RIMs read."""
    comm_keep: Tensor | None = None
    """``[T, B, K, D]``: what dropout keeps of what the RIMs hear."""


NUM_DIFFERENTIABLE = Inputs._fields.index("reset")


class Hoisted(NamedTuple):
    """What is known of all steps before the first."""

    keys: Tensor
    """``[R, N, E]``, divided by sqrt(E)."""
    values: Tensor
    """``[R, N, V]``."""
    asks: Tensor
    """u, ``[R, T, B, K, D]``."""
    reads: Tensor
    """P, ``[R, T, B, K, G]``."""


class Saved(NamedTuple):
    """What the loop leaves for the backward pass. A loop may pad E and V of a head."""

    states: Tensor
    """h after each step, ``[T, B, K, D]``."""
    memory: Tensor
    """c after each step, ``[T, B, K, D]``; with a GRU nothing is read from it."""
    active: Tensor
    """``[T, B, K]``."""
    attention: Tensor
    """a, ``[R, T, B, K]``."""
    gates: Tensor
    """``[T, B, K, 4 * D]``: input, forget, cell, output; with a GRU reset, update, new, and new's sum over
    the state. Of active RIMs alone."""
    told: Tensor | None
    """The states that are heard, ``[T, B, K, D]``."""
    qkv: Tensor | None
    """Queries, keys and values of the communication, ``[T, B, K, Q]``."""
    hearing: Tensor | None
    """Its attention, ``[T, B, H, K, K]``, zero for RIMs that are not active."""
    heard: Tensor | None
    """``[T, B, K, H * V]``. Of active RIMs alone."""
    squashed: Tensor | None
    """With ``squash``, tanh of what was heard, ``[T, B, K, D]``. Of active RIMs alone."""


class Pieces(NamedTuple):
    """What the backward loop leaves to form gradients from; zero for RIMs that are not active, except
    ``d_qkv``."""

    d_input: Tensor
    """Of the gates' sums over the input, ``[T, B, K, G]``."""
    d_state: Tensor
    """Of their sums over the state; with an LSTM the same tensor."""
    d_scores: Tensor
    """Of the input attention, ``[R, T, B, K]``."""
    d_qkv: Tensor | None
    """``[T, B, K, Q]``."""
    d_out: Tensor | None
    """Of the projection of what was heard, ``[T, B, K, D]``."""
    dh0: Tensor
    dc0: Tensor
    """``[B, K, D]``."""


@runtime_checkable
class Loop(Protocol):
    """The part that goes step by step."""

    def forward(self, o: Options, i: Inputs, asks: Tensor, reads: Tensor, keep: bool) -> Saved:
        """``keep``: whether a backward pass may follow. If not, what only it needs may have any content, and
        any length in time."""

    def backward(
        self, o: Options, i: Inputs, asks: Tensor, reads: Tensor, s: Saved, dy: Tensor, dh: Tensor, dc: Tensor
    ) -> Pieces:
        """From the gradients of all states ``[T, B, K, D]`` and of the last h and c ``[B, K, D]``."""
