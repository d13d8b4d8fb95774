"""Copying a sequence of symbols over a delay that is longer at test time than in training (paper 4.1, D.1,
Table 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rims.tasks.base import Batch, Task, Tokens, register


@register
@dataclass
class Copying(Task):
    """``length`` symbols, ``delay`` steps of which the last is the go marker, then ``length`` blank steps in
    which to repeat them.

    Inputs over T = 2 * length + delay steps: symbols from {1..symbols}, ``delay - 1`` blanks (0), the marker
    (symbols + 1), and ``length`` blanks. Targets: 0, and the symbols in the last ``length`` steps, the
    *recall window*. The loss is the cross-entropy over all steps; what is reported is measured on the recall
    window alone, where guessing scores ln(symbols): the average over all steps shrinks with the delay and
    makes an untrained model look good.

    The paper's text says digits 0-8; the released code draws 1..8, as here. The vocabulary is the code's 20,
    or larger where more symbols need it.
    """

    name: ClassVar[str] = "copying"
    condition_name: ClassVar[str] = "delay"

    length: int = 10
    """Symbols to copy."""

    delay: int = 50
    """Steps between the last symbol and the first answer in training; the last of them is the go marker."""

    symbols: int = 8
    """Size of the alphabet."""

    test_delays: tuple[int, ...] = (50, 200)
    """Delays to test at."""

    def __post_init__(self) -> None:
        for field, least in (("length", 1), ("delay", 1), ("symbols", 2)):
            value = getattr(self, field)
            if value < least:
                raise ValueError(f"{field} is {value}; expected at least {least}")
        for delay in self.test_delays:
            self._check(delay)

    @staticmethod
    def _check(delay: int) -> None:
        if delay < 1:
            raise ValueError(f"delay is {delay}; expected at least 1")

    @property
    def input(self) -> Tokens:
        return Tokens(max(20, self.symbols + 2))

    @property
    def output_size(self) -> int:
        return self.input.vocabulary

    @property
    def training_condition(self) -> int:
        return self.delay

    @property
    def test_conditions(self) -> tuple[int, ...]:
        return self.test_delays

    def batch(self, batch_size: int, generator: torch.Generator, condition: int | None = None) -> Batch:
        delay = self.delay if condition is None else condition
        self._check(delay)
        symbols = torch.randint(1, self.symbols + 1, (self.length, batch_size), generator=generator)
        steps = 2 * self.length + delay
        inputs = torch.zeros(steps, batch_size, dtype=torch.long)
        inputs[: self.length] = symbols
        inputs[self.length + delay - 1] = self.symbols + 1
        targets = torch.zeros_like(inputs)
        targets[-self.length :] = symbols
        return Batch(inputs, targets)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), batch.targets.flatten())

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        recalled, wanted = outputs[-self.length :], batch.targets[-self.length :]
        return {
            "recall_cross_entropy": F.cross_entropy(recalled.flatten(0, 1), wanted.flatten()),
            "recall_accuracy": (recalled.argmax(-1) == wanted).float().mean(),
        }

    def chance(self) -> dict[str, float]:
        return {"recall_cross_entropy": math.log(self.symbols), "recall_accuracy": 1 / self.symbols}

    def phases(self, condition: int | None = None) -> dict[str, tuple[int, int]]:
        delay = self.delay if condition is None else condition
        start = self.length + delay
        return {
            "symbols": (0, self.length),
            "delay": (self.length, start),
            "recall": (start, start + self.length),
        }
