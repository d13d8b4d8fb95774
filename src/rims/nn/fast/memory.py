"""Memory for the large buffers of a sequence, and of a process that trains.

Fresh memory comes from the system in pages of 4 kB, each found missing, zeroed and mapped at its first
touch: 0.4 ms a MB where this was measured, ten times as long as filling it. Linux can give 2 MB at once to
those that ask. A hint only: the values are the same with and without.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import cache

from torch import Tensor

HUGE = 2 << 20
"""Bytes of a large page."""
ADVICE = 14
"""MADV_HUGEPAGE."""


MMAP_MAX, TRIM_THRESHOLD = -4, -1
"""What mallopt (glibc) sets: how many blocks come from the system one by one; how much free memory at the
heap's end is given back."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for what it allocates next; whether the system can.

    Left alone, the C library gives large blocks back at once, and the next update finds every page missing
    again: a tenth of a training run's time here, more of a long sequence's. A choice for a whole process,
    so the commands make it, never the layer. Linux with glibc only.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, 2**31 - 1))


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system's call; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        call = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    call.argtypes, call.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return call


def empty(like: Tensor, *shape: int) -> Tensor:
    """``like.new_empty(shape)``, in large pages where it is large and on a CPU."""
    new = like.new_empty(shape)
    advise(new)
    return new


def advise(new: Tensor) -> None:
    """Ask for large pages in the part of ``new``'s memory that fills them whole."""
    size = new.numel() * new.element_size()
    if size < 2 * HUGE or new.device.type != "cpu":
        return
    call = _madvise()
    if call is not None:
        first = -(-new.data_ptr() // HUGE) * HUGE
        call(first, (new.data_ptr() + size - first) // HUGE * HUGE, ADVICE)


def zeros(like: Tensor, shape: Sequence[int]) -> Tensor:
    """``like.new_zeros(shape)``, likewise."""
    return empty(like, *shape).zero_()
