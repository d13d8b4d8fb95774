"""Batches are functions of what names them."""

import collections
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rims.tasks import Balls, Batch, Copying, DatasetTask
from rims.train.data import (
    EVALUATION_BATCH,
    TEST_SEQUENCES,
    TrainingStream,
    derive_seed,
    held_out,
    held_out_size,
    measure,
    training_batch,
    unseen,
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


class Numbered(DatasetTask):
    """Sequence i of a split is (start of the split + i, condition)."""

    starts = {"training": 0, "validation": 10_000, "test": 20_000}

    def __init__(self, training=10, validation=6, test=700):
        self.sizes = {"training": training, "validation": validation, "test": test}

    def size(self, split):
        return self.sizes[split]

    def examples(self, split, indices, condition=None):
        assert ((indices >= 0) & (indices < self.sizes[split])).all()
        numbers = self.starts[split] + indices
        return Batch(torch.stack([numbers, torch.full_like(numbers, condition or 0)]), numbers)


def numbers(batches):
    return [number for batch in batches for number in batch.targets.tolist()]


@given(st.integers(1, 40), st.integers(1, 17), st.integers(1, 3), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_every_epoch_holds_every_sequence_once(size, batch_size, ranks, seed):
    task = Numbered(size)
    epochs = 4
    updates = range(-(-epochs * size // (batch_size * ranks)))
    batches = [
        training_batch(task, batch_size, seed, update, rank, ranks)
        for update in updates
        for rank in range(ranks)
    ]
    assert all(batch.targets.shape == (batch_size,) for batch in batches)
    seen = numbers(batches)
    for epoch in range(epochs):
        assert collections.Counter(seen[epoch * size : (epoch + 1) * size]) == collections.Counter(
            range(size)
        )


def test_epochs_and_seeds_have_their_own_order():
    task = Numbered(1000)
    orders = [numbers([training_batch(task, 1000, seed, update)]) for seed in range(3) for update in range(3)]
    for one, two in itertools.combinations(orders, 2):
        assert sum(a == b for a, b in zip(one, two)) < 15  # one by chance


def test_the_stream_of_a_data_set_does_not_depend_on_where_it_starts():
    task = Numbered(17)
    whole = list(itertools.islice(TrainingStream(task, 4, seed=5, rank=1, ranks=2), 20))
    for start in (0, 1, 7, 19):
        resumed = itertools.islice(TrainingStream(task, 4, 5, start, 1, 2), 20 - start)
        assert numbers(resumed) == numbers(whole[start:])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(
    "task", [TASK, Numbered(17), Balls(side=16, balls=13, length=4, feed_in=1, rollout=1)], ids=type
)
def test_workers_make_the_same_batches(task, workers):
    stream = TrainingStream(task, 4, 5, 2, 1, 2)
    found = itertools.islice(stream.made_by(workers), 8)
    for update, batch in enumerate(found, 2):
        expected = training_batch(task, 4, 5, update, 1, 2)
        assert torch.equal(batch.inputs, expected.inputs)
        assert torch.equal(batch.targets, expected.targets)
        for a, b in zip(batch.details or (), expected.details or (), strict=True):
            assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


@pytest.mark.parametrize(("wanted", "count"), [(None, 700), (5, 5), (300, 300), (700, 700), (9999, 700)])
def test_held_out_sequences_of_a_data_set_come_in_order_each_once(wanted, count):
    task = Numbered()
    assert held_out_size(task, "test", wanted) == count
    batches = list(held_out(task, "test", 7, wanted))
    assert numbers(batches) == list(range(20_000, 20_000 + count))
    assert all((batch.inputs[1] == 7).all() for batch in batches)
    assert max(batch.inputs.shape[1] for batch in batches) == min(count, EVALUATION_BATCH)
    assert numbers(held_out(task, "validation", 7, wanted)) == list(range(10_000, 10_000 + min(count, 6)))


def test_generated_sets_have_the_size_asked_for():
    assert held_out_size(TASK, "test", None) == TEST_SEQUENCES
    assert held_out_size(TASK, "test", 9999) == 9999


def test_unseen_sequences_are_fresh_or_of_the_test_set():
    found = numbers([unseen(Numbered(), 64, 3, 5)])
    assert len(set(found)) == 64
    assert min(found) >= 20_000
    assert found != sorted(found)
    assert found == numbers([unseen(Numbered(), 64, 3, 5)])
    assert len(numbers([unseen(Numbered(test=9), 64, 3, 5)])) == 9
    expected = TASK.batch(64, torch.Generator().manual_seed(3), 5)
    assert torch.equal(unseen(TASK, 64, 3, 5).inputs, expected.inputs)


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
