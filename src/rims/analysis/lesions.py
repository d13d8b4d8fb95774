"""What breaks when a RIM is removed (paper E.3): the masking study, for any task and any metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Removable(Protocol):
    """A core whose RIMs can be removed, as :class:`rims.cores.RIMCore`."""

    disabled: tuple[int, ...]


@contextlib.contextmanager
def removed(core: Removable, rim: int) -> Iterator[None]:
    """Without the RIM, and those removed before, for a while."""
    before = core.disabled
    core.disabled = (*before, rim)
    try:
        yield
    finally:
        core.disabled = before


def lesions(core: Removable, num_rims: int, measure: Callable[[], T]) -> dict[int | None, T]:
    """What ``measure()`` gives with the core as it is (None), and then without each RIM in turn.

    Example::

        damage = lesions(model.core, 6, lambda: task.measure(model, batch))
        damage[2]["loss"] - damage[None]["loss"]  # what RIM 2 was good for
    """
    found: dict[int | None, T] = {None: measure()}
    for rim in range(num_rims):
        with removed(core, rim):
            found[rim] = measure()
    return found
