"""Files that are whole or absent, and clear words for those that are not."""

import errno
import json
import os

import pytest
import torch

from rims.cores import RIMConfig
from rims.errors import UserError
from rims.tasks import Copying
from rims.train.checkpoint import load_model
from rims.train.config import RunConfig
from rims.train.fit import train
from rims.train.folder import Run, runs_in, write_atomically


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), "the folder")


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, broken):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, broken, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("after", [1, 5, 9, 14])
def test_a_disk_that_fills_up_is_one_line_and_loses_nothing(config, tmp_path, monkeypatch, after):
    settings = config(updates=50)
    whole = train(settings, tmp_path / "whole", progress=False)
    fsync, left = os.fsync, [after]

    def fill_up(handle):
        left[0] -= 1
        if left[0] < 0:
            full_disk()
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill_up)
        with pytest.raises(
            UserError, match=r"^cannot write .*No space left on device.*rims resume"
        ) as caught:
            train(settings, tmp_path / "parts", progress=False)
    assert "\n" not in str(caught.value)
    parts = train(settings, tmp_path / "parts", resume=True, progress=False)
    assert [r["loss"] for r in parts.metrics()] == [r["loss"] for r in whole.metrics()]


def test_a_folder_that_cannot_be_written(config, folder, monkeypatch):
    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(UserError, match=r"cannot write the run folder .*: Read-only file system"):
        train(config(), folder, progress=False)


def test_a_file_where_the_folder_should_be(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run folder"):
        train(config(), tmp_path / "file" / "run", progress=False)


@pytest.fixture
def run(config, folder):
    return train(config(updates=10), folder, progress=False)


def damage(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    return {
        "empty": b"",
        "truncated": content[:middle],
        "flipped": content[:middle]
        + bytes(255 - b for b in content[middle : middle + 64])
        + content[middle + 64 :],
        "text": b"not a checkpoint",
    }[how]


@pytest.mark.parametrize("how", ["empty", "truncated", "flipped", "text"])
def test_damaged_checkpoints(run, config, how):
    run.last_checkpoint.write_bytes(damage(run.last_checkpoint.read_bytes(), how))
    for use in (
        lambda: load_model(run),
        lambda: train(config(updates=10), run.path, resume=True, progress=False),
    ):
        with pytest.raises(UserError, match=r"last\.ckpt is damaged") as caught:
            use()
        assert "\n" not in str(caught.value)
    load_model(run, "best")


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(3)])
def test_checkpoints_of_others(run, content):
    torch.save(content, run.last_checkpoint)
    with pytest.raises(UserError, match=r"last\.ckpt is no checkpoint of rims"):
        load_model(run)


def test_a_checkpoint_runs_no_code(run):
    torch.save({"state_dict": os.getcwd}, run.last_checkpoint)
    with pytest.raises(UserError, match=r"last\.ckpt is damaged or is no checkpoint"):
        load_model(run)


def test_a_checkpoint_of_another_run(run, config, tmp_path):
    other = train(config(updates=10, seed=1), tmp_path / "other", progress=False)
    run.last_checkpoint.write_bytes(other.last_checkpoint.read_bytes())
    with pytest.raises(UserError, match=r"last\.ckpt belongs to a run with another config"):
        load_model(run)


def test_a_checkpoint_of_an_earlier_version_lacks_newer_options(run):
    content = torch.load(run.last_checkpoint, weights_only=True)
    for option in ("validate_shifted", "workers"):
        del content["rims"]["training"][option]
    torch.save(content, run.last_checkpoint)
    load_model(run)
    content["rims"]["training"]["clip"] = 0.5
    torch.save(content, run.last_checkpoint)
    with pytest.raises(UserError, match=r"last\.ckpt belongs to a run with another config"):
        load_model(run)


def test_a_checkpoint_of_who_knows_what(run):
    content = torch.load(run.last_checkpoint, weights_only=True)
    for config in (None, [], {}, {"task": 3}, {"task": {"name": "dance"}}):
        torch.save({**content, "rims": config}, run.last_checkpoint)
        with pytest.raises(UserError, match=r"last\.ckpt belongs to a run with another config"):
            load_model(run)


def test_no_checkpoint(run):
    run.last_checkpoint.unlink()
    with pytest.raises(UserError, match=r"there is no checkpoint .*last\.ckpt"):
        load_model(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "it has no config.json"),
        ("", "config.json is damaged"),
        ('{"format": 1, "task"', "config.json is damaged"),
        ("[1]", "format None; this version of rims reads format 1"),
        ('{"format": 99}', "format 99; this version of rims reads format 1"),
        ('{"format": 1, "task": {"name": "dance"}}', "unknown task 'dance'; known: adding, balls, "),
    ],
)
def test_half_written_and_other_folders(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    ("part", "option", "value", "message"),
    [
        ("core", "fingers", 5, "core lstm has no option fingers"),
        ("task", "delay", -1, "task copying: delay is -1"),
        ("training", "updates", "many", "training: "),
    ],
)
def test_configs_that_do_not_fit(run, part, option, value, message):
    data = json.loads((run.path / "config.json").read_text())
    data[part][option] = value
    run.write_json("config.json", data)
    with pytest.raises(UserError, match=message) as caught:
        Run.open(run.path)
    assert "config.json" in str(caught.value)


def test_a_folder_of_runs_stands_for_them(tmp_path, config):
    paths = [Run.create(tmp_path / "grid" / name, config()).path for name in ("b", "a")]
    (tmp_path / "grid" / "summary.json").write_text("{}")
    (tmp_path / "grid" / "empty").mkdir()
    assert runs_in([tmp_path / "grid", paths[0]]) == [paths[1], paths[0], paths[0]]
    (tmp_path / "grid" / "report.html").touch()
    beside = [tmp_path / "grid" / name for name in ("report.html", "summary.json")]
    assert runs_in([*beside, *paths]) == paths
    with pytest.raises(UserError, match=r"config\.json is no run folder: it is a file"):
        runs_in([paths[0] / "config.json"])
    for path in (tmp_path / "grid" / "empty", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"{path.name} is no run folder"):
            runs_in([path])


def test_configs_survive_json(config):
    assert RunConfig.from_json(json.loads(json.dumps(config().to_json()))) == config()


def test_a_folder_of_before_an_option_has_what_was_done_then() -> None:
    """RIMs added the plain sum before they could be told otherwise; today's default would resume another."""
    data = RunConfig(Copying(), RIMConfig()).to_json()
    assert RunConfig.from_json(data).core.comm_tanh
    del data["core"]["comm_tanh"]
    assert not RunConfig.from_json(data).core.comm_tanh


def test_a_torn_last_row_is_left_out_and_a_damaged_one_named(run):
    file = run.path / "metrics.jsonl"
    whole = run.metrics()
    file.write_text(file.read_text() + '{"update": 11, "spl')
    assert run.metrics() == whole
    run.keep_metrics_until(10)
    assert run.metrics() == whole
    file.write_text("{\n" + file.read_text())
    with pytest.raises(UserError, match="damaged in line 1"):
        run.metrics()
