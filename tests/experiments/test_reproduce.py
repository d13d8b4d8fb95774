"""Experiments: their arms are what the paper's tables say, a grid resumes, its table holds what was
measured."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rims.cli import main
from rims.cores import CORES
from rims.cores.sizes import measure
from rims.errors import UserError
from rims.experiments.grid import Evaluation, is_done, run_grid
from rims.experiments.reproduce import EXPERIMENTS, SCALES, SMOKE_SEQUENCES, plan, reproduce
from rims.report.masking import mask
from rims.train.config import RunConfig
from rims.train.folder import Run


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_arms_build_and_differ_and_survive_their_folder(name: str, scale) -> None:
    grid = plan(name, scale)
    names = [arm.name for arm in grid.arms]
    assert len(set(names)) == len(names)
    assert all(a.config != b.config for i, a in enumerate(grid.arms) for b in grid.arms[:i])
    for arm in grid.arms:
        assert RunConfig.from_json(arm.config.to_json()) == arm.config
        assert arm.config.training.seed == 0
        measure(arm.config.core, arm.config.model.input_size, "num_parameters")


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", ["copying", "adding", "smnist", "digits"])
def test_fair_sizes_are_fair_and_miss_no_core(name: str, scale) -> None:
    grid = plan(name, scale)
    # A Transformer's state is its window.
    assert [why.partition(":")[0] for why in grid.impossible] == ["transformer-state"]
    input_size = grid.arms[0].config.model.input_size

    def sizes(attribute: str, core: str) -> list[int]:
        cores = [arm.config.core for arm in grid.arms if arm.config.core.name == core]
        return [measure(config, input_size, attribute) for config in cores]

    (state, *_), (parameters, *_) = sizes("state_size", "rim"), sizes("num_parameters", "rim")
    for core in {core for core in CORES if CORES[core].recurrent} - {"rim"}:
        assert state in sizes("state_size", core) or core == "transformer"
        assert any(abs(found - parameters) <= 0.05 * parameters for found in sizes("num_parameters", core))


@pytest.mark.parametrize("name", ["copying", "adding", "smnist"])
def test_the_short_scale_has_the_papers_sizes_and_the_small_scales_updates(name: str) -> None:
    short, paper, small = (plan(name, scale).arms for scale in ("short", "paper", "small"))
    published = {arm.name: arm.config for arm in paper}
    for arm in short:
        assert (arm.config.core, arm.config.task) == (published[arm.name].core, published[arm.name].task)
    training = short[0].config.training
    assert training.updates == small[0].config.training.updates < paper[0].config.training.updates
    assert (training.schedule, training.accelerator) == ("cosine", "auto")


def test_the_paper_scale_is_the_papers() -> None:
    copying = {arm.name: arm for arm in plan("copying", "paper").arms}
    core, training = copying["rim-6-4"].config.core, copying["rim-6-4"].config.training
    assert (core.hidden_size, core.num_rims, core.num_active) == (600, 6, 4)
    assert (core.input_dropout, core.comm_dropout) == (0.1, 0.1)
    assert (training.updates, training.learning_rate, training.batch_size) == (30_000, 1e-3, 64)
    assert copying["lstm-half"].published == {50: 0.0, 200: 4.32}
    smnist = {arm.name: arm for arm in plan("smnist", "paper").arms}
    assert smnist["rim-6-4"].published == pytest.approx({16: 0.9, 19: 0.734, 24: 0.381})
    assert smnist["rim-6-4"].config.training.learning_rate == 1e-4
    later = smnist["rim-5-3"].config
    assert (later.core.hidden_size, later.core.num_rims, later.core.num_active) == (510, 5, 3)
    assert later.training.learning_rate == 1e-3
    crops = {arm.name: arm.config for arm in plan("crops", "paper").arms}
    training = crops["rim-6-4"].training
    assert (training.schedule, training.validate_every) == ("plateau", 312)
    oracle = crops["oracle"]
    assert oracle.task == replace(crops["rim-6-4"].task, oracle=True)
    assert not oracle.core.recurrent
    ablations = {arm.name: arm for arm in plan("copying-ablations", "paper").arms}
    assert len(ablations) == 1 + 9 + 5 + 8 + 6 + 5
    assert ablations["rim-24-22"].config.core.hidden_size == 2400
    assert ablations["no-communication-4-2"].config.core.hidden_size == 600
    assert not ablations["no-input-attention-1-512"].config.core.input_attention


@pytest.mark.parametrize("name", ["copying", "adding", "smnist", "scifar"])
def test_variants_selections_and_the_authors_later_sizes_are_arms(name: str) -> None:
    cores = {arm.name: arm.config.core for arm in plan(name, "paper").arms}
    main = cores["rim-6-4"]
    assert (main.variant, main.selection) == ("paper", "null")
    assert cores["rim-6-4-official"] == replace(main, variant="official")
    assert cores["rim-6-4-competition"] == replace(main, selection="competition")
    later = replace(main, hidden_size=510, num_rims=5, num_active=3)
    assert cores["rim-5-3"] == later


def test_unknown_names_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(UserError, match="unknown experiment 'copy'; known: copying, "):
        plan("copy", "small")
    with pytest.raises(UserError, match="unknown arm 'rim'; known: rim-6-4, "):
        plan("copying", "small", ["rim"])
    why = "transformer-state: no head_pairs gives transformer the state size of rim, 600: "
    with pytest.raises(UserError, match=why):
        plan("copying", "small", ["transformer-state"])
    with pytest.raises(UserError, match="seeds is 0; expected at least 1"):
        plan("copying", "small", seeds=0)
    with pytest.raises(UserError, match="updates is 0; expected at least 1"):
        plan("copying", "small", updates=0)


def test_a_budget_of_ones_own_changes_nothing_else() -> None:
    scale, own = plan("smnist", "short").arms, plan("smnist", "short", updates=15_000).arms
    for before, after in zip(scale, own):
        assert before.config.training.updates != 15_000
        before.config.training.updates = 15_000
        assert before == after


@pytest.mark.slow
def test_a_grid_runs_once_and_its_table_holds_what_it_measured(tmp_path: Path, capsys) -> None:
    command = f"reproduce copying --scale smoke --folder {tmp_path} --only rim-6-4 lstm --seeds 2 --workers 1"
    main(command.split())
    first = capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    values = {}
    for name in ("rim-6-4", "lstm"):
        arm = next(arm for arm in summary["arms"] if arm["name"] == name)
        assert [run["seed"] for run in arm["runs"]] == [0, 1]
        for run in arm["runs"]:
            rows = Run.open(tmp_path / f"{name}-{run['seed']}").read_json("evaluation.json")["conditions"]
            assert {str(r["condition"]): r["metrics"]["recall_cross_entropy"] for r in rows} == {
                c: v["metrics"]["recall_cross_entropy"] for c, v in run["test"].items()
            }
            assert {r["checkpoint"] for r in rows} == {"best"}
        values[name] = [run["test"]["10"]["metrics"]["recall_cross_entropy"] for run in arm["runs"]]
        assert f"{sum(values[name]) / 2:.3f}" in first
    assert values["rim-6-4"][0] != values["rim-6-4"][1]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json*")}
    main(command.split())
    assert capsys.readouterr().out == first
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json*")}
    main(f"results {tmp_path / 'summary.json'} --output {tmp_path / 'results.md'}".split())
    page = (tmp_path / "results.md").read_text()
    assert "| arm | published at 50 / 200 | 5 | 10 |" in page
    assert "| rim-6-4 | 0.000 / 0.000 |" in page
    assert "Not run: rim-6-3, " in page
    # Another seed, which another machine has run: asked for alone, it stands beside those that are there.
    shutil.copytree(tmp_path / "lstm-1", tmp_path / "lstm-7")
    config = json.loads((tmp_path / "lstm-1" / "config.json").read_text())
    config["training"]["seed"] = 7
    (tmp_path / "lstm-7" / "config.json").write_text(json.dumps(config))
    main(command.replace("rim-6-4 lstm --seeds 2", "lstm --seeds 1 --first-seed 7").split())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {arm["name"]: [run["seed"] for run in arm["runs"]] for arm in summary["arms"]} == {
        "rim-6-4": [0, 1],
        "lstm": [0, 1, 7],
    }
    # What stands there must still be this experiment's, asked for or not.
    config["training"] |= {"seed": 1, "clip": 2.0}
    (tmp_path / "lstm-1" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="lstm-1 was started with other options"):
        reproduce("copying", "smoke", tmp_path, ["rim-6-4"], 1)


@pytest.mark.slow
def test_the_masking_study_removes_each_rim_also_of_runs_that_stand(tmp_path: Path, capsys) -> None:
    command = f"reproduce masking --scale smoke --folder {tmp_path} --only rim-4-2 --workers 1 --seeds 1"
    main(command.split())
    out = capsys.readouterr().out
    assert "at the training condition, with one RIM removed at a time" in out
    run = Run.open(tmp_path / "rim-4-2-0")
    expected = mask(run, None, SMOKE_SEQUENCES, "best", "cpu")
    (seed,) = json.loads((tmp_path / "summary.json").read_text())["arms"][0]["runs"]
    assert [*seed["lesions"]] == ["none", "0", "1", "2", "3"]
    for rim, metrics in expected.items():
        measured = seed["lesions"]["none" if rim is None else str(rim)]
        # Another process, with other threads, rounds otherwise.
        assert measured == pytest.approx({name: metrics[name] for name in measured}, rel=1e-5)
        assert measured.keys() == seed["test"]["2"]["metrics"].keys()
    assert seed["lesions"]["none"] == pytest.approx(seed["test"]["2"]["metrics"], rel=1e-5)
    (run.path / "lesions.json").unlink()
    main(command.split())
    assert capsys.readouterr().out == out


@pytest.mark.slow
def test_a_run_that_diverged_is_told_of_later_too(tmp_path: Path, capsys) -> None:
    command = f"reproduce copying --scale smoke --folder {tmp_path} --only lstm --workers 1 --seeds 1".split()
    main(command)
    shutil.copytree(tmp_path / "lstm-0", tmp_path / "gru-state-0")
    config = plan("copying", "smoke", ["gru-state"]).arms[0].config
    (tmp_path / "gru-state-0" / "config.json").write_text(json.dumps({"format": 1, **config.to_json()}))
    (tmp_path / "gru-state-0" / "summary.json").unlink()
    (tmp_path / "gru-state-0" / "failure.txt").write_text("the loss is nan at update 3; it diverged\n")
    main(command)
    assert "the loss is nan at update 3; it diverged" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["failed"] == {"gru-state-0": "the loss is nan at update 3; it diverged"}


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other(tmp_path: Path) -> None:
    arms = plan("copying", "smoke", ["rim-6-4", "lstm"]).arms
    bad, good = (arm.config for arm in arms)
    bad.model.dropout = 2.0
    wild = copy.deepcopy(good)
    wild.training.learning_rate = 3e37
    runs = {tmp_path / "bad": bad, tmp_path / "wild": wild, tmp_path / "good": good}
    failed = run_grid(runs, Evaluation("best", 16), "again", workers=1)
    assert failed.keys() == {tmp_path / "bad", tmp_path / "wild"}
    assert failed[tmp_path / "bad"] == "dropout is 2.0; expected 0 <= dropout < 1"
    assert re.search(r"is (nan|inf) at update", failed[tmp_path / "wild"])
    assert (tmp_path / "wild" / "failure.txt").read_text().strip() == failed[tmp_path / "wild"]
    assert is_done(tmp_path / "good", good, Evaluation("best"))
    assert not is_done(tmp_path / "good", good, Evaluation("last"))
    good.training.updates = 5
    with pytest.raises(UserError, match="was started with other options"):
        is_done(tmp_path / "good", good, Evaluation("best"))
