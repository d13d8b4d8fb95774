"""Bouncing balls written to a file and read from it; files that do not fit."""

import os
import pickle
import shutil

import h5py
import numpy as np
import pytest
import torch

from rims.errors import UserError
from rims.tasks import TASKS, Balls, BallsFile, Frames
from rims.tasks.balls_writer import PORTION, sequences, write
from rims.tasks.video import as_floats
from rims.train.data import TrainingStream, training_batch

SHORT = {"length": 6, "feed_in": 2, "rollout": 3}
SHAPE = (6, 4, 16, 16, 1)
COUNTS = {"training": PORTION + 5, "validation": 3, "test": 4}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A task and its file."""
    path = tmp_path_factory.mktemp("balls") / "some-balls.h5"
    task = Balls(balls=340, side=24, colours=True, **SHORT)
    write(task, path, COUNTS, seed=7)
    return task, path


def foreign(path, features=None, **others):
    """A file as others have it: the same ``features`` in each group, none that are in ``others`` as None."""
    features = np.zeros(SHAPE, np.float32) if features is None else features
    with h5py.File(path, "w") as file:
        for split in ("training", "validation", "test"):
            if others.get(split, True):
                file.create_group(split)["features"] = features
    return str(path)


def test_what_is_read_is_what_was_generated(written):
    task, path = written
    read = BallsFile(path=str(path), **SHORT)
    assert read.input == task.input == Frames(24, 24, 3)
    assert read.label(0) == "some-balls"
    for split, count in COUNTS.items():
        assert read.size(split) == count
        inputs, targets, found = read.examples(split, torch.arange(count))
        portions = list(sequences(task, split, count, seed=7))
        for axis, name in ((1, "positions"), (1, "velocities"), (0, "radii"), (0, "colours"), (0, "curtain")):
            expected = torch.cat([getattr(scene, name) for scene, _ in portions], axis)
            assert torch.equal(getattr(found, name).nan_to_num(-1), expected.nan_to_num(-1)), name
        frames = torch.cat([task.render(scene) for scene, _ in portions], 1)
        assert torch.equal(torch.cat([inputs, targets[-1:]]), frames)
    firsts = {next(sequences(task, split, 1, seed=7))[0].positions[0, 0, 0, 0].item() for split in COUNTS}
    assert len(firsts) == 3


def test_sequences_come_in_any_order_and_company(written):
    read = BallsFile(path=str(written[1]), **SHORT)
    whole = read.examples("training", torch.arange(COUNTS["training"])).inputs
    for rows in ([3], [9, 2, 104, 3, 3, 10], [5, 4, 3]):
        assert torch.equal(read.examples("training", torch.tensor(rows)).inputs, whole[:, rows])
    shorter = BallsFile(path=str(written[1]), length=4, feed_in=2, rollout=2)
    batch = shorter.examples("training", torch.tensor([8, 1]))
    assert torch.equal(batch.inputs, whole[:3, [8, 1]])
    assert batch.details.positions.shape[:2] == (4, 2)


def test_a_file_depends_on_its_seed_and_a_sequence_not_on_their_number(written, tmp_path):
    task, path = written
    for name, seed in (("same", 7), ("other", 8)):
        write(task, tmp_path / name, {"training": 10}, seed)
        found = BallsFile(path=str(tmp_path / name), **SHORT)._features(0, "training")[:]
        with h5py.File(path) as file:
            assert (found == file["training/features"][:, :10]).all() == (name == "same")


def test_other_fields_of_the_layout(written):
    task, path = written
    with h5py.File(path) as file:
        assert sorted(file) == ["test", "training", "validation"]
        group = file["test"]
        assert "events" not in group
        features, groups, collisions = (group[name][:] for name in ("features", "groups", "collisions"))
        positions, radii = group["positions"][:], group["radii"][:]
    assert features.shape == (6, 4, 24, 24, 3)
    assert groups.shape == collisions.shape == (6, 4, 24, 24, 1)
    # A pixel belongs to a ball if its centre does, and is seen; then it is bright.
    assert ((groups[..., 0] > 0) == (features.max(-1) >= 128)).all()
    for number in range(4):
        t, b, y, x, _ = np.nonzero(groups == number + 1)
        centres = positions[t, b, number]
        assert (np.hypot(x + 0.5 - centres[:, 0], y + 0.5 - centres[:, 1]) < radii[b, number] + 0.01).all()
    (_, hits), *_ = sequences(task, "test", 4, seed=7)
    assert hits.any()
    for t, b, n in np.ndindex(*hits.shape):
        assert (collisions[t, b][groups[t, b] == n + 1] == hits[t, b, n].item()).all()
    assert (collisions[groups == 0] == 0).all()


def test_a_file_of_the_original_layout(tmp_path):
    """Made by hand as R-NEM's are said to be: 51 frames of 64 x 64, black and white as floats, with the
    fields that its evaluation reads and no attribute of ours."""
    random = np.random.default_rng(0)
    groups = random.integers(0, 5, (51, 3, 64, 64, 1)).astype(np.float32)
    fields = {
        "features": (groups > 0).astype(np.float32),
        "groups": groups,
        "collisions": np.zeros_like(groups),
        "events": np.zeros((51, 3, 1, 1, 1), np.float32),
        "positions": random.uniform(0, 10, (51, 3, 4, 2)),
        "velocities": random.normal(size=(51, 3, 4, 2)),
    }
    with h5py.File(tmp_path / "balls4mass64.h5", "w") as file:
        for split in ("training", "validation", "test"):
            for name, values in fields.items():
                file[f"{split}/{name}"] = values
    read = BallsFile(path=str(tmp_path / "balls4mass64.h5"))
    read.prepare()
    assert read.input == Frames(64, 64, 1)
    assert (read.length, read.feed_in, read.rollout) == (51, 15, 35)
    assert read.size("training") == 3
    inputs, targets, scene = read.examples("training", torch.tensor([2, 0]))
    assert inputs.shape == targets.shape == (50, 2, 1, 64, 64)
    assert scene is None  # in units that are not known
    frames = torch.cat([inputs, targets[-1:]])[:, :, 0].numpy()
    assert (frames == 255 * (groups[:, [2, 0]][..., 0] > 0)).all()


@pytest.mark.parametrize("kind", ["f4", "f8", "?", "u1", "i8"])
def test_brightness_of_every_kind_becomes_bytes(tmp_path, kind):
    values = np.random.default_rng(0).integers(0, 2, SHAPE).astype(kind)
    read = BallsFile(path=foreign(tmp_path / "file", values), **SHORT)
    inputs, _, details = read.examples("test", torch.tensor([2, 0]))
    assert details is None
    assert read.extrapolated(read.examples("test", torch.tensor([1])), 2) is None
    expected = torch.from_numpy(values[..., 0][:-1, [2, 0]].astype(np.float32))[:, :, None]
    assert torch.equal(as_floats(inputs), expected)


def test_shades(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, SHAPE)
    for name, stored in (("bytes", values.astype(np.uint8)), ("floats", (values / 255).astype(np.float32))):
        read = BallsFile(path=foreign(tmp_path / name, stored), **SHORT)
        assert (
            read.examples("test", torch.tensor([1])).targets[:, 0, 0].numpy() == values[1:, 1, ..., 0]
        ).all()


def test_conditions_are_files(written, tmp_path):
    paths = [foreign(tmp_path / f"{n}.hdf5", np.full((8, n, 24, 24, 3), n / 10)) for n in (2, 9)]
    read = BallsFile(path=str(written[1]), test_paths=tuple(paths), **SHORT)
    read.prepare()
    assert read.test_conditions == (0, 1, 2)
    assert [read.label(c) for c in read.test_conditions] == ["some-balls", "2", "9"]
    assert [read.size(split) for split in ("training", "validation", "test")] == [COUNTS["training"], 2, 2]
    assert (read.examples("test", torch.tensor([1]), 2).inputs == round(0.9 * 255)).all()
    assert (read.examples("validation", torch.tensor([1]), 1).inputs == 51).all()
    with pytest.raises(ValueError, match="file is 3; expected 0 to 2"):
        read.examples("test", torch.tensor([1]), 3)


def test_our_files_know_where_balls_go_on(written):
    task, path = written
    read = BallsFile(path=str(path), **SHORT)
    batch = read.examples("test", torch.arange(4))
    assert torch.equal(read.extrapolated(batch, 3), task.extrapolated(batch, 3))


def test_in_other_processes(written):
    read = pickle.loads(pickle.dumps(BallsFile(path=str(written[1]), **SHORT)))
    read.prepare()  # here a handle is open when the workers start
    for update, batch in zip(range(4), TrainingStream(read, 5, seed=1).made_by(2)):
        assert torch.equal(batch.inputs, training_batch(read, 5, 1, update).inputs)


def test_files_that_cannot_be_read(tmp_path, written):
    whole = written[1].read_bytes()
    for name, content, message in (
        ("none", None, "none is missing"),
        (
            "text",
            b"no HDF5" * 99,
            "text cannot be read; truncated, damaged or no HDF5 file: file signature not found",
        ),
        ("short", whole[: len(whole) // 2], "short cannot be read; .*: truncated file: eof = .*"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            BallsFile(path=str(tmp_path / name)).prepare()
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is a folder; expected an HDF5 file"):
        BallsFile(path=str(tmp_path)).prepare()
    with pytest.raises(UserError, match="balls-file needs a file: its option path is empty"):
        BallsFile().prepare()
    assert TASKS["balls-file"] is BallsFile


def test_damage_inside_a_file_is_named(tmp_path, written):
    content = bytearray(written[1].read_bytes())
    with h5py.File(written[1]) as file:
        chunk = file["training/features"].id.get_chunk_info(3)
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    (tmp_path / "damaged").write_bytes(content)
    read = BallsFile(path=str(tmp_path / "damaged"), **SHORT)
    read.prepare()
    with pytest.raises(UserError, match=r"damaged cannot be read; truncated, damaged or no HDF5 file: .*"):
        read.examples("training", torch.tensor([3]))


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (
            np.zeros((6, 4, 16, 16)),
            {},
            r"training/features: the shape is \(6, 4, 16, 16\); expected \(T, N, H, W, 1\)",
        ),
        (np.zeros((6, 4, 16, 16, 2)), {}, r"training/features: the shape is \(6, 4, 16, 16, 2\); expected"),
        (
            np.zeros((6, 4, 16, 24, 1)),
            {},
            "training/features: frames are 16 x 24; expected squares with a side that",
        ),
        (
            np.zeros((6, 4, 20, 20, 1)),
            {},
            "training/features: frames are 20 x 20; expected squares with a side that",
        ),
        (np.zeros((5, 4, 16, 16, 1)), {}, "training/features: sequences have 5 frames; expected at least 6"),
        (None, {"validation": False}, "has no group validation; / has test, training"),
        (None, {"test": False, "validation": False}, "has no group validation; / has training"),
    ],
)
def test_files_that_do_not_fit(tmp_path, features, options, message):
    read = BallsFile(path=foreign(tmp_path / "file", features, **options), **SHORT)
    with pytest.raises(UserError, match=rf"file.*{message}") as caught:
        read.prepare()
    assert "\n" not in str(caught.value)


def test_fields_and_values_that_do_not_fit(tmp_path, written):
    path = tmp_path / "file"
    with h5py.File(path, "w") as file:
        file.create_group("training")["groups"] = [0]
    with pytest.raises(UserError, match="file has no field features; /training has groups"):
        BallsFile(path=str(path), **SHORT).prepare()
    for name, values in (
        ("large", np.full(SHAPE, 1.5)),
        ("nan", np.full(SHAPE, np.nan)),
        ("below", np.full(SHAPE, -3)),
    ):
        read = BallsFile(path=foreign(tmp_path / name, values), **SHORT)
        with pytest.raises(
            UserError, match=rf"{name}, test/features: values are \w+ from .* to .*; expected floats"
        ):
            read.examples("test", torch.tensor([1]))
    read = BallsFile(path=str(written[1]), test_paths=(foreign(tmp_path / "small"),), **SHORT)
    with pytest.raises(
        UserError, match=r"small, test/features: frames are \(16, 16, 1\); expected \(24, 24, 3\), as in"
    ):
        read.prepare()


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("training", np.zeros(3), "training: it is a field; expected a group of fields"),
        ("test/features/x", np.zeros(3), "test/features: it is a group; expected a field"),
        (
            "test/features",
            np.full((6, 4, 24, 24, 3), b"a"),
            r"test/features: values are \|S1; expected numbers",
        ),
        (
            "test/features",
            np.zeros((6, 0, 24, 24, 3)),
            r"test/features: the shape is \(6, 0, 24, 24, 3\); .*",
        ),
        ("test/velocities", None, "has no field velocities; /test has .*"),
        ("test/positions", np.zeros((6, 4, 2)), r"test/positions: the shape is .*; expected \(6, 4, 4, 2\)"),
        (
            "test/positions",
            np.zeros((5, 4, 4, 2)),
            r"test/positions: the shape is .*; expected \(6, 4, 4, 2\)",
        ),
        ("test/radii", np.zeros(4), r"test/radii: the shape is \(4,\); expected \(4, balls\)"),
        ("test/colours", np.zeros((3, 4)), r"test/colours: the shape is \(3, 4\); expected \(4, 4\)"),
    ],
)
def test_files_of_ours_with_a_field_that_does_not_fit(written, tmp_path, field, values, message):
    """Found before training, not when the test comes."""
    shutil.copy(written[1], tmp_path / "file")
    with h5py.File(tmp_path / "file", "a") as file:
        del file[field.removesuffix("/x")]
        if values is not None:
            file[field] = values
    with pytest.raises(UserError, match=rf"file.*{message}") as caught:
        BallsFile(path=str(tmp_path / "file"), **SHORT).prepare()
    assert "\n" not in str(caught.value)


def test_scenes_of_any_byte_order_and_precision(written, tmp_path):
    shutil.copy(written[1], tmp_path / "file")
    with h5py.File(tmp_path / "file", "a") as file:
        for name, kind in (("positions", ">f8"), ("radii", ">f4"), ("colours", "u1")):
            values = file["test"][name][:]
            del file["test"][name]
            file["test"][name] = values.astype(kind)
    rows = torch.arange(4)
    found, expected = (
        BallsFile(path=str(path), **SHORT).examples("test", rows).details
        for path in (tmp_path / "file", written[1])
    )
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


class Stop(BaseException):
    pass


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "file"
    task = Balls(side=16, **SHORT)

    def stop(done):
        assert (tmp_path / "file.partial").exists()
        if done > PORTION:
            raise Stop

    with pytest.raises(Stop):
        write(task, path, {"training": 3 * PORTION}, 0, stop)
    assert os.listdir(tmp_path) == []
    told = []
    write(task, path, {"training": PORTION + 1, "test": 2}, 0, told.append)
    assert os.listdir(tmp_path) == ["file"]
    assert told == [PORTION, PORTION + 1, PORTION + 3]
    before = path.read_bytes()
    with pytest.raises(UserError, match="file exists; give another name, or remove it"):
        write(task, path, {"training": 1}, 0)
    assert path.read_bytes() == before
    with pytest.raises(UserError, match=r"cannot write .*file"):
        write(task, tmp_path / "nowhere" / "file", {"training": 1}, 0)
