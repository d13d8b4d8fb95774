"""Training: repeatable, resumable, clipped, measured."""

import json
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from rims.cores import GRUConfig
from rims.errors import Interrupted, UserError, WorkError
from rims.tasks import Adding, Copying, Digits, SequentialMNIST
from rims.train.callbacks import Measurements
from rims.train.checkpoint import load_model
from rims.train.data import held_out, measure
from rims.train.fit import train
from rims.train.folder import Run
from rims.train.module import TrainingModule, build_model

from .helpers import assert_equal_runs, rows, weights


class Crash(Exception):
    pass


def crash_at(monkeypatch, update, action):
    """Do ``action`` in the training step of update number ``update``."""
    step = TrainingModule.training_step

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == update:
            action()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", training_step)


def raise_crash():
    raise Crash


def test_one_seed_one_result(config, tmp_path):
    torch.manual_seed(1)
    one = train(config(), tmp_path / "one", progress=False)
    torch.manual_seed(2)
    two = train(config(), tmp_path / "two", progress=False)
    assert_equal_runs(one, two)
    other = train(config(seed=1), tmp_path / "other", progress=False)
    assert rows(other) != rows(one)
    assert not torch.equal(*(weights(run)["model.encoder.weight"] for run in (one, other)))


def test_the_callers_random_numbers_are_left_alone(config, folder):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(config(updates=3), folder, progress=False)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("update", [3, 10, 27, 40])
def test_a_resumed_run_equals_an_uninterrupted_one(config, tmp_path, monkeypatch, schedule, update):
    settings = config(updates=50, checkpoint_every=7, validate_every=8, schedule=schedule)
    whole = train(settings, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        crash_at(patch, update, raise_crash)
        with pytest.raises(Crash):
            train(settings, tmp_path / "parts", progress=False)
    parts = train(settings, tmp_path / "parts", resume=True, progress=False)
    assert_equal_runs(whole, parts)
    assert len(parts.read_json("versions.json")) == 2
    keys = {"validation", "updates", "parameters", "flops_per_step"}
    one, two = (run.read_json("summary.json") for run in (whole, parts))
    assert {k: one[k] for k in keys} == {k: two[k] for k in keys}


@pytest.mark.parametrize(
    "task", [Digits(resolution=3, test_resolutions=(3, 4)), Adding(length=5, test_lengths=(5, 9))]
)
def test_resuming_is_exact_on_every_kind_of_task(config, tmp_path, monkeypatch, task):
    settings = config(task, updates=50, batch_size=37, checkpoint_every=7, validate_every=20)
    whole = train(settings, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        crash_at(patch, 33, raise_crash)  # 37 * 33 digits are more than an epoch
        with pytest.raises(Crash):
            train(settings, tmp_path / "parts", progress=False)
    parts = train(settings, tmp_path / "parts", resume=True, progress=False)
    assert_equal_runs(whole, parts)


def test_a_run_with_workers_equals_one_without_also_when_resumed(config, tmp_path, monkeypatch):
    alone = train(config(updates=20), tmp_path / "alone", progress=False)
    settings = config(updates=20, workers=2)
    whole = train(settings, tmp_path / "whole", progress=False)
    assert_equal_runs(alone, whole)
    with monkeypatch.context() as patch:
        crash_at(patch, 13, raise_crash)
        with pytest.raises(Crash):
            train(settings, tmp_path / "parts", progress=False)
    assert_equal_runs(alone, train(settings, tmp_path / "parts", resume=True, progress=False))


def test_a_signal_to_all_processes_ends_a_run_with_workers_in_good_order(config, folder, monkeypatch):
    crash_at(monkeypatch, 13, lambda: [os.kill(pid, signal.SIGINT) for pid in (*children(), os.getpid())])
    with pytest.raises(Interrupted, match="stopped after update 14"):
        train(config(updates=40, workers=2), folder, progress=False)
    assert not children()


class Unlucky(Copying):
    """Has no batches but the first; takes its process down, or says so."""

    def batch(self, batch_size, generator, condition=None):
        if multiprocessing.parent_process() is not None:
            if self.length == 1:
                os._exit(1)
            raise UserError("the data are gone")
        return super().batch(batch_size, generator, condition)


@pytest.mark.parametrize(
    ("length", "kind", "message"),
    [
        (2, UserError, "the data are gone"),
        (1, WorkError, r"DataLoader worker .*; to go on .*: rims resume .*"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_said_in_a_line(config, folder, length, kind, message):
    task = Unlucky(length=length, delay=2, test_delays=(2,))
    with pytest.raises(kind) as caught:
        train(config(task, workers=2), folder, progress=False)
    assert re.fullmatch(message, str(caught.value))
    assert not children()


def children():
    """Processes started by this one that run still."""
    return [process.pid for process in multiprocessing.active_children()]


def test_validation_at_test_conditions_is_measured_and_decides_nothing(config, tmp_path):
    task = Copying(length=2, delay=2, test_delays=(2, 5, 1))
    plain = train(config(task), tmp_path / "plain", progress=False)
    shifted = train(config(task, validate_shifted=True), tmp_path / "shifted", progress=False)
    assert [row for row in rows(shifted) if row["condition"] == 2] == rows(plain)
    more = [row for row in rows(shifted) if row["condition"] != 2]
    assert [(row["update"], row["split"], row["condition"]) for row in more] == [
        (update, "validation", delay) for update in (20, 40, 60) for delay in (5, 1)
    ]
    assert more[0].keys() == rows(plain)[1].keys()
    for which in ("last", "best"):
        one, two = weights(plain, which), weights(shifted, which)
        assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = (run.read_json("summary.json")["validation"] for run in (plain, shifted))
    assert one == two
    chosen = torch.load(shifted.best_checkpoint, weights_only=True)["callbacks"]["Checkpoints"]["best"]
    assert chosen == min(row["loss"] for row in rows(plain) if row["split"] == "validation")
    batches = held_out(task, "validation", 5, 8)
    expected = measure(load_model(shifted), task, batches)
    last = next(row for row in reversed(more) if row["condition"] == 5)
    assert {name: last[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_numbers_are_read_in_every_precision(config, folder, precision):
    run = train(config(Adding(length=4), updates=3, precision=precision), folder, progress=False)
    assert run.metrics()[-1]["mean_squared_error"] < 10


def test_missing_data_leave_no_folder(config, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RIMS_DATA", str(tmp_path))
    with pytest.raises(UserError, match="has no MNIST file"):
        train(config(SequentialMNIST()), folder, progress=False)
    assert not folder.exists()


def test_rows_and_files(config, folder):
    run = train(config(updates=65), folder, progress=False)
    found = [(row["update"], row["split"]) for row in run.metrics()]
    assert found == [
        *((update, split) for update in (20, 40) for split in ("training", "validation")),
        (50, "training"),
        *((update, split) for update in (60, 65) for split in ("training", "validation")),
    ]
    validation = run.metrics()[-1]
    assert validation.keys() == {
        *("update", "split", "condition", "seconds", "loss", "recall_cross_entropy", "recall_accuracy")
    }
    assert run.metrics()[0].keys() == {"update", "split", "condition", "seconds", "loss", "gradient_norm"}
    summary = run.read_json("summary.json")
    model = load_model(run)
    assert not model.training
    assert summary["updates"] == 65
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())
    assert summary["state_size"] == 8
    assert summary["flops_per_step"] == 2 * 4 * 4 * (3 + 4)
    assert summary["validation"]["loss"] == validation["loss"]
    (version,) = run.read_json("versions.json")
    assert version["torch"] == torch.__version__
    assert version["threads"] == 1
    assert list((folder / "tensorboard").glob("events*"))
    best = min((row for row in run.metrics() if row["split"] == "validation"), key=lambda row: row["loss"])
    assert torch.load(run.best_checkpoint, weights_only=True)["global_step"] == best["update"]


def test_the_training_loss_is_the_mean_since_the_last_row(config, folder, monkeypatch):
    seen = []
    on_end = Measurements.on_train_batch_end

    def record(self, trainer, pl_module, outputs, batch, batch_idx):
        seen.append((float(outputs["loss"]), float(pl_module.gradient_norm)))
        on_end(self, trainer, pl_module, outputs, batch, batch_idx)

    monkeypatch.setattr(Measurements, "on_train_batch_end", record)
    run = train(config(updates=40), folder, progress=False)
    training = [row for row in run.metrics() if row["split"] == "training"]
    for row, part in zip(training, (seen[:20], seen[20:]), strict=True):
        assert row["loss"] == pytest.approx(sum(loss for loss, _ in part) / 20)
        assert row["gradient_norm"] == pytest.approx(sum(norm for _, norm in part) / 20)


@pytest.mark.parametrize("clip", [0.0, 0.01, 1e6])
def test_clipping_is_by_the_norm_of_the_whole_gradient(config, folder, monkeypatch, clip):
    raw, clipped, told = [], [], []
    clipping = TrainingModule.configure_gradient_clipping

    def norm(module):
        return float(torch.cat([p.grad.flatten() for p in module.model.parameters()]).norm())

    def record(self, *arguments, **options):
        raw.append(norm(self))
        clipping(self, *arguments, **options)
        clipped.append(norm(self))
        told.append(float(self.gradient_norm))

    monkeypatch.setattr(TrainingModule, "configure_gradient_clipping", record)
    train(config(updates=5, clip=clip), folder, progress=False)
    assert told == pytest.approx(raw)
    assert len(raw) == 5
    assert clipped == pytest.approx([clip] * 5 if clip == 0.01 else raw, rel=1e-3)


def test_the_cosine_schedule_ends_at_zero(config):
    module = TrainingModule(config(updates=100, learning_rate=0.5, schedule="cosine"))
    scheduler = module.configure_optimizers()["lr_scheduler"]["scheduler"]
    rate = scheduler.lr_lambdas[0]
    assert [rate(0), rate(50), rate(100), rate(101)] == pytest.approx([1, 0.5, 0, 0])


@pytest.mark.parametrize("update", [None, 12, 13, 27])
def test_the_plateau_schedule_halves_after_five_validations_without_progress(
    config, folder, monkeypatch, update
):
    """At a rate that changes next to nothing: after validations 6, 11, 16 and 21; also when resumed."""
    settings = config(
        updates=50, validate_every=2, checkpoint_every=1, learning_rate=1e-6, schedule="plateau"
    )
    if update is not None:
        with monkeypatch.context() as patch:
            crash_at(patch, update, raise_crash)
            with pytest.raises(Crash):
                train(settings, folder, progress=False)
    run = train(settings, folder, resume=update is not None, progress=False)
    assert learning_rate(run) == 1e-6 / 2**4


def test_the_plateau_schedule_leaves_a_run_that_progresses_alone(config, folder):
    run = train(config(updates=50, validate_every=2, learning_rate=1e-3, schedule="plateau"), folder)
    losses = [row["loss"] for row in run.metrics() if row["split"] == "validation"]
    assert all(after < 0.9999 * before for before, after in pairwise(losses))
    assert learning_rate(run) == 1e-3


def learning_rate(run: Run) -> float:
    """That of the next update."""
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    return checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]


def test_initial_weights_depend_on_the_seed_alone(config):
    torch.manual_seed(1)
    one = build_model(config())
    two = build_model(config())
    other = build_model(config(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_resuming_a_finished_run_changes_nothing(config, folder, capsys):
    train(config(), folder, progress=False)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    train(config(), folder, resume=True)
    assert "nothing to do" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_kill_before_the_summary(config, folder):
    run = train(config(), folder, progress=False)
    summary = run.read_json("summary.json")
    (folder / "summary.json").unlink()
    train(config(), folder, resume=True, progress=False)
    assert run.read_json("summary.json") == summary


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_cleanly_and_the_run_goes_on(config, tmp_path, monkeypatch, number):
    whole = train(config(), tmp_path / "whole", progress=False)
    before = signal.getsignal(signal.SIGINT)  # Python's own, or none at all where a shell began it by &
    with monkeypatch.context() as patch:
        crash_at(patch, 33, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match="stopped after update 34; to go on: rims resume"):
            train(config(), tmp_path / "parts", progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(tmp_path / "parts/checkpoints/last.ckpt", weights_only=True)["global_step"] == 34
    parts = train(config(), tmp_path / "parts", resume=True, progress=False)
    assert_equal_runs(whole, parts)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_names_its_update(config, folder, monkeypatch, poison):
    step = TrainingModule.training_step

    def training_step(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        if self.trainer.global_step != 33:
            return loss
        if poison == "loss":
            return loss * float("nan")
        weight = self.model.head.weight
        return loss + (weight - weight.detach()).abs().sum().sqrt()  # 0, with an infinite gradient

    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    what = "loss" if poison == "loss" else "gradient norm"
    with pytest.raises(WorkError, match=f"the {what} is nan at update 34") as caught:
        train(config(), folder, progress=False)
    steadier = config().core.steadier
    assert str(caught.value).endswith(f", or {steadier})" if steadier else "or clip)")
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 30
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_dropout_is_off_in_validation_and_on_in_training(config, folder, monkeypatch):
    modes = []
    forward = nn.Dropout.forward
    monkeypatch.setattr(
        nn.Dropout, "forward", lambda self, x: (modes.append(self.training), forward(self, x))[1]
    )
    train(config(updates=2, validate_every=1), folder, progress=False)
    assert modes == [True, True, False, False] * 2


def test_lightning_gets_the_options(config, folder, monkeypatch):
    seen = {}
    init = Trainer.__init__

    def record(self, *arguments, **options):
        seen.update(options)
        init(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "__init__", record)
    options = config(updates=2, precision="bf16-mixed", clip=0.7)
    # Of nn.LSTM torch has no bfloat16 on a CPU without instructions for it.
    run = train(replace(options, core=GRUConfig(4)), folder, progress=False)
    assert (seen["precision"], seen["accelerator"], seen["devices"]) == ("bf16-mixed", "cpu", 1)
    assert (seen["max_steps"], seen["gradient_clip_val"]) == (2, 0.7)
    assert run.metrics()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "7"}, "Precision '7' is invalid"),
        ({"accelerator": "abacus"}, "invalid accelerator name"),
        ({"batch_size": 3, "devices": 2}, "batch_size is 3; expected a multiple of devices, 2"),
        (
            {"batch_size": 6, "devices": 2, "nodes": 2},
            "batch_size is 6; expected a multiple of devices times nodes, 4",
        ),
    ],
)
def test_wrong_options_leave_no_folder(config, folder, wrong, message):
    with pytest.raises(UserError, match=message):
        train(config(**wrong), folder, progress=False)
    assert not folder.exists()


@pytest.mark.parametrize(
    "name", ["updates", "batch_size", "checkpoint_every", "clip", "threads", "learning_rate"]
)
def test_options_out_of_range_are_named(config, name):
    with pytest.raises(ValueError, match=f"{name} is -1[.0]*; expected"):
        config(**{name: -1.0 if name in ("clip", "learning_rate") else -1})


def test_a_folder_in_use_and_another_config_are_refused(config, folder):
    train(config(updates=3), folder, progress=False)
    with pytest.raises(UserError, match="holds a run already"):
        train(config(updates=3), folder, progress=False)
    with pytest.raises(UserError, match=r"was started with training\.seed 0, not 4"):
        train(config(updates=3, seed=4), folder, resume=True, progress=False)
    with pytest.raises(UserError, match="it does not exist"):
        train(config(), folder / "nowhere", resume=True, progress=False)


def test_progress_says_where_it_stands_without_a_terminal(config, folder, capsys, monkeypatch):
    monkeypatch.setattr("rims.train.progress.PLAIN_EVERY", 0.0)
    train(config(updates=25), folder)
    out, err = capsys.readouterr()
    assert out == ""
    line = err.splitlines()[-1]
    assert line.startswith("update 25/25  loss ")
    assert "recall_accuracy" in line
    assert line.endswith(" left")


def test_leftovers_of_killed_writes_are_removed(config, folder):
    train(config(updates=10), folder, progress=False)
    leftover = folder / "checkpoints" / ".last.ckpt.abc.unfinished"
    leftover.write_bytes(b"half")
    (folder / "checkpoints" / "last.ckpt").unlink()
    run = train(config(updates=10), folder, resume=True, progress=False)
    assert not leftover.exists()
    assert [row["update"] for row in run.metrics()] == [10, 10]
    assert json.loads((folder / "config.json").read_text())["format"] == 1
    assert Run.open(folder).config == config(updates=10)
