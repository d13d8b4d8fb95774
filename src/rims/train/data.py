"""Batches as pure functions of what names them, so that nothing about data needs storing to resume a run.

* The training batch of an update depends on the run's seed, the update and the rank. Of a data set, batches
  are the consecutive pieces of one epoch after the other, each a permutation by the seed and its own number.
* The validation and test sequences depend on the condition alone: every run is measured on the same ones.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rims.tasks import Batch, DatasetTask, Model, Task

K = TypeVar("K")

EVALUATION_BATCH = 256
"""Sequences a batch of held-out data. Part of what a generated held-out set is: another size draws other
sequences."""

TEST_SEQUENCES = 2048
"""Sequences that a generated test set has by default."""


def derive_seed(stream: str, *indices: int) -> int:
    """A seed for the torch generator that belongs to ``stream`` and ``indices`` alone, by hashing their
    names.

    Streams with neighbouring seeds or indices have nothing in common. torch's CPU generator keeps 32 bits of
    a seed, so among n batches some two are equal with a probability of n^2 / 2^33; the splits are disjoint up
    to the same chance.
    """
    digest = hashlib.blake2b(repr((stream, *indices)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def training_batch(
    task: Task, batch_size: int, seed: int, update: int, rank: int = 0, ranks: int = 1
) -> Batch:
    """The sequences that rank number ``rank`` of ``ranks`` learns from in update number ``update`` (from
    0)."""
    if isinstance(task, DatasetTask):
        start = (update * ranks + rank) * batch_size
        return task.examples("training", _shuffled(task.size("training"), seed, start, start + batch_size))
    generator = torch.Generator().manual_seed(derive_seed("training", seed, update, rank))
    return task.batch(batch_size, generator)


def _shuffled(size: int, seed: int, start: int, stop: int) -> Tensor:
    """Items ``start`` to ``stop`` of the endless list of epochs, each of which holds every index once."""
    pieces = []
    while start < stop:
        epoch, first = divmod(start, size)
        pieces.append(_epoch(size, seed, epoch)[first : first + stop - start])
        start += len(pieces[-1])
    return torch.cat(pieces)


@functools.lru_cache(maxsize=4)
def _epoch(size: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed("epoch", seed, epoch))
    return torch.randperm(size, generator=generator)


class TrainingStream(IterableDataset[Batch]):
    """Training batches without end, from the one of update number ``start`` on. In worker number w of W it
    yields those of updates ``start`` + w, ``start`` + w + W, and so on."""

    def __init__(
        self, task: Task, batch_size: int, seed: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        self.task, self.batch_size, self.seed = task, batch_size, seed
        self.start, self.rank, self.ranks = start, rank, ranks

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for update in itertools.count(self.start + first, step):
            yield training_batch(self.task, self.batch_size, self.seed, update, self.rank, self.ranks)

    def made_by(self, workers: int) -> Iterable[Batch]:
        """The same batches in the same order, made ahead by as many processes; 0: by this one."""
        if not workers:
            return self
        return DataLoader(
            self,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2,
            persistent_workers=True,
            worker_init_fn=_leave_signals_to_the_parent,
        )


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach all processes; training, which ends after the update at hand,
    still needs its batches."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


HeldOut = Literal["validation", "test"]


def held_out_size(task: Task, split: HeldOut, wanted: int | None) -> int:
    """Sequences in the held-out set when ``wanted`` are asked for: a data set has no more than it has.

    ``None`` is the default: the whole split of a data set, :data:`TEST_SEQUENCES` where they are generated.
    """
    if isinstance(task, DatasetTask):
        size = task.size(split)
        return size if wanted is None else min(wanted, size)
    return TEST_SEQUENCES if wanted is None else wanted


def held_out(task: Task, split: HeldOut, condition: int, sequences: int | None) -> Iterator[Batch]:
    """The fixed sequences of a split at a condition, :func:`held_out_size` of them, in batches of
    :data:`EVALUATION_BATCH` or less. Those of a data set come in its order, each once."""
    count = held_out_size(task, split, sequences)
    for number, start in enumerate(range(0, count, EVALUATION_BATCH)):
        stop = min(start + EVALUATION_BATCH, count)
        if isinstance(task, DatasetTask):
            yield task.examples(split, torch.arange(start, stop), condition)
        else:
            generator = torch.Generator().manual_seed(derive_seed(split, condition, number))
            yield task.batch(stop - start, generator, condition)


def unseen(task: Task, sequences: int, seed: int, condition: int) -> Batch:
    """Sequences to look at that no run has learned from: fresh ones, or test sequences of a data set chosen
    at random."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(task, DatasetTask):
        chosen = torch.randperm(task.size("test"), generator=generator)[:sequences]
        return task.examples("test", chosen, condition)
    return task.batch(sequences, generator, condition)


def measure(
    model: Model, task: Task, batches: Iterator[Batch], device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Mean of the loss and of the task's metrics over all sequences. ``model`` is to be in eval mode."""
    return _means(batches, lambda batch: task.measure(model, batch), device)


def reference(
    task: Task, batches: Iterator[Batch], device: torch.device | str = "cpu"
) -> dict[str, dict[str, float]]:
    """The same of the predictors that learn nothing, by their names."""
    flat = _means(
        batches,
        lambda batch: {
            (name, metric): value
            for name, metrics in task.references(batch).items()
            for metric, value in metrics.items()
        },
        device,
    )
    found: dict[str, dict[str, float]] = {}
    for (name, metric), value in flat.items():
        found.setdefault(name, {})[metric] = value
    return found


@torch.no_grad()
def _means(
    batches: Iterator[Batch], of: Callable[[Batch], dict[K, Tensor]], device: torch.device | str
) -> dict[K, float]:
    """Means over all sequences: batches count by their size."""
    totals: dict[K, float] = {}
    count = 0
    for batch in batches:
        size = batch.inputs.shape[1]
        for name, value in of(batch.to(device)).items():
            totals[name] = totals.get(name, 0.0) + size * float(value)
        count += size
    return {name: total / count for name, total in totals.items()}
