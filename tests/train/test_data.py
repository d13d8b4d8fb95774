"""Generated data are functions of what names them."""

import itertools

import pytest
import torch

from rims.tasks import Batch, Copying
from rims.train.data import (
    EVALUATION_BATCH,
    TrainingStream,
    derive_seed,
    held_out,
    measure,
    training_batch,
)

TASK = Copying(length=6, delay=3)


def sequences(batch: Batch) -> set[tuple[int, ...]]:
    return {tuple(row) for row in batch.inputs[: TASK.length].T.tolist()}


def test_seeds_are_distinct_and_keep_their_values():
    names = ["weights", "training", "dropout", "validation", "test"]
    seeds = [derive_seed(n, s, u, r) for n in names for s in range(4) for u in range(50) for r in range(2)]
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == len(seeds)
    # Runs made by earlier versions must stay repeatable.
    assert derive_seed("training", 0, 0, 0) == 8643525223943627342


def test_the_stream_does_not_depend_on_where_it_starts():
    whole = list(itertools.islice(TrainingStream(TASK, 3, seed=5), 12))
    for start in (0, 1, 7):
        resumed = itertools.islice(TrainingStream(TASK, 3, seed=5, start=start), 12 - start)
        for one, two in zip(whole[start:], resumed, strict=True):
            assert torch.equal(one.inputs, two.inputs)


def test_batches_differ_by_update_seed_and_rank():
    base = training_batch(TASK, 8, seed=1, update=1, rank=0)
    others = [
        training_batch(TASK, 8, seed=1, update=2, rank=0),
        training_batch(TASK, 8, seed=2, update=1, rank=0),
        training_batch(TASK, 8, seed=1, update=1, rank=1),
    ]
    assert all(sequences(base).isdisjoint(sequences(other)) for other in others)


def test_splits_are_disjoint():
    train = set().union(*(sequences(training_batch(TASK, 64, 0, update)) for update in range(20)))
    validation = set().union(*map(sequences, held_out(TASK, "validation", 3, 512)))
    test = set().union(*map(sequences, held_out(TASK, "test", 3, 512)))
    other = set().union(*map(sequences, held_out(TASK, "test", 4, 512)))
    # 8^6 sequences are possible: sets of this size meet by chance in a few, streams that are alike in all.
    for one, two in itertools.combinations([train, validation, test, other], 2):
        assert len(one & two) < 20


def test_held_out_sets_are_fixed_and_of_the_size_asked_for():
    n = EVALUATION_BATCH + 10
    one, two = (list(held_out(TASK, "test", 5, n)) for _ in range(2))
    assert sum(batch.inputs.shape[1] for batch in one) == n
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(one, two, strict=True))


def test_batches_count_by_their_size():
    class Half(Copying):
        def loss(self, outputs, batch):
            return batch.inputs[0].float().mean()

        def metrics(self, outputs, batch):
            return {"first": batch.inputs[0].float().mean()}

    task = Half(length=1, delay=1)
    batches = list(held_out(task, "test", 1, EVALUATION_BATCH + 1))
    means = measure(lambda x: (x, None), task, iter(batches))
    expected = torch.cat([batch.inputs[0] for batch in batches]).float().mean()
    assert means["first"] == pytest.approx(float(expected), rel=1e-6)
    assert means["loss"] == means["first"]
