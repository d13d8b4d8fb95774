"""Adding the marked numbers of a sequence that is longer in tests than in training (paper D.2, Table 5)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rims.tasks.base import Batch, Features, Task, register


@register
@dataclass
class Adding(Task):
    """Numbers uniform on [0, 1), of which ``addends`` are marked; the answer, at the last step, is the sum of
    those.

    The sequence is cut in as many parts as there are addends, equal but for rounding, and one number in each
    is marked, at a step uniform in the part. Inputs are ``(number, mark, mark)``: the first mark is set for
    the addends of odd rank (1st, 3rd, ...), the second for those of even rank. With two addends that is the
    released code's form, a mark for each half; the paper claims "adding multiple numbers" without a form.

    Targets are ``[B]``. Loss and metric are the mean squared error at the last step; a model that always
    answers the mean, addends / 2, scores addends / 12. The paper's Table 5 names the error cross-entropy, and
    the released code prints it multiplied by steps / batch size.
    """

    name: ClassVar[str] = "adding"
    condition_name: ClassVar[str] = "length"

    length: int = 50
    """Steps in training (the paper also has 500, tested at 1000)."""

    addends: int = 2
    """Marked numbers."""

    test_lengths: tuple[int, ...] = (50, 200)
    """Steps to test at."""

    def __post_init__(self) -> None:
        if self.addends < 1:
            raise ValueError(f"addends is {self.addends}; expected at least 1")
        for length in (self.length, *self.test_lengths):
            self._check(length)

    def _check(self, length: int) -> None:
        if length < self.addends:
            raise ValueError(f"length is {length}; expected at least addends, {self.addends}")

    @property
    def input(self) -> Features:
        return Features(3)

    @property
    def output_size(self) -> int:
        return 1

    @property
    def training_condition(self) -> int:
        return self.length

    @property
    def test_conditions(self) -> tuple[int, ...]:
        return self.test_lengths

    def batch(self, batch_size: int, generator: torch.Generator, condition: int | None = None) -> Batch:
        length = self.length if condition is None else condition
        self._check(length)
        # float32 in so many words: low-precision runs set another default, which would draw other numbers.
        numbers = torch.rand(length, batch_size, generator=generator, dtype=torch.float32)
        inputs = torch.stack([numbers, torch.zeros_like(numbers), torch.zeros_like(numbers)], dim=-1)
        targets = torch.zeros(batch_size, dtype=torch.float32)
        rows = torch.arange(batch_size)
        for rank, (start, stop) in enumerate(self._parts(length)):
            steps = torch.randint(start, stop, (batch_size,), generator=generator)
            inputs[steps, rows, 1 + rank % 2] = 1
            targets += numbers[steps, rows]
        return Batch(inputs, targets)

    def _parts(self, length: int) -> list[tuple[int, int]]:
        bounds = [length * rank // self.addends for rank in range(self.addends + 1)]
        return list(itertools.pairwise(bounds))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(outputs[-1].squeeze(-1), batch.targets)

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"mean_squared_error": self.loss(outputs, batch)}

    def chance(self) -> dict[str, float]:
        return {"mean_squared_error": self.addends / 12}

    def phases(self, condition: int | None = None) -> dict[str, tuple[int, int]]:
        """The parts in which the addends stand."""
        length = self.length if condition is None else condition
        return {f"addend {rank}": part for rank, part in enumerate(self._parts(length), 1)}
