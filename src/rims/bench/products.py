"""The matrix products of a call, done again with nothing between them: the time below which its equations
cannot be computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Product(NamedTuple):
    """One product: the operator, and its arguments by position and by name."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Recorder(TorchDispatchMode):
    """Notes each product that torch starts meanwhile; not those inside a fused call, such as nn.LSTM's."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []
        self.flops = 0
        """Floating-point operations of the products noted, a multiply-add being two."""
        self._operands: dict[Any, Tensor] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        count = flop_registry.get(operator._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=result)
            self.products.append(
                Product(
                    operator,
                    tuple(self._like(n, value) for n, value in enumerate(args)),
                    {name: self._like(name, value) for name, value in kwargs.items()},
                )
            )
        return result

    def _like(self, place: int | str, value: Any) -> Any:
        """Random numbers that lie in memory as ``value`` does; the same for all products alike, so that a
        recording takes little memory."""
        if not isinstance(value, Tensor):
            return value
        key = place, value.shape, value.stride(), value.dtype, value.device
        if key not in self._operands:
            length = 1 + sum((size - 1) * step for size, step in zip(value.shape, value.stride()))
            random = torch.randn(length, device=value.device).to(value.dtype)
            self._operands[key] = random.as_strided(value.shape, value.stride())
        return self._operands[key]


def products_of(call: Callable[[], object]) -> tuple[Callable[[], None], int]:
    """A call that does the products of ``call`` again, in their order; and their operations."""
    with Recorder() as recorder:
        call()

    def again() -> None:
        with torch.no_grad():
            for operator, args, kwargs in recorder.products:
                operator(*args, **kwargs)

    return again, recorder.flops
