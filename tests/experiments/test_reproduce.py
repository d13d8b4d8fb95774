"""Experiments: their arms are what the paper's tables say, a grid resumes, its table holds what was
measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rims.cli import main
from rims.cores import CORES
from rims.cores.sizes import measure
from rims.errors import UserError
from rims.experiments import summary as summaries
from rims.experiments.grid import Evaluation, is_done, run_grid
from rims.experiments.reproduce import EXPERIMENTS, SCALES, plan
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
    for core in set(CORES) - {"rim"}:
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
    assert smnist["rim-5-3"].config.core.hidden_size == 510
    ablations = {arm.name: arm for arm in plan("copying-ablations", "paper").arms}
    assert len(ablations) == 1 + 9 + 5 + 8 + 6 + 5
    assert ablations["rim-24-22"].config.core.hidden_size == 2400
    assert ablations["no-communication-4-2"].config.core.hidden_size == 600
    assert not ablations["no-input-attention-1-512"].config.core.input_attention


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
    assert "| rim-6-4 | 0.000 / 0.000 (at 50 / 200) |" in page
    assert "Not run: rim-6-3, " in page


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other(tmp_path: Path) -> None:
    arms = plan("copying", "smoke", ["rim-6-4", "lstm"]).arms
    bad, good = (arm.config for arm in arms)
    bad.model.dropout = 2.0
    runs = {tmp_path / "bad": bad, tmp_path / "good": good}
    failed = run_grid(runs, Evaluation("best", 16), "again", workers=1)
    assert failed == {tmp_path / "bad": "dropout is 2.0; expected 0 <= dropout < 1"}
    assert is_done(tmp_path / "good", good, Evaluation("best"))
    assert not is_done(tmp_path / "good", good, Evaluation("last"))
    good.training.updates = 5
    with pytest.raises(UserError, match="was started with other options"):
        is_done(tmp_path / "good", good, Evaluation("best"))


def example() -> dict:
    run = {
        "updates": 10,
        "seconds": 61.0,
        "parameters": 1234,
        "commit": "abcdef0123",
        "command": "rims reproduce x",
    }
    run |= {"cpu": "a CPU", "gpu": None}
    runs = [
        {
            **run,
            "seed": s,
            "test": {"8": {"metrics": {"accuracy": v}}, "16": {"metrics": {"accuracy": v / 2, "loss": v}}},
            "best_validation": {"8": v, "16": v},
        }
        for s, v in enumerate((0.5, 0.6, 0.7))
    ]
    arms = [
        {"name": "rim", "published": {"8": 0.9, "16": 0.1}, "runs": runs},
        {"name": "lstm", "published": {}, "runs": []},
    ]
    return {
        "experiment": "digits",
        "scale": "small",
        "source": "nowhere",
        "metrics": ["accuracy", "loss"],
        "condition": "resolution",
        "labels": {"8": "8", "16": "16"},
        "chance": {"accuracy": 0.1},
        "references": {},
        "arms": arms,
        "impossible": ["ntm-state: none"],
        "failed": {"lstm-0": "out of luck"},
    }


def test_a_table_from_known_numbers() -> None:
    header, rows = summaries.table(example(), "accuracy")
    assert header[2:5] == ["resolution 8", "resolution 16", "paper's rule"]
    # t(0.975, 2) = 4.303; s = 0.1; 4.303 * 0.1 / sqrt(3) = 0.248
    half = "±\N{NO-BREAK SPACE}"
    assert rows[0] == [
        "rim", "90.0 / 10.0", f"60.0 {half}24.8", f"30.0 {half}12.4", "60.0 / 60.0",
        "3", "1,234", "10", "1 min 01 s",
    ]  # fmt: skip
    assert rows[1][:4] == ["chance", "", "10.0", "10.0"]
    assert summaries.table(example(), "loss") == (
        ["arm", "resolution 8", "resolution 16"],
        [["rim", "–", f"0.600 {half}0.248"]],
    )
    text = summaries.markdown([example()])
    lines = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert lines == [10] * 4 + [4] * 3
    assert text.count("## digits") == 2
    assert "Not run: lstm." in text
    assert "No such size: ntm-state: none." in text
    assert "Failed: lstm-0: out of luck." in text
    assert "Commit abcdef0, on a CPU." in text


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    with pytest.raises(UserError, match=r"cannot read .*summary.json: No such file"):
        summaries.read(path)
    path.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        summaries.read(path)
    path.write_text("{}")
    with pytest.raises(UserError, match="is no summary of an experiment"):
        summaries.read(path)


def test_a_table_has_labels_and_references() -> None:
    tests = {c: {"metrics": {"rollout_f1": v}} for c, v in (("4", 0.1), ("40", 0.3), ("678", 0.2))}
    run = {"seed": 0, "test": tests, "best_validation": {}, "parameters": 1, "updates": 1, "seconds": 1.0}
    summary = {
        "metrics": ["rollout_f1"],
        "condition": "balls",
        "labels": {"4": "4", "678": "6-8", "40": "4, curtain"},
        "chance": {},
        "references": {"last frame": {"4": {"rollout_f1": 0.05}, "678": {"rollout_f1": 0.01}}},
        "arms": [{"name": "rim", "published": {"4": 0.5, "678": 0.4}, "runs": [run]}],
    }
    header, rows = summaries.table(summary, "rollout_f1")
    assert header[2:5] == ["balls 4", "balls 6-8", "balls 4, curtain"]
    assert rows[0] == [
        "rim", "0.500 / 0.400 (at 4 / 6-8)", "0.100", "0.200", "0.300", "1", "1", "1", "1 s"
    ]  # fmt: skip
    assert rows[1][:5] == ["last frame", "", "0.050", "0.010", "–"]
    summary["arms"][0]["published"] = {}
    header, rows = summaries.table(summary, "rollout_f1")
    assert header[:2] == ["arm", "balls 4"]
    assert rows[0][:2] == ["rim", "0.100"]
