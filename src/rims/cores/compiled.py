"""Cores that are defined by one step, run as it is written or under torch.compile."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rims.cores.base import Core, State, map_state
from rims.cores.steps import run_steps


class StepCore(Core):
    """A core with ``output, state = step(*inputs of one time, state)``."""

    compile_step: bool = False
    """Whether the step is compiled, at its first call and again for each new batch size, dtype and kind of
    gradient; torch gives up after some of these and runs it as written."""

    @abstractmethod
    def step(self, *arguments: Any) -> tuple[Tensor, State]:
        """One step; the state comes last."""

    def run(
        self, inputs: Sequence[Tensor], state: State | None, initial: State, reset: Tensor | None
    ) -> tuple[Tensor, State]:
        """The step over time: see :func:`rims.cores.steps.run_steps`."""
        start = self.start(state, initial)
        if not self.compile_step:
            return run_steps(self.step, inputs, start, initial, reset)
        step = partial(compiled_step(type(self)), self)
        return run_steps(step, inputs, map_state(as_from_a_step, start), initial, reset)

    @property
    def flops_per_step(self) -> int:
        """As for any core, of the step as written: the counter does not see into a compiled one."""
        compiled, self.compile_step = self.compile_step, False
        try:
            return super().flops_per_step
        finally:
            self.compile_step = compiled


def as_from_a_step(part: Tensor) -> Tensor:
    """The same values in the same layout and with a gradient where a step's results have one: torch would
    compile a first step apart that begins otherwise."""
    if not torch.is_grad_enabled():
        return part.detach().contiguous()
    return (part if part.requires_grad else part.detach().requires_grad_()).contiguous()


COMPILED: dict[type[StepCore], Callable[..., tuple[Tensor, State]]] = {}
"""Steps that were asked for, by class: a copy of a core then runs with its own weights."""


def compiled_step(core: type[StepCore]) -> Callable[..., tuple[Tensor, State]]:
    """``core.step`` under torch.compile."""
    if core not in COMPILED:
        COMPILED[core] = torch.compile(core.step, dynamic=False)
    return COMPILED[core]
