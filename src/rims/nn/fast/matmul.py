"""Matrix products by whichever library is fast on this machine.

On some CPUs torch's float32 ``mm`` runs through a library held to AVX2, and oneDNN's inner product is 2.4
times as fast on the same operands; on others the two are equal. The two round differently, and a run must
not depend on a stop watch, so oneDNN is taken only where it wins by a margin that noise does not reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

MARGIN = 1.5  # machines seen so far: 1.1 or 2.4


def _onednn(x: Tensor, w: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), w.t(), None, "none", [], "")


def _best_time(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, w)
        times.append(time.perf_counter() - start)
    return min(times)


@cache
def onednn_wins(many_rows: bool) -> bool:
    """Whether oneDNN is clearly faster than ``mm`` here, measured once, in some milliseconds."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    x, w = torch.ones(1024 if many_rows else 64, 256), torch.ones(256, 256)
    try:
        return _best_time(_onednn, x, w) * MARGIN < _best_time(torch.mm, x, w)
    except (AttributeError, RuntimeError):  # a build of torch without it
        return False


def _use_onednn(x: Tensor, w: Tensor) -> bool:
    rows = x.shape[0]
    return rows >= 16 and x.dtype is w.dtype is torch.float32 and onednn_wins(rows >= 512)


def product(x: Tensor, w: Tensor) -> Tensor:
    """``x [n, i] @ w [i, o]``, multiplied in the dtype of ``w`` and returned in the dtype of ``x``."""
    if x.dtype != w.dtype:
        return torch.mm(x.to(w.dtype), w).to(x.dtype)
    return _onednn(x, w) if _use_onednn(x, w) else torch.mm(x, w)


def grouped(
    xs: Iterable[Tensor],
    ws: Iterable[Tensor],
    outs: Iterable[Tensor],
    *,
    biases: Sequence[Tensor] | None = None,
    add: bool = False,
) -> None:
    """``out = x @ w (+ bias)``, or ``out += x @ w``, for each RIM's rows, weight and result; rows may differ
    in number."""
    elsewhere: bool | None = None
    for k, (x, w, out) in enumerate(zip(xs, ws, outs)):
        if elsewhere is None:  # once for all: asking takes as long as a small product
            elsewhere = x.dtype != w.dtype or _use_onednn(x, w)
        if elsewhere:
            result = product(x, w) if biases is None else product(x, w).add_(biases[k])
            out.add_(result) if add else out.copy_(result)
        elif add:
            out.addmm_(x, w)
        elif biases is not None:
            torch.addmm(biases[k], x, w, out=out)
        else:
            torch.mm(x, w, out=out)


def accumulate(total: Tensor, x: Tensor, dy: Tensor) -> None:
    """``total [i, o] += x [n, i].T @ dy [n, o]``: the gradient of a weight."""
    if _use_onednn(x, dy):
        total += _onednn(x.t(), dy)
    else:
        total.addmm_(x.t(), dy)
