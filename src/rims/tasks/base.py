"""The Task contract: data, the shift between training and test, and the metric. A task knows no model.

Shapes: T time, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Sequences, time first."""

    inputs: Tensor
    """``[T, B]`` integers for tokens, ``[T, B, features]`` floats otherwise."""
    targets: Tensor
    """What the outputs are compared with; the task knows its shape."""


@dataclass(frozen=True)
class Tokens:
    """Inputs are integers below ``vocabulary``; the model embeds them."""

    vocabulary: int


@dataclass(frozen=True)
class Features:
    """Inputs are vectors of ``size`` numbers; the model projects them."""

    size: int


@dataclass
class Task:
    """The options of a task, as they stand in a run folder and on the command line. Subclasses add fields and
    the methods' bodies.

    A *condition* is one setting of what is shifted between training and test (copying: the delay).
    ``training_condition`` is the one trained on; ``test_conditions`` are those reported.
    """

    name: ClassVar[str]
    condition_name: ClassVar[str]
    """What a condition varies, for axes and tables, such as ``"delay"``."""

    @property
    def input(self) -> Tokens | Features:
        raise NotImplementedError

    @property
    def output_size(self) -> int:
        """Numbers that the model must output at each step."""
        raise NotImplementedError

    @property
    def training_condition(self) -> int:
        raise NotImplementedError

    @property
    def test_conditions(self) -> tuple[int, ...]:
        raise NotImplementedError

    def batch(self, batch_size: int, generator: torch.Generator, condition: int | None = None) -> Batch:
        """Draw fresh sequences under ``condition`` (default: the training condition)."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """What training minimises, from the model's ``outputs [T, B, output_size]``: a scalar."""
        raise NotImplementedError

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scalars to report, each a mean over the batch."""
        raise NotImplementedError

    def chance(self) -> dict[str, float]:
        """What a model that learned nothing but the format scores on each metric that has such a level."""
        raise NotImplementedError

    def phases(self, condition: int | None = None) -> dict[str, tuple[int, int]]:
        """Named half-open spans of time steps, to be marked under activation rasters."""
        return {}


TASKS: dict[str, type[Task]] = {}
"""Every registered task by its name."""


def register(task: type[Task]) -> type[Task]:
    """Class decorator: add a task to :data:`TASKS` under its ``name``."""
    if task.name in TASKS:
        raise ValueError(f"a task named {task.name!r} is registered already")
    TASKS[task.name] = task
    return task
