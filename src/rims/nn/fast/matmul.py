"""Matrix products by whichever library is fast on this machine.

On CPUs that are not Intel's, torch's float32 ``mm`` (MKL) is held to AVX2; oneDNN's inner product is not, and
was 1.1 times as fast on an AMD Zen 4 and 2.4 times on a Zen 5. The two round differently, and a resumed run
must repeat a run bit for bit, so the choice follows from what the machine is, not from a stop watch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

MANY_ROWS = 512
"""From here on a product may go to oneDNN. It prepares for every shape that it meets, which takes longer than
the small products of a step, whose rows differ from step to step."""


def _onednn(x: Tensor, w: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), w.t(), None, "none", [], "")


@cache
def onednn_wins() -> bool:
    """Whether oneDNN's products are there and expected to be faster than ``mm``."""
    backends = torch.backends
    if not (backends.mkldnn.is_available() and backends.mkldnn.enabled and backends.mkl.is_available()):
        return False
    try:
        vendor = Path("/proc/cpuinfo").read_text().split("vendor_id", 1)[1].split("\n", 1)[0]
        _onednn(torch.ones(16, 16), torch.ones(16, 16))
    except (OSError, IndexError, AttributeError, RuntimeError):  # another system, or a torch without it
        return False
    return "Intel" not in vendor and "AVX512" in backends.cpu.get_cpu_capability()


def product(x: Tensor, w: Tensor) -> Tensor:
    """``x [n, i] @ w [i, o]``, multiplied in the dtype of ``w`` and returned in the dtype of ``x``."""
    if x.dtype != w.dtype:
        return torch.mm(x.to(w.dtype), w).to(x.dtype)
    if x.shape[0] >= MANY_ROWS and x.dtype == torch.float32 and onednn_wins():
        return _onednn(x, w)
    return torch.mm(x, w)


def outer(x: Tensor, dy: Tensor) -> Tensor:
    """``x [n, i].T @ dy [n, o]``: the gradient of a weight; ``mm`` takes x as it lies."""
    return torch.mm(x.t(), dy)


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
    for k, (x, w, out) in enumerate(zip(xs, ws, outs)):
        if x.dtype != w.dtype:
            result = product(x, w) if biases is None else product(x, w).add_(biases[k])
            out.add_(result) if add else out.copy_(result)
        elif add:
            out.addmm_(x, w)
        elif biases is not None:
            torch.addmm(biases[k], x, w, out=out)
        else:
            torch.mm(x, w, out=out)


def batched(x: Tensor, w: Tensor, out: Tensor, *, add: bool = False) -> None:
    """As :func:`grouped` for all rows of all RIMs, ``x [n * K, i]`` and ``out [n * K, o]``, by one call: with
    as many rows for each, MKL's batched product is faster than one after the other."""
    xs, outs = (rows.view(-1, len(w), rows.shape[1]).transpose(0, 1) for rows in (x, out))
    if x.dtype != w.dtype:
        result = torch.bmm(xs.to(w.dtype), w)
        outs.add_(result) if add else outs.copy_(result)
    elif add:
        outs.baddbmm_(xs, w)
    else:
        torch.bmm(xs, w, out=outs)


def accumulate(total: Tensor, x: Tensor, dy: Tensor) -> None:
    """``total [i, o] += x [n, i].T @ dy [n, o]``: the gradient of a weight."""
    total.addmm_(x.t(), dy)
