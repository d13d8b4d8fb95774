"""Sizes that make systems comparable."""

from __future__ import annotations

import math


def units_for_parameters(gates: int, input_size: int, parameters: int) -> int:
    """Units h of the nn.LSTM (4 gates) or nn.GRU (3) whose ``gates * h * (input_size + h + 2)`` parameters
    come nearest to ``parameters``; at least 1."""
    b = input_size + 2
    return max(1, round((math.sqrt(b * b + 4 * parameters / gates) - b) / 2))
