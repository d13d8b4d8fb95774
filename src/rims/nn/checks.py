"""Arguments, checked: what was given and what is expected, in one line."""

from __future__ import annotations

from typing import SupportsIndex

import torch
from torch import Tensor


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")


def check_positive(**sizes: int) -> None:
    """Raise ValueError unless every size is an integer of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, SupportsIndex):
            raise ValueError(f"{name} is {size!r}; expected an integer")
        if size < 1:
            raise ValueError(f"{name} is {size}; expected at least 1")


def check_device(device: torch.device, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all are on the weights' ``device``: the fast path reads memory by address."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} is on device {tensor.device}; expected the weights', {device}")


def check_shape(shape: tuple[int, ...], **tensors: Tensor) -> None:
    """Raise ValueError unless all have this ``shape``."""
    for name, tensor in tensors.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {list(shape)}")


def split_state(hx: object, cell: str, *names: str) -> tuple[Tensor, Tensor]:
    """h and c of a state that a caller gave, h twice with GRU dynamics. Raises ValueError, with the ``names``
    of both."""
    if cell == "gru" and isinstance(hx, Tensor):
        return hx, hx
    parts = tuple(hx) if isinstance(hx, (tuple, list)) else ()
    if cell == "lstm" and len(parts) == 2 and all(isinstance(part, Tensor) for part in parts):
        return parts
    given = "a tensor" if isinstance(hx, Tensor) else type(hx).__name__
    if cell == "lstm" and parts:
        given = f"({', '.join(type(part).__name__ for part in parts)})"
    wanted = f"a pair ({', '.join(names)})" if cell == "lstm" else f"the tensor {names[0]}"
    raise ValueError(f"hx is {given}; expected {wanted} for cell={cell!r}")
