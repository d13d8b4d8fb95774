"""A sweep refuses what could not run before it starts, and ranks by validation alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rims.cli import main
from rims.cores import RIMConfig
from rims.errors import UserError
from rims.experiments.sweep import Sweep
from rims.tasks import Copying
from rims.train.config import ModelOptions, RunConfig, TrainingOptions
from rims.train.folder import Run


def base(**training) -> RunConfig:
    core = RIMConfig(hidden_size=12, num_rims=3, num_active=2)
    task = Copying(length=2, delay=2, test_delays=(2, 5))
    return RunConfig(task, core, ModelOptions(input_size=3), TrainingOptions(updates=4, **training))


def test_all_combinations_and_seeds(tmp_path: Path) -> None:
    values = ["training.learning-rate=1e-3,3e-3", "--core.num_active=1,2,3", "model.init=torch"]
    sweep = Sweep.of(base(), values, 2, tmp_path)
    assert sweep.options == ("training.learning_rate", "core.num_active", "model.init")
    runs = {path: config for chosen in sweep.combinations for path, config in sweep.runs(chosen).items()}
    found = {
        (config.training.learning_rate, config.core.num_active, config.training.seed)
        for config in runs.values()
    }
    assert found == {(rate, active, seed) for rate in (1e-3, 3e-3) for active in (1, 2, 3) for seed in (0, 1)}
    assert len(runs) == 12
    config = runs[tmp_path / "training.learning_rate=0.003,core.num_active=3,model.init=torch-1"]
    assert (config.training.learning_rate, config.core.num_active, config.training.seed) == (3e-3, 3, 1)
    # All else is that of the base, but for the threads, on which rounding depends.
    assert config.training.threads == 1
    assert (config.task, config.training.updates, config.core.hidden_size) == (base().task, 4, 12)


def test_kinds_of_values(tmp_path: Path) -> None:
    values = ["training.validate-shifted=true,False", "training.clip=1,0.5", "training.precision=32-true"]
    sweep = Sweep.of(base(threads=2), values, 1, tmp_path)
    assert list(sweep.combinations) == [(s, c, "32-true") for s in (True, False) for c in (1.0, 0.5)]
    assert {config.training.threads for config in sweep.combinations.values()} == {2}
    assert list(Sweep.of(base(), [], 2, tmp_path).runs(())) == [tmp_path / "run-0", tmp_path / "run-1"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["core.num-active"], "--values is 'core.num-active'; expected OPTION=VALUE,VALUE"),
        (["num-active=2"], "--values is 'num-active=2'; expected OPTION=VALUE,VALUE"),
        (["core.fingers=2"], "core has no option 'fingers'; known: "),
        (["core.num-active=2,x"], "core.num_active is 'x'; expected int"),
        (["core.num-active="], "core.num_active is ''; expected int"),
        (["training.learning-rate=fast"], "training.learning_rate is 'fast'; expected float"),
        (["model.init=zero"], "model.init is 'zero'; expected torch or released"),
        (["training.learning-rate=1e-3,0.001"], "training.learning_rate 0.001 twice"),
        (["core.num-active=1", "core.num-active=2"], "--values names core.num_active twice"),
        (["training.seed=1,2"], "cannot vary training.seed; for seeds there is --seeds"),
        (["task.test-delays=1,2"], "cannot vary task.test_delays, which is itself several values"),
        (["core.num-active=2,4"], "core.num_active=4: num_active is 4; expected at most num_rims"),
        (["training.clip=-1"], "training.clip=-1.0: training: clip is -1.0; expected at least 0"),
    ],
)
def test_what_could_not_run_is_refused_at_once(values, message, tmp_path: Path, capsys) -> None:
    with pytest.raises(UserError) as refused:
        Sweep.of(base(), values, 1, tmp_path / "sweep")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "sweep").exists()


def test_several_devices_and_no_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a run of a sweep has one device"):
        Sweep.of(base(devices=2), [], 1, tmp_path)
    with pytest.raises(UserError, match="seeds is 0; expected at least 1"):
        Sweep.of(base(), [], 0, tmp_path)


def write(folder: Path, config: RunConfig, losses: list[float], shifted: float, tests: list[float]) -> None:
    """A run that has ended, with these validation losses and test accuracies."""
    run = Run.create(folder, config)
    for update, loss in enumerate(losses, 1):
        for condition, value in ((2, loss), (5, shifted)):
            run.add_metrics({"update": update, "split": "validation", "condition": condition, "loss": value})
    run.write_json("summary.json", {"parameters": 1234})
    rows = [{"condition": c, "metrics": {"recall_accuracy": t}} for c, t in zip((2, 5), tests)]
    run.write_json("evaluation.json", {"conditions": rows})


def test_the_table_is_sorted_by_validation_loss_and_by_nothing_else(tmp_path: Path) -> None:
    sweep = Sweep.of(base(), ["core.num-active=1,2,3"], 3, tmp_path)
    # The best by validation is the worst by every test and shifted validation; that of 3 lacks a seed.
    made = {
        1: ([0.9, 0.3, 0.6], 0.01, [0.9, 0.9]),
        2: ([0.1, 0.2], 5.0, [0.2, 0.1]),
        3: ([0.01], 0.0, [1.0, 1.0]),
    }
    for (active,) in sweep.combinations:
        losses, shifted, tests = made[active]
        for seed, (folder, config) in enumerate(sweep.runs((active,)).items()):
            if (active, seed) != (3, 1):
                write(folder, config, [loss + seed / 10 for loss in losses], shifted, tests)
    header, rows = sweep.table()
    assert header == [
        *("core.num_active", "validation loss", "seeds", "parameters"),
        *("recall accuracy at delay 2", "recall accuracy at delay 5"),
    ]
    half = "±\N{NO-BREAK SPACE}"
    # Mean of 0.1, 0.2, 0.3; t(0.975, 2) = 4.303 times 0.1 / sqrt(3) is 0.248
    assert rows[0] == ["2", f"0.200 {half}0.248", "3", "1,234", f"20.0 {half}0.0", f"10.0 {half}0.0"]
    assert rows[1][:3] == ["1", f"0.400 {half}0.248", "3"]
    assert rows[2][0] == "3"
    assert rows[2][2] == "2 of 3"


def test_the_command_ends_in_the_table(tmp_path: Path, capsys, monkeypatch) -> None:
    from rims.experiments.grid import run_one
    from rims.experiments.where import Where

    def here(self: Where, configs, testing) -> dict[Path, str]:
        assert (self.on, self.workers, self.address, self.retries) == ("ray", None, None, 1)
        *good, last = configs
        for folder in good:
            run_one(configs[folder], folder, testing)
        return {last: "out of luck"}

    monkeypatch.setattr(Where, "run", here)
    command = "sweep copying --values core.hidden-size=3,4 core:lstm --task.length 2 --task.delay 2 --seeds 2"
    command += " --task.test-delays 2 5 --model.input-size 3 --training.updates 2 --training.batch-size 2"
    command += " --training.validation-sequences 4 --training.accelerator cpu --values training.clip=1"
    with pytest.raises(SystemExit) as left:
        main([*command.split(), "--folder", str(tmp_path)])
    assert left.value.code == 1
    out, err = capsys.readouterr()
    assert err == "rims: runs failed (1), see above; to try again, the same command\n"
    name = "core.hidden_size=3,training.clip=1.0-0"
    loss = json.loads((tmp_path / name / "summary.json").read_text())["validation"]["loss"]
    assert loss > 0
    assert "1 of 2" in out
    assert "Failed: core.hidden_size=4,training.clip=1.0-1: out of luck" in out
    assert [path.name for path in sorted(tmp_path.glob("core*"))] == sorted(
        f"core.hidden_size={size},training.clip=1.0-{seed}" for size, seed in ((3, 0), (3, 1), (4, 0))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--on processes --address auto", "--address needs --on ray"),
        ("--address auto --workers 2", "--workers is for this machine"),
        ("--workers 0", "workers is 0; expected at least 1"),
        ("--retries -1", "retries is -1; expected at least 0"),
        ("--address ray://head:10001", "address is ray://head:10001; expected auto or HOST:PORT"),
    ],
)
def test_where_to_run_is_checked(options: str, message: str, tmp_path: Path, capsys) -> None:
    pytest.importorskip("ray")
    with pytest.raises(SystemExit) as left:
        main(["sweep", "copying", "core:lstm", "--folder", str(tmp_path / "runs"), *options.split()])
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
