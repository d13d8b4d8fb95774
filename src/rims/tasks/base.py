"""The Task contract: data, the shift between training and test, and the metric. A task knows no model.

Shapes: T time, B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

Model = Callable[..., tuple[Tensor, Any]]
"""``outputs, state = model(inputs, state=None)``: all that a task knows of a model."""


class Batch(NamedTuple):
    """Sequences, time first."""

    inputs: Tensor
    """``[T, B]`` integers for tokens, ``[T, B, channels]`` for those of several channels; bytes
    ``[T, B, channels, height, width]`` for frames; floats ``[T, B, features]`` otherwise."""
    targets: Tensor
    """What the outputs are compared with; the task knows its shape."""
    details: Any = None
    """What else the task measures by: a NamedTuple of tensors, or None."""

    def to(self, device: torch.device | str) -> Batch:
        """The batch on ``device``. On a GPU it arrives before what is launched next; nothing waits for it."""
        ahead = torch.device(device).type == "cuda"

        def moved(part: Tensor) -> Tensor:
            if ahead and part.device.type == "cpu":
                return part.pin_memory().to(device, non_blocking=True)
            return part.to(device)

        details = self.details
        if details is not None:
            details = type(details)(*map(moved, details))
        return Batch(moved(self.inputs), moved(self.targets), details)


@dataclass(frozen=True)
class Tokens:
    """Inputs are integers below ``vocabulary``, or ``channels`` of them at each step; the model embeds them,
    each channel by itself."""

    vocabulary: int
    channels: int = 1


@dataclass(frozen=True)
class Features:
    """Inputs are vectors of ``size`` numbers; the model projects them."""

    size: int


@dataclass(frozen=True)
class Frames:
    """Inputs are images; the model encodes each by itself and answers with the logits of an image of the same
    shape."""

    height: int
    width: int
    channels: int = 1


Split = Literal["training", "validation", "test"]


@dataclass
class Task:
    """The options of a task, as they stand in a run folder and on the command line. Subclasses add fields and
    the methods' bodies. Sequences are generated without end, or come from a data set (:class:`DatasetTask`).

    A *condition* is one setting of what is shifted between training and test (copying: the delay).
    ``training_condition`` is the one trained on; ``test_conditions`` are those reported.
    """

    name: ClassVar[str]
    condition_name: ClassVar[str]
    """What a condition varies, for axes and tables, such as ``"delay"``."""
    categorical: ClassVar[bool] = False
    """Whether conditions are kinds, with no order or distance between them."""

    @property
    def input(self) -> Tokens | Features | Frames:
        raise NotImplementedError

    @property
    def output_size(self) -> int:
        """Numbers that the model must output at each step; not asked for where the input is frames."""
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

    def label(self, condition: int) -> str:
        """The condition as people read it."""
        return str(condition)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """What training minimises, from the model's ``outputs [T, B, output_size]``: a scalar."""
        raise NotImplementedError

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scalars to report, each a mean over the batch."""
        raise NotImplementedError

    def measure(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """The loss and every metric of a model, which is in eval mode, on the batch."""
        outputs, _ = model(batch.inputs)
        return {"loss": self.loss(outputs, batch), **self.metrics(outputs, batch)}

    def references(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Metrics of named predictors that learn nothing, such as repeating the last frame, on the batch."""
        return {}

    def chance(self) -> dict[str, float]:
        """What a model that learned nothing but the format scores on each metric that has such a level."""
        raise NotImplementedError

    def phases(self, condition: int | None = None) -> dict[str, tuple[int, int]]:
        """Named half-open spans of time steps, to be marked under activation rasters."""
        return {}

    def kinds(self, batch: Batch) -> dict[str, Tensor]:
        """Named kinds of sequences, such as classes, each as the rows ``[B]`` (bool) of the batch that are of
        it, for the analysis of who is active in which."""
        return {}

    def prepare(self) -> None:
        """Make ready what batches are made from. Raises UserError when data files are missing or damaged."""


@dataclass
class DatasetTask(Task):
    """A task of finitely many sequences, each of which belongs to one split for ever. Subclasses give
    :meth:`size` and :meth:`examples`; which sequences make a batch, in which order, is for those to say who
    train and measure (rims.train.data)."""

    def size(self, split: Split) -> int:
        """Sequences in the split."""
        raise NotImplementedError

    def examples(self, split: Split, indices: Tensor, condition: int | None = None) -> Batch:
        """The sequences at ``indices [B]`` of the split under ``condition`` (default: the training
        condition): the same at each call, in whatever company."""
        raise NotImplementedError

    def batch(self, batch_size: int, generator: torch.Generator, condition: int | None = None) -> Batch:
        """Training sequences, drawn with replacement."""
        indices = torch.randint(self.size("training"), (batch_size,), generator=generator)
        return self.examples("training", indices, condition)

    def prepare(self) -> None:
        self.size("training")


TASKS: dict[str, type[Task]] = {}
"""Every registered task by its name."""


def register(task: type[Task]) -> type[Task]:
    """Class decorator: add a task to :data:`TASKS` under its ``name``."""
    if task.name in TASKS:
        raise ValueError(f"a task named {task.name!r} is registered already")
    TASKS[task.name] = task
    return task
