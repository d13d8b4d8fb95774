"""Time, memory and the machine's peak.

On a CPU time is the process's CPU time, summed over its threads: other work on the machine disturbs it less
than the wall clock. On a GPU it is the wall clock between synchronisations.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import statistics
import time
import unittest.mock
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rims.nn.fast.matmul import product


@dataclass
class Timing:
    """Seconds of one call, and the ratio to the reference of the same round: median, and quartiles of the
    rounds."""

    seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def timed(call: Callable[[], object], device: torch.device, number: int) -> float:
    """Seconds of one of ``number`` calls."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(number):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / number
    start = time.process_time()
    for _ in range(number):
        call()
    return (time.process_time() - start) / number


def paired(
    calls: Mapping[str, Callable[[], object]],
    reference: str,
    device: torch.device,
    repeats: int,
    number: int = 1,
    warmups: int = 2,
) -> dict[str, Timing]:
    """Time ``calls`` in rounds, one after another in each round, so that what disturbs a round disturbs all
    in it."""
    rounds: list[dict[str, float]] = []
    for call in calls.values():
        for _ in range(warmups):
            call()
    gc.disable()
    try:
        for _ in range(repeats):
            rounds.append({name: timed(call, device, number) for name, call in calls.items()})
    finally:
        gc.enable()
    result = {}
    for name in calls:
        ratios = [r[name] / r[reference] for r in rounds]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if repeats > 1 else ratios * 3
        seconds = statistics.median(r[name] for r in rounds)
        result[name] = Timing(seconds, statistics.median(ratios), low, high)
    return result


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """FLOP/s of a square matrix product by the fastest library that the layer would use."""
    x, w = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    calls = [lambda: product(x, w), lambda: torch.mm(x, w)]
    return 2 * size**3 / min(timed(call, device, 1) for _ in range(4) for call in calls)


def peak_memory(
    make: Callable[..., Callable[[], object]], arguments: tuple[Any, ...], device: torch.device
) -> int | None:
    """Bytes that one call of ``make(*arguments)()`` needs beyond what stood before: its peak, in a process of
    its own.

    None where the system does not tell.
    """
    if device.type == "cuda":
        call = make(*arguments)
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        return None
    # What is freed must go back to the system at once, or the second call would reuse it unseen.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    context = multiprocessing.get_context("spawn")
    with unittest.mock.patch.dict(os.environ, malloc), context.Pool(1) as pool:
        return pool.apply(_resident_peak, (make, arguments, torch.get_num_threads()))


def _resident_peak(
    make: Callable[..., Callable[[], object]], arguments: tuple[Any, ...], threads: int
) -> int:
    torch.set_num_threads(threads)
    call = make(*arguments)
    for _ in range(2):  # libraries, pools and gradients are there before it counts
        call()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])
