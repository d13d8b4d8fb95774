"""Rollouts, what is measured on them, and what those score who learn nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rims.cores import LSTMConfig, RIMConfig
from rims.models import SequenceModel
from rims.tasks import Batch
from rims.tasks.pixels import FRAME, SEQUENCE, as_floats, as_logits, counts, cross_entropy, f1
from rims.tasks.video import Scene, position_error, roll_out
from rims.train.data import reference
from tests.tasks.moving import Moving

TASK = Moving()
CORES = [LSTMConfig(5), RIMConfig(12, 3, 2, input_key_size=4, comm_key_size=4, comm_heads=2)]


def draw(sequences: int = 4, task: Moving = TASK, condition: int = 1) -> Batch:
    return task.batch(sequences, torch.Generator().manual_seed(0), condition)


def of_rows(batch: Batch, rows: slice | torch.Tensor) -> Batch:
    positions, velocities, radii, *_ = batch.details
    scene = Scene(positions[:, rows], velocities[:, rows], radii[rows])
    return Batch(batch.inputs[:, rows], batch.targets[:, rows], scene)


def model_of(core=CORES[0], **options) -> SequenceModel:
    return SequenceModel(TASK, core, 6, channels=(2, 3, 4), hidden=5, **options).eval()


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.name)
def test_a_rollout_is_stepping_by_hand(core) -> None:
    model, frames = model_of(core).double(), draw().inputs[:3]
    fed, logits = roll_out(model, frames, 4)
    assert not logits.requires_grad
    state, x = None, None
    for t in range(6):
        x = frames[t : t + 1].double() / 255 if t < 3 else x.sigmoid()
        out, state = model(x, state)
        torch.testing.assert_close(fed[t : t + 1].double(), x, rtol=0, atol=1e-7)
        torch.testing.assert_close(logits[t : t + 1], out, rtol=1e-6, atol=1e-6)
        x = out.detach()
    assert fed.shape == logits.shape == (6, 4, 1, 16, 16)


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.name)
def test_feeding_what_a_rollout_fed_gives_its_outputs(core) -> None:
    model = model_of(core).double()
    fed, logits = roll_out(model, draw().inputs[:3], 4)
    torch.testing.assert_close(model(fed)[0], logits, rtol=1e-6, atol=1e-6)
    one, _ = roll_out(model, draw().inputs[:3], 1)
    assert len(one) == 3


def test_a_rollout_leaves_dropout_to_the_caller() -> None:
    model, frames = model_of(dropout=0.5), draw().inputs[:3]
    assert torch.equal(roll_out(model, frames, 2)[1], roll_out(model, frames, 2)[1])
    model.train()
    assert not torch.equal(roll_out(model, frames, 2)[1], roll_out(model, frames, 2)[1])


def test_measurements_are_of_the_frames_they_name() -> None:
    model, batch = model_of(), draw()
    with torch.no_grad():
        found = TASK.measure(model, batch)
        outputs, _ = model(batch.inputs)
        logits = roll_out(model, batch.inputs[:3], 4)[1][2:]
    frames = torch.cat([batch.inputs, batch.targets[-1:]])
    y = frames[1:].double() / 255
    p = outputs.double().sigmoid()
    assert float(found["loss"]) == pytest.approx(
        float(-(y * p.log() + (1 - y) * (1 - p).log()).mean()), rel=1e-4
    )
    assert float(found["f1"]) == pytest.approx(float(f1(counts(outputs, frames[1:], SEQUENCE)).mean()))
    y, p = frames[3:7].double() / 255, logits.double().sigmoid()
    by_hand = float(-(y * p.log() + (1 - y) * (1 - p).log()).mean())
    assert float(found["rollout_cross_entropy"]) == pytest.approx(by_hand, rel=1e-4)
    assert found.keys() == {
        *("loss", "f1", "balanced_accuracy"),
        *("rollout_cross_entropy", "rollout_f1", "rollout_balanced_accuracy", "position_error"),
    }
    assert TASK.chance().keys() <= found.keys()


def test_a_model_that_knows_the_future_is_right() -> None:
    batch = draw(8, condition=2)
    frames = torch.cat([batch.inputs, batch.targets[-1:]])

    def oracle(inputs, state=0):
        return as_logits(frames[state + 1 : state + 1 + len(inputs)]), state + len(inputs)

    found = TASK.measure(oracle, batch)
    for name in ("f1", "balanced_accuracy", "rollout_f1", "rollout_balanced_accuracy"):
        assert float(found[name]) == 1.0, name
    assert float(found["position_error"]) < 0.01  # the oracle is sure to EPSILON alone


def test_an_oracle_is_shown_what_it_is_to_predict_and_nothing_else_changes() -> None:
    task, batch = replace(TASK, oracle=True), draw(8, condition=2)
    told = draw(8, replace(TASK, oracle=True), condition=2)
    assert torch.equal(told.targets, batch.targets)
    assert torch.equal(told.inputs[:-1], batch.inputs[1:])
    assert torch.equal(told.inputs, told.targets)
    found = task.measure(lambda inputs: (as_logits(inputs), None), told)
    assert found.keys() == {"loss", "f1", "balanced_accuracy"}
    assert float(found["f1"]) == float(found["balanced_accuracy"]) == 1.0
    assert task.references(told) == {}


def test_batches_that_count_by_their_size_are_the_mean_of_all() -> None:
    model, whole = model_of(), draw(6, condition=2)
    parts = [of_rows(whole, rows) for rows in (slice(0, 2), slice(2, 6))]
    with torch.no_grad():
        together, (two, four) = TASK.measure(model, whole), (TASK.measure(model, part) for part in parts)
    for name, value in together.items():
        assert float(value) == pytest.approx((2 * float(two[name]) + 4 * float(four[name])) / 6, rel=1e-4), (
            name
        )
    assert reference(TASK, iter(parts))["last frame"] == pytest.approx(
        {name: float(value) for name, value in TASK.references(whole)["last frame"].items()}, rel=1e-4
    )


def test_references_know_where_things_were_and_where_they_went() -> None:
    found = TASK.references(draw(16))
    still, moved = found["last frame"], found["constant velocity"]
    frames = torch.cat([draw(16).inputs, draw(16).targets[-1:]])
    expected = cross_entropy(as_logits(frames[:-1]), frames[1:], SEQUENCE).mean()
    assert float(still["loss"]) == pytest.approx(float(expected), rel=1e-4)
    expected = cross_entropy(as_logits(frames[2].expand(4, -1, -1, -1, -1)), frames[3:7], SEQUENCE).mean()
    assert float(still["rollout_cross_entropy"]) == pytest.approx(float(expected), rel=1e-4)
    assert still.keys() == {"f1", "balanced_accuracy", *moved, "loss"}
    # The discs keep their velocity.
    assert float(moved["position_error"]) < 0.05
    assert float(moved["rollout_f1"]) > 0.99
    assert float(moved["rollout_cross_entropy"]) < float(still["rollout_cross_entropy"]) / 2


def test_what_stands_still_is_behind_by_its_speed() -> None:
    task = Moving(side=64, radius=4.0, speed=2.0, length=4, feed_in=1, rollout=3)
    batch = task.batch(200, torch.Generator().manual_seed(3))
    inside = ((batch.details.positions - 32).abs() < 26).all(0).flatten(1).all(1)
    rows = of_rows(batch, inside)
    assert inside.sum() > 50
    found = task.references(rows)["last frame"]["position_error"]
    assert float(found) == pytest.approx((2 + 4 + 6) / 3, abs=0.05)
    without_scene = position_error(as_logits(rows.inputs[:1].expand(3, -1, -1, -1, -1)), rows.targets)
    torch.testing.assert_close(without_scene.mean(1), torch.tensor([2.0, 4.0, 6.0]), rtol=0, atol=0.05)


def test_curves_are_the_same_numbers_frame_by_frame() -> None:
    model, batch = model_of(), draw()
    curves = TASK.rollout_curves(model, batch)
    with torch.no_grad():
        measured = TASK.measure(model, batch)
        outputs, _ = model(batch.inputs)
    references = TASK.references(batch)
    assert curves.keys() == {"model", "last frame", "constant velocity"}
    for name, metrics in {"model": measured, **references}.items():
        for metric, curve in curves[name].items():
            assert curve.shape == (6,)
            assert curve[2:].isfinite().all()
            total = {"cross_entropy": "rollout_cross_entropy"}.get(metric, metric)
            if metric != "f1":  # that of a sequence is not the mean over its frames
                assert float(curve[2:].mean()) == pytest.approx(float(metrics[total]), rel=1e-4)
    first = cross_entropy(outputs[:2], batch.targets[:2], FRAME).mean(1)
    torch.testing.assert_close(curves["model"]["cross_entropy"][:2], first)
    first = f1(counts(as_logits(batch.inputs[:3]), batch.targets[:3], FRAME)).mean(1)
    torch.testing.assert_close(curves["last frame"]["f1"][:3], first)
    assert curves["constant velocity"]["f1"][:2].isnan().all()


def test_the_position_error_of_frames_without_objects() -> None:
    truth = torch.zeros(2, 1, 1, 16, 16, dtype=torch.uint8)
    truth[1, 0, 0, 4:8, 4:8] = 255
    nothing = torch.full((2, 1, 1, 16, 16), -5.0)
    found = position_error(nothing, truth)
    assert found[0].isnan().all()
    assert found[1].item() == pytest.approx(0.5 * 16 * 2**0.5)
    batch = Batch(torch.zeros(6, 1, 1, 16, 16).byte(), torch.zeros(6, 1, 1, 16, 16).byte())
    assert float(TASK.rollout_metrics(torch.full((4, 1, 1, 16, 16), -5.0), batch)["position_error"]) == 0


def test_the_brightest_channel_counts() -> None:
    truth = torch.zeros(1, 1, 3, 16, 16, dtype=torch.uint8)
    truth[0, 0, 1, 4:8, 4:8] = 255
    logits = torch.full((1, 1, 3, 16, 16), -5.0)
    logits[0, 0, 2, 7:11, 8:12] = 5.0
    assert position_error(logits, truth).item() == pytest.approx(5.0)


def test_bytes_are_brightness_and_floats_stay() -> None:
    assert as_floats(torch.tensor([0, 51, 255]).byte()).tolist() == pytest.approx([0, 0.2, 1])
    x = torch.rand(3, dtype=torch.float64)
    assert as_floats(x) is x


@pytest.mark.without_shape_checks
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length is 0; expected at least 1"),
        ({"feed_in": 0}, "feed_in is 0; expected at least 1"),
        ({"rollout": -1}, "rollout is -1; expected at least 1"),
        ({"feed_in": 5, "rollout": 3}, "feed_in is 5 and rollout 3; expected at most length, 7, together"),
    ],
)
def test_wrong_options(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Moving(**options)
