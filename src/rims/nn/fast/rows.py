"""Which rows of a step are computed, and in which order.

A row is one RIM of one batch element: row ``b * K + k`` of the states ``[B * K, D]``. Every batch element
that is computed at all has the same number A of active RIMs, so the active rows are a rectangle ``[B', A]``
where attention wants them by batch element, and a list sorted by RIM where the RIMs' own weights want them
together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rims.nn.fast.memory import empty


class Rows:
    """The rows where ``chosen [B, K]`` is true.

    ``by_batch [N]`` lists them batch element by batch element, ``by_rim [N]`` RIM by RIM, ``counts`` says how
    many each RIM has; ``to_rim`` and ``to_batch`` are the permutations between the two orders.
    """

    def __init__(self, chosen: Tensor) -> None:
        num_rims = chosen.shape[1]
        self.by_batch = chosen.reshape(-1).nonzero().squeeze(1)
        self.to_rim = (self.by_batch % num_rims).argsort(stable=True)
        self.by_rim = self.by_batch.index_select(0, self.to_rim)
        self.to_batch = torch.empty_like(self.to_rim)
        self.to_batch[self.to_rim] = torch.arange(len(self.to_rim), device=chosen.device)
        self.counts: list[int] = chosen.sum(0).tolist()

    def per_rim(self, rows: Tensor) -> Sequence[Tensor]:
        """``rows [N, ...]``, in the order by RIM, cut into one piece a RIM."""
        return rows.split(self.counts)


def per_rim(states: Tensor, num_rims: int) -> Sequence[Tensor]:
    """``[n * K, D]`` as K strided ``[n, D]``, one a RIM, without a copy."""
    return states.view(-1, num_rims, states.shape[-1]).unbind(1)


def heads_first(rows: Tensor, heads: int, group: int) -> Tensor:
    """``[G * P, H * E]``, groups of P rows, to ``[G * H, P, E]``, ready for a batched product."""
    return rows.view(-1, group, heads, rows.shape[1] // heads).transpose(1, 2).flatten(0, 1)


def heads_last(parts: Tensor, heads: int) -> Tensor:
    """``[G * H, P, E]`` to ``[G * P, H * E]``."""
    group, size = parts.shape[1:]
    return parts.view(-1, heads, group, size).transpose(1, 2).reshape(-1, heads * size)


def pick(parts: Tensor, heads: int, groups: Tensor | None) -> Tensor:
    """Some of the groups of ``[G * H, P, E]``; all where ``groups`` is None."""
    if groups is None:
        return parts
    return parts.unflatten(0, (-1, heads)).index_select(0, groups).flatten(0, 1)


def put(into: Tensor, heads: int, groups: Tensor | None, parts: Tensor) -> None:
    """The reverse of :func:`pick`, in place; other groups are left as they are."""
    if groups is None:
        into.copy_(parts)
    else:
        into.unflatten(0, (-1, heads)).index_copy_(0, groups, parts.unflatten(0, (-1, heads)))


class Buffer:
    """Space for ``counts[t]`` rows of each step t: side by side if they are kept for the backward pass, else
    the same memory for every step."""

    def __init__(self, counts: Sequence[int], shape: Sequence[int], like: Tensor, keep: bool) -> None:
        self.counts, self.keep = counts, keep
        self.base = empty(like, sum(counts) if keep else max(counts), *shape)
        self.steps: Sequence[Tensor] = cut(self.base, counts, keep)


def cut(base: Tensor, counts: Sequence[int], keep: bool = True) -> Sequence[Tensor]:
    """A buffer's memory, by step."""
    return base.split(counts) if keep else [base[:count] for count in counts]
