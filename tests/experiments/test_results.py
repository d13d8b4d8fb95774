"""Summaries add up; tables and the page of results hold what the summaries say."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rims.cli import main
from rims.errors import UserError
from rims.experiments import summary as summaries
from rims.experiments import tables
from rims.experiments.reproduce import plan

ROOT = Path(__file__).parents[2]
HALF = "±\N{NO-BREAK SPACE}"
CONFIG = {"task": {"name": "digits"}, "core": {"name": "rim"}, "model": {}, "training": {"updates": 10}}


def run_of(seed: int, accuracy: float, **options: Any) -> dict[str, Any]:
    run = {
        "seed": seed,
        "updates": 10,
        "seconds": 61.0,
        "parameters": 1234,
        "flops_per_step": 45_678,
        "commit": "abcdef0123",
        "command": "rims reproduce x",
        "cpu": "a CPU",
        "gpu": None,
        "test": {
            "8": {"metrics": {"accuracy": accuracy}},
            "16": {"metrics": {"accuracy": accuracy / 2, "loss": accuracy}},
        },
        "best_validation": {"8": accuracy, "16": accuracy},
    }
    return run | options


def arm_of(name: str, *runs: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"name": name, "published": {}, "config": copy.deepcopy(CONFIG), "runs": [*runs], **options}


def summary_of(*arms: dict[str, Any], **options: Any) -> dict[str, Any]:
    summary = {
        "experiment": "digits",
        "scale": "imagined",
        "source": "nowhere",
        "metrics": ["accuracy", "loss"],
        "task": "digits",
        "condition": "resolution",
        "labels": {"8": "8", "16": "16"},
        "chance": {"accuracy": 0.1},
        "references": {},
        "arms": [*arms],
        "failed": {},
    }
    return summary | options


Write = Callable[..., list[Path]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def files(*contents: dict[str, Any]) -> list[Path]:
        paths = [tmp_path / f"{number}.json" for number in range(len(contents))]
        for path, content in zip(paths, contents):
            path.write_text(json.dumps(content))
        return paths

    return files


def seeds(summary: dict[str, Any]) -> dict[str, list[int]]:
    return {arm["name"]: [run["seed"] for run in arm["runs"]] for arm in summary["arms"]}


def test_summaries_add_up_by_arm_and_seed(write: Write) -> None:
    one = summary_of(
        arm_of("rim", run_of(1, 0.5)), arm_of("never"), failed={"rim-0": "memory", "rim-3": "memory"}
    )
    other = summary_of(
        arm_of("lstm", run_of(0, 0.25)),
        arm_of("rim", run_of(0, 0.75), run_of(1, 0.5)),  # seed 1 is the same run again
        metrics=["accuracy", "f1"],
        labels={"24": "24", "16": "16"},
        chance={"accuracy": 0.1, "f1": 0.2},
    )
    elsewhere = summary_of(arm_of("rim", run_of(0, 0.1)), scale="another")
    longer = summary_of(arm_of("rim", run_of(0, 0.9)), updates=10_000)
    merged = summaries.merge(write(one, elsewhere, other, longer))
    assert [summary["scale"] for summary in merged] == ["imagined", "another", "imagined"]
    assert seeds(merged[2]) == {"rim": [0]}
    assert tables.heading(merged[2]) == "digits (nowhere), scale imagined, 10,000 updates"
    whole = merged[0]
    assert seeds(whole) == {"rim": [0, 1], "lstm": [0]}
    assert whole["metrics"] == ["accuracy", "loss", "f1"]
    assert [*whole["labels"]] == ["8", "16", "24"]
    assert whole["chance"] == {"accuracy": 0.1, "f1": 0.2}
    assert whole["failed"] == {"rim-3": "memory"}  # rim-0 has run elsewhere
    assert seeds(merged[1]) == {"rim": [0]}
    # 0.5 and 0.75: t(0.975, 1) = 12.706; 12.706 * 0.1768 / sqrt(2) = 1.588
    assert tables.table(whole, "accuracy")[1][0][:2] == ["rim", f"62.5 {HALF}158.8"]


def test_kinds_of_conditions_stay_in_the_tasks_order(write: Write) -> None:
    labels = {"4": "4", "678": "6-8", "40": "4, curtain"}
    (merged,) = summaries.merge(write(*[summary_of(task="balls", labels=labels)] * 2))
    assert merged["labels"] == labels


def test_an_arm_of_two_configurations_is_refused(write: Write) -> None:
    other = arm_of("rim", run_of(1, 0.5))
    other["config"]["core"] = {"name": "rim", "num_active": 3}
    with pytest.raises(
        UserError, match=r"0\.json and .*1\.json have other options for rim: core.num_active is 4 and 3$"
    ):
        summaries.merge(write(summary_of(arm_of("rim", run_of(0, 0.5))), summary_of(other)))
    # An option that is not written has its default; the seed is that of each run.
    same = arm_of("rim", run_of(1, 0.5))
    same["config"]["core"] |= {"num_active": 4}
    same["config"]["training"] |= {"seed": 7}
    (merged,) = summaries.merge(write(summary_of(arm_of("rim", run_of(0, 0.5))), summary_of(same)))
    assert seeds(merged) == {"rim": [0, 1]}
    unknown = arm_of("rim", run_of(1, 0.5))
    unknown["config"]["core"] |= {"colour": 1}
    with pytest.raises(UserError, match=r"0\.json, rim: core rim has no option colour"):
        summaries.merge(write(summary_of(unknown)))


def test_a_seed_of_two_results_is_refused(write: Write) -> None:
    one = summary_of(arm_of("rim", run_of(0, 0.5)))
    with pytest.raises(UserError, match=r"other numbers for rim, seed 0: accuracy at 8 is 0.5 and 0.25$"):
        summaries.merge(write(one, summary_of(arm_of("rim", run_of(0, 0.25)))))
    less = run_of(0, 0.5, best_validation={"8": 0.5})
    with pytest.raises(UserError, match=r"seed 0: the best validation at 16 is 0.5 and None$"):
        summaries.merge(write(one, summary_of(arm_of("rim", less))))
    diverged = summary_of(arm_of("rim", run_of(0, float("nan"))))
    assert seeds(*summaries.merge(write(diverged, diverged))) == {"rim": [0]}


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    with pytest.raises(UserError, match=r"cannot read .*summary.json: No such file"):
        summaries.read(path)
    path.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        summaries.read(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="is no summary of an experiment: it has no experiment"):
        summaries.read(path)


def test_a_table_from_known_numbers() -> None:
    runs = [run_of(seed, value) for seed, value in enumerate((0.5, 0.6, 0.7))]
    del runs[0]["test"]["16"]["metrics"]["loss"]
    rim = arm_of("rim", *runs, published={"8": 0.9, "16": 0.1})
    lstm = arm_of("lstm", run_of(0, 0.25, command="rims train y", gpu="a GPU", seconds=3601.0))
    summary = summary_of(rim, lstm, failed={"lstm-1": "out of luck"})
    header, rows = tables.table(summary, "accuracy")
    assert header == [
        "arm", "published at 8 / 16", "8", "16", "paper's rule",
        "seeds", "live parameters", "FLOPs per step", "updates", "time",
    ]  # fmt: skip
    # t(0.975, 2) = 4.303; s = 0.1; 4.303 * 0.1 / sqrt(3) = 0.248
    space = "\N{NO-BREAK SPACE}"
    assert rows == [
        ["rim", "90.0 / 10.0", f"60.0 {HALF}24.8", f"30.0 {HALF}12.4", "60.0 / 60.0", "3", "1,234", "45.7k",
         "10", f"1{space}min 01{space}s"],
        ["lstm", "", "25.0", "12.5", "25.0 / 25.0", "1 (1 failed)", "1,234", "45.7k", "10",
         f"1{space}h 00{space}min"],
        ["chance", "", "10.0", "10.0", "", "", "", "", "", ""],
    ]  # fmt: skip
    # 12.706 * 0.0707 / sqrt(2) = 0.635
    assert tables.table(summary, "loss") == (
        ["arm", "8", "16"],
        [["rim", "–", f"0.650 {HALF}0.635 (of 2{space}seeds)"], ["lstm", "–", "0.250"]],
    )
    assert "One seed, so no interval: lstm." in tables.notes(summary)
    assert "Failed: lstm-1: out of luck." in tables.notes(summary)
    text = tables.markdown([summary])
    lines = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert lines == [11] * 5 + [4] * 4 + [7] * 4
    assert f"| rim | 0, 1, 2 | abcdef0 | a CPU | 1{space}min 01{space}s | 1 |" in text
    assert f"| lstm | 0 | abcdef0 | a GPU | 1{space}h 00{space}min | 2 |" in text
    assert "1. `rims reproduce x`\n2. `rims train y`\n" in text


def test_removed_rims_from_known_numbers(write: Write) -> None:
    def damaged(seed: int, *values: float) -> dict[str, Any]:
        names = ["none", *map(str, range(len(values) - 1))]
        rows = {name: {"accuracy": value, "loss": 1 - value} for name, value in zip(names, values)}
        return run_of(seed, values[0], lesions=rows)

    rim = arm_of("rim", damaged(0, 0.75, 0.5, 0.25), damaged(1, 0.75, 0.5, 0.25))
    summary = summary_of(rim, arm_of("lstm", run_of(0, 0.5)))
    header, rows = tables.lesions(summary, "accuracy")
    assert header == ["arm", "intact", "without a RIM", "without the one missed most"]
    assert rows == [["rim", f"75.0 {HALF}0.0", f"37.5 {HALF}0.0", f"25.0 {HALF}0.0"]]
    assert tables.lesions(summary, "loss")[1][0][3] == f"0.750 {HALF}0.000"
    assert tables.lesions(summary_of(arm_of("lstm", run_of(0, 0.5))), "accuracy")[1] == []
    text = tables.markdown([summary])
    assert text.count("with one RIM removed at a time:\n\n| arm | intact | without a RIM |") == 2
    (merged,) = summaries.merge(write(summary, summary))
    assert merged["arms"][0]["runs"] == rim["runs"]
    other = summary_of(arm_of("rim", damaged(0, 0.75, 0.5, 0.125)))
    with pytest.raises(UserError, match=r"seed 0: accuracy without RIM 1 is 0.25 and 0.125$"):
        summaries.merge(write(summary, other))


def test_a_table_has_labels_and_references() -> None:
    tests = {c: {"metrics": {"rollout_f1": v}} for c, v in (("4", 0.1), ("40", 0.3), ("678", 0.2))}
    summary = summary_of(
        arm_of("rim", run_of(0, 0.0, test=tests, best_validation={}), published={"4": 0.5, "678": 0.4}),
        metrics=["rollout_f1"],
        condition="balls",
        labels={"4": "4", "678": "6-8", "40": "4, curtain"},
        chance={},
        references={"last frame": {"4": {"rollout_f1": 0.05}, "678": {"rollout_f1": 0.01}}},
    )
    header, rows = tables.table(summary, "rollout_f1")
    assert header[:6] == ["arm", "published at 4 / 6-8", "4", "6-8", "4, curtain", "seeds"]
    assert rows[0][:6] == ["rim", "0.500 / 0.400", "0.100", "0.200", "0.300", "1"]
    assert rows[1][:6] == ["last frame", "", "0.050", "0.010", "–", ""]
    summary["arms"].append(arm_of("long", run_of(0, 0.0, test=tests), published={"40": 0.5}))
    header, rows = tables.table(summary, "rollout_f1")
    assert header[1] == "published"
    assert [row[1] for row in rows[:2]] == ["0.500 / 0.400 (at 4 / 6-8)", "0.500 (at 4, curtain)"]
    for arm in summary["arms"]:
        arm["published"] = {}
    assert tables.table(summary, "rollout_f1")[0][:2] == ["arm", "4"]


def test_what_the_paper_claims_and_is_not_seen_is_said() -> None:
    def of(value: float, published: float, scale: str) -> list[str]:
        test = {"8": {"metrics": {"loss": value}}}
        runs = [run_of(seed, 0.0, test=test, best_validation={}) for seed in range(2)]
        arm = arm_of("rim", *runs, published={"8": published})
        return tables.notes(summary_of(arm, metrics=["loss"], experiment="none", scale=scale))

    missed = f"Published and not seen here: rim at resolution 8 (0.500 {HALF}0.000, published 0.100)."
    assert missed in of(0.5, 0.1, "paper")
    assert f"Better here than published: rim at resolution 8 (0.500 {HALF}0.000, published 0.700)." in of(
        0.5, 0.7, "paper"
    )
    assert not any("not seen" in note or "Better" in note for note in of(0.504, 0.5, "paper"))
    assert not any("not seen" in note for note in of(0.5, 0.1, "small"))


def test_fewer_updates_than_the_papers_are_said() -> None:
    def of(updates: int | None) -> list[str]:
        planned = next(arm for arm in plan("copying", "paper", updates=updates).arms if arm.name == "lstm")
        run = run_of(0, 0.0, test={"50": {"metrics": {"recall_cross_entropy": 0.5}}}, best_validation={})
        arm = arm_of("lstm", run, config=planned.config.to_json(), published={"50": 0.0})
        return tables.notes(
            summary_of(arm, metrics=["recall_cross_entropy"], experiment="copying", scale="paper")
        )

    assert any(note.startswith("Published and not seen here: lstm at") for note in of(None))
    assert any(
        note.startswith("Published and not seen here, by fewer updates than the paper's: lstm at")
        for note in of(100)
    )


def test_rows_have_the_experiments_order_and_what_lacks_or_differs_is_said() -> None:
    arms = {arm.name: arm for arm in plan("copying", "small").arms}
    changed = arms["lstm"].config.to_json()
    changed["training"]["updates"] = 7
    summary = summary_of(
        arm_of("gone", run_of(0, 0.5)),
        arm_of("lstm", run_of(0, 0.5), config=changed),
        arm_of("rim-6-4", run_of(0, 0.5), config=arms["rim-6-4"].config.to_json()),
        experiment="copying",
        scale="small",
    )
    assert [arm["name"] for arm in tables.arms(summary)] == ["rim-6-4", "lstm", "gone"]
    notes = tables.notes(summary)
    assert "lstm ran with training.updates 7, where the experiment now has 2000." in notes
    assert sum("the experiment now has" in note for note in notes) == 1
    longer = [note for note in tables.notes(summary | {"updates": 7}) if "the experiment now has" in note]
    assert longer == ["rim-6-4 ran with training.updates 2000, where the experiment now has 7."]
    missing = next(note for note in notes if note.startswith("Not run: "))
    assert set(missing.removeprefix("Not run: ").rstrip(".").split(", ")) == set(arms) - {"lstm", "rim-6-4"}
    assert any(note.startswith("No such size: transformer-state: ") for note in notes)


def test_the_committed_page_is_what_the_command_makes_of_the_committed_results(capsys) -> None:
    files = sorted((ROOT / "results").glob("*.json"))
    assert files
    main(["results", *map(str, files)])
    page = (ROOT / "docs" / "results.md").read_text()
    assert page == capsys.readouterr().out, "rims results results/*.json --output docs/results.md"
