"""Generated data as pure functions of what names them, so that nothing about data needs storing to resume a
run.

* The training batch of an update depends on the run's seed, the update and the rank.
* The validation and test sequences depend on the condition alone: every run is measured on the same ones.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from rims.tasks import Batch, Task

EVALUATION_BATCH = 256
"""Sequences a batch of held-out data. Part of what a held-out set is: another size draws other sequences."""


def derive_seed(stream: str, *indices: int) -> int:
    """A seed for the torch generator that belongs to ``stream`` and ``indices`` alone, by hashing their
    names.

    Streams with neighbouring seeds or indices have nothing in common. torch's CPU generator keeps 32 bits of
    a seed, so among n batches some two are equal with a probability of n^2 / 2^33; the splits are disjoint up
    to the same chance.
    """
    digest = hashlib.blake2b(repr((stream, *indices)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def training_batch(task: Task, batch_size: int, seed: int, update: int, rank: int = 0) -> Batch:
    """The sequences that update number ``update`` (from 0) learns from."""
    generator = torch.Generator().manual_seed(derive_seed("training", seed, update, rank))
    return task.batch(batch_size, generator)


class TrainingStream(IterableDataset[Batch]):
    """Training batches without end, from the one of update number ``start`` on."""

    def __init__(self, task: Task, batch_size: int, seed: int, start: int = 0, rank: int = 0) -> None:
        self.task, self.batch_size, self.seed, self.start, self.rank = task, batch_size, seed, start, rank

    def __iter__(self) -> Iterator[Batch]:
        for update in itertools.count(self.start):
            yield training_batch(self.task, self.batch_size, self.seed, update, self.rank)


def held_out(
    task: Task, split: Literal["validation", "test"], condition: int, sequences: int
) -> Iterator[Batch]:
    """The fixed sequences of a split at a condition, in batches of :data:`EVALUATION_BATCH` or less."""
    for number, start in enumerate(range(0, sequences, EVALUATION_BATCH)):
        generator = torch.Generator().manual_seed(derive_seed(split, condition, number))
        yield task.batch(min(EVALUATION_BATCH, sequences - start), generator, condition)


@torch.no_grad()
def measure(
    model: Callable[[Tensor], tuple[Tensor, object]],
    task: Task,
    batches: Iterator[Batch],
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Mean of the loss and of the task's metrics over all sequences: batches count by their size.

    ``model`` is to be in eval mode; it maps ``inputs`` to ``(outputs, state)``.
    """
    totals: dict[str, float] = {}
    count = 0
    for batch in batches:
        batch = Batch(*(part.to(device) for part in batch))
        outputs, _ = model(batch.inputs)
        size = batch.inputs.shape[1]
        for name, value in {"loss": task.loss(outputs, batch), **task.metrics(outputs, batch)}.items():
            totals[name] = totals.get(name, 0.0) + size * float(value)
        count += size
    return {name: total / count for name, total in totals.items()}
