"""What the kernels share: how they are compiled, and functions that Triton lacks or has less exact."""

# A kernel's parameters are pointers and numbers that Triton types at each launch.
# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

STEPS = ("t", "old", "new", "following", "T")
"""Parameters that change from launch to launch: nothing is compiled anew for special values of them."""


def jit(function: Callable[..., Any]) -> Any:
    """``triton.jit`` of the function itself: run-time checks, which tests wrap it in, do not compile."""
    function = inspect.unwrap(function)
    steps = [name for name in STEPS if name in inspect.signature(function).parameters]
    return triton.jit(function, do_not_specialize=steps)


@jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@jit
def tanh(x):
    # Near zero 1 - exp(-2x) loses digits; there, the series.
    s = x * x
    series = x * (1.0 + s * (-0.33333333 + s * (0.13333333 - s * 0.05396825)))
    return tl.where(s < 0.0225, series, 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0)
