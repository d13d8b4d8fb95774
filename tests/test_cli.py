"""The command: what it prints, where, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import rims
from rims.cli import main
from rims.cli.tables import number
from rims.errors import UserError, WorkError
from rims.tasks import BallsFile

from .tasks.helpers import write_mnist

SMALL = [
    *["--core.hidden-size", "4", "--model.input-size", "3", "--task.length", "2", "--task.delay", "2"],
    *["--training.batch-size", "4", "--training.validation-sequences", "8", "--training.accelerator", "cpu"],
]


def train(folder, *more, updates=10):
    main(
        [
            "train",
            "copying",
            "core:lstm",
            *SMALL,
            "--training.updates",
            str(updates),
            "--run",
            str(folder),
            *more,
        ]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(folder)
    return folder


def fails(capsys, arguments, code=2):
    """The one line on stderr that ``arguments`` end with."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert left.value.code == code
    assert out == ""
    assert err.count("\n") == 1, err
    return err


TRAIN = ["train", "copying", "core:rim"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [*TRAIN, "--core.num-rims", 4, "--core.num-active", 5],
            "num_active is 5; expected at most num_rims",
        ),
        ([*TRAIN, "--core.hidden-size", 601], "601; expected a multiple of num_rims"),
        ([*TRAIN, "--task.delay", -3], "task copying: delay is -3; expected at least 1"),
        ([*TRAIN, "--model.dropout", 1.5], "dropout is 1.5; expected 0 <= dropout < 1"),
        ([*TRAIN, "--model.input-size", 0], "input_size is 0; expected at least 1"),
        ([*TRAIN, "--training.updates", 0], "training: updates is 0; expected at least 1"),
        ([*TRAIN, "--training.accelerator", "abacus"], "invalid accelerator name"),
        ([*TRAIN, "--resume"], "--resume needs the folder of the run: --run FOLDER"),
        ([*TRAIN, "--training.devices", 2], "--run FOLDER"),
        ([*TRAIN, "--match-to", "/nowhere"], "--match-to needs --match state or --match params"),
        ([*TRAIN, "--match", "state", "--match-to", "/nowhere"], "/nowhere is no run folder"),
        (
            [*TRAIN, "--match", "state", "--core.hidden-size", 60],
            "--match decides core.hidden_size, which is given too; give one of the two",
        ),
        (
            ["train", "copying", "core:slstm", "--match", "state", "--core.num-heads", 7],
            "no head_size gives slstm the state size of rim, 1,200: head_size 42 has 1,176, head_size 43",
        ),
        ([*TRAIN, "--run", "/nowhere", "--resume"], "/nowhere is no run folder: it does not exist"),
        (
            ["train", "adding", "core:lstm", "--task.addends", 60],
            "length is 50; expected at least addends, 60",
        ),
        (["train", "digits", "core:lstm", "--task.resolution", 0], "task digits: resolution is 0; expected"),
        (["train", "scifar", "core:lstm", "--model.input-size", 2], "input_size is 2; expected at least 3"),
        (
            ["train", "smnist", "core:lstm", "--data-dir", "/nowhere"],
            "the data folder /nowhere does not exist",
        ),
        (
            ["train", "scifar", "core:lstm", "--data-dir", "."],
            "has no CIFAR-10; looked for cifar-10-batches-bin",
        ),
        (["train", "dance", "core:rim"], "unknown task 'dance'; known: "),
        (["train", "copying", "core:brain"], "unknown core 'brain'; known: "),
        (["eval", "/nowhere"], "/nowhere is no run folder: it does not exist"),
        (["resume", "/nowhere"], "/nowhere is no run folder: it does not exist"),
        (["report", "/nowhere"], "/nowhere is no run folder: it does not exist"),
        (["generate", "copying", "file"], "unknown task 'copying'; known: balls"),
        (["generate", "balls", "file", "--task.balls", 44], "balls is 44; expected each possible number of"),
        (["generate", "balls", "file", "--seed", -1], "seed is -1; expected at least 0"),
        (["generate", "balls", "file", "--test-sequences", -1], "test sequences are -1; expected at least 0"),
        (["generate", "balls", "/nowhere/file"], "cannot write /nowhere/file: "),
        (["report"], "report needs the folder of at least one run"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([*TRAIN, "--core.fingers", "5"], "--core.fingers"),
        ([*TRAIN, "--training.updates", "many"], "--training.updates"),
        (["train", "copying"], "core:rim"),
        (["dance"], "dance"),
        ([], "train"),
    ],
)
def test_the_parsers_own_errors_name_the_word(capsys, arguments, named):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert named in err


def test_damaged_folders_and_checkpoints(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"format": 1, "tas')
    assert "config.json is damaged" in fails(capsys, ["eval", tmp_path])
    (tmp_path / "config.json").write_text('{"format": 2}')
    assert "format 2; this version of rims reads format 1" in fails(capsys, ["eval", tmp_path])
    run = tmp_path / "run"
    train(run)
    capsys.readouterr()
    (run / "checkpoints" / "last.ckpt").write_bytes(b"PK\x03\x04")
    assert "last.ckpt is damaged" in fails(capsys, ["eval", run])
    assert "last.ckpt is damaged" in fails(capsys, ["resume", run])


def test_a_folder_in_use(capsys, folder):
    capsys.readouterr()
    again = ["train", "copying", "core:lstm", *SMALL, "--run", folder]
    assert "holds a run already" in fails(capsys, again)
    assert "was started with training.updates 10, not 30000" in fails(capsys, [*again, "--resume"])


@pytest.mark.parametrize(("error", "code"), [(WorkError, 1), (UserError, 2), (KeyboardInterrupt, 130)])
def test_exit_codes(capsys, monkeypatch, tmp_path, error, code):
    def broken(*_):
        raise error("why")

    monkeypatch.setattr("rims.train.fit.train", broken)
    fails(capsys, [*TRAIN, "--run", tmp_path / "run"], code)


def test_train_prints_its_result_and_what_to_do_next(capsys, tmp_path):
    folder = tmp_path / "a run"
    train(folder)
    out, _ = capsys.readouterr()
    for part in ("parameters", "updates", "time", "validation recall_cross_entropy", "2.0794", "0.1250"):
        assert part in out
    assert out.endswith(f"folder: {folder}\nnext:   rims eval '{folder}'\n")
    train(folder, "--resume")
    out, err = capsys.readouterr()
    assert "nothing to do" in err
    main(["resume", str(folder)])
    assert capsys.readouterr().out == out


def test_options_may_stand_anywhere_after_their_subcommand(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = ["train", "--training.seed", "3", "copying", "--task.delay", "4", "--model.input-size", "3"]
    after = ["--core.hidden-size", "5", "--task.length", "2", "--training.updates", "2"]
    main([*before, "core:lstm", *after, "--training.accelerator", "cpu", "--task.test-delays", "6", "7"])
    (folder,) = (tmp_path / "runs").glob("copying-lstm-3-*")
    config = json.loads((folder / "config.json").read_text())
    assert config["task"] == {
        "name": "copying",
        "length": 2,
        "delay": 4,
        "symbols": 8,
        "test_delays": [6, 7],
    }
    assert (config["core"]["hidden_size"], config["training"]["seed"]) == (5, 3)


def test_match_stores_the_size_that_it_found(capsys, tmp_path):
    small = ["--task.length=2", "--task.delay=2", "--training.updates=1", "--training.batch-size=2"]
    small += ["--training.validation-sequences=2", "--training.accelerator=cpu", "--model.input-size=3"]
    rim, lstm, gru = (tmp_path / name for name in ("rim", "lstm", "gru"))

    def size(folder):
        return json.loads((folder / "config.json").read_text())["core"]["hidden_size"]

    options = ["--core.hidden-size=12", "--core.num-rims=2", "--core.num-active=1"]
    main(["train", "copying", "core:rim", *small, *options, "--run", str(rim)])
    state, params = (["--match", match, "--match-to", str(rim)] for match in ("state", "params"))
    main(["train", "copying", "core:gru", *small, *state, "--run", str(gru)])
    assert size(gru) == 24
    again = ["train", "copying", "core:lstm", *small, *params, "--run", str(lstm)]
    main(again)
    rim_parameters, parameters = (
        json.loads((folder / "summary.json").read_text())["core_parameters"] for folder in (rim, lstm)
    )
    assert parameters == pytest.approx(rim_parameters, rel=0.05)
    assert parameters == 4 * size(lstm) * (3 + size(lstm) + 2)
    capsys.readouterr()
    main([*again, "--resume"])
    assert "nothing to do" in capsys.readouterr().err
    other = ["train", "copying", "core:lstm", *params, "--run", tmp_path / "x"]
    assert f"{rim} has model.input_size 3; expected 600 as here" in fails(capsys, other)


def test_match_is_to_the_default_rim(tmp_path, monkeypatch):
    configs = []
    monkeypatch.setattr("rims.cli.runs.train_in", lambda config, folder, resume: configs.append(config))
    for core, match in (("lstm", "params"), ("gru", "state"), ("rim", "params")):
        main(["train", "copying", f"core:{core}", "--match", match, "--run", str(tmp_path / core)])
    assert [config.core.hidden_size for config in configs] == [428, 1200, 600]


def test_eval_prints_a_table_or_json(capsys, folder):
    main(["eval", str(folder), "--delays", "3", "9", "--sequences", "5"])
    table = capsys.readouterr().out
    for part in ("delay", "recall accuracy", "2.0794"):
        assert part in table
    assert [line.split()[0] for line in table.splitlines()[-3:]] == ["3", "9", "chance"]
    main(["eval", str(folder), "--json", "--conditions", "4", "--sequences", "5"])
    result = json.loads(capsys.readouterr().out)
    assert [row["condition"] for row in result["conditions"]] == [4]
    written = json.loads((folder / "evaluation.json").read_text())
    assert [row["condition"] for row in written["conditions"]] == [3, 4, 9]
    assert "delay is -1; expected at least 1" in fails(capsys, ["eval", folder, "--delays", "-1"])


def test_every_task_trains_and_evaluates_from_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RIMS_DATA", "/nowhere")
    write_mnist(tmp_path / "data", monkeypatch)
    small = ["--core.hidden-size", "4", "--model.input-size", "3", "--training.updates", "3"]
    small += [
        "--training.batch-size",
        "4",
        "--training.accelerator",
        "cpu",
        "--data-dir",
        str(tmp_path / "data"),
    ]
    options = {
        "adding": ["--task.length", "5", "--task.addends", "3", "--task.test-lengths", "5", "8"],
        "digits": ["--task.resolution", "2", "--task.test-resolutions", "2", "3"],
        "smnist": ["--task.resolution", "2", "--task.test-resolutions", "2", "3"],
    }
    for task, more in options.items():
        run = str(tmp_path / task)
        main(["train", task, "core:lstm", *small, *more, "--run", run])
        assert json.loads((tmp_path / task / "config.json").read_text())["task"]["name"] == task
        main(["eval", run, "--data-dir", str(tmp_path / "data")])
    assert os.environ["RIMS_DATA"] == "/nowhere"
    capsys.readouterr()
    main(
        [
            "eval",
            str(tmp_path / "smnist"),
            "--resolutions",
            "4",
            "--data-dir",
            str(tmp_path / "data"),
            "--json",
        ]
    )
    (row,) = json.loads(capsys.readouterr().out)["conditions"]
    assert (row["condition"], row["sequences"]) == (4, 7)
    # Where data lie is not part of what a run is, and is asked for by those who need them.
    assert "/data" not in (tmp_path / "smnist" / "config.json").read_text()
    assert "data folder /nowhere does not exist" in fails(capsys, ["eval", tmp_path / "smnist"])
    main(["eval", str(tmp_path / "adding")])
    assert "0.2500" in capsys.readouterr().out  # chance: 3 addends / 12


def test_generate_writes_a_file_that_a_task_reads(capsys, tmp_path):
    file = tmp_path / "two.h5"
    sizes = ["--sequences", "5", "--validation-sequences", "3", "--test-sequences", "2"]
    short = ["--task.length", "6", "--task.feed-in", "2", "--task.rollout", "3"]
    main(["generate", "balls", str(file), *sizes, "--task.balls", "2", "--task.side", "16", *short])
    assert capsys.readouterr() == (f"{file}\n", "")
    assert list(tmp_path.iterdir()) == [file]
    task = BallsFile(path=str(file), length=6, feed_in=2, rollout=3)
    task.prepare()
    assert [task.size(split) for split in ("training", "validation", "test")] == [5, 3, 2]
    assert task.examples("test", torch.arange(2)).details.radii.shape == (2, 2)
    assert "two.h5 exists; give another name" in fails(capsys, ["generate", "balls", file])


@pytest.mark.slow
def test_ctrl_c_leaves_no_half_file(tmp_path):
    file = tmp_path / "file"
    process = subprocess.Popen(
        [sys.executable, "-m", "rims", "generate", "balls", str(file)], stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "file.partial").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "rims: stopped\n"
    assert list(tmp_path.iterdir()) == []


def test_small_errors_are_not_rounded_to_nothing():
    assert [number(value) for value in (2.0794, 0.0, 0.01, 0.00023456, -0.5)] == [
        "2.0794",
        "0.0000",
        "0.0100",
        "2.35e-04",
        "-0.5000",
    ]


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"rims {rims.__version__}\n"


@pytest.mark.parametrize("command", [[], ["train"], ["train", "copying", "core:rim"], ["eval"], ["report"]])
def test_help_fits_the_terminal_and_names_defaults(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0
    assert all(len(line) <= 100 for line in out.splitlines() if line.startswith(("│", "╭")))
    assert "type: ignore" not in out
    if "core:rim" in command:
        for option in ("--core.num-active", "--task.delay", "--training.seed", "--model.dropout", "--run"):
            assert option in out
        assert "(default: 30000)" in out


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False, **options
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys, rims.cli\n"
        "try: rims.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(' '.join(m for m in ('lightning', 'matplotlib', 'tensorboard') if m in sys.modules) or 0)"
    )
    done = command("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_real_process_is_quiet_and_reports_errors(tmp_path):
    small = ["-m", "rims", "train", "copying", "core:lstm", *SMALL, "--run", str(tmp_path / "run")]
    done = command(*small, "--training.updates", "10")
    assert (done.returncode, done.stderr) == (0, "")
    done = command("-m", "rims", "eval", str(tmp_path / "run"), "--delays", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "rims: delay is 0; expected at least 1\n"


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path):
    run = tmp_path / "run"
    arguments = [
        "train",
        "copying",
        "core:lstm",
        *SMALL,
        "--training.checkpoint-every",
        "10",
        "--run",
        str(run),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "rims", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.startswith("rims: stopped after update ")
    assert err.endswith(f"to go on: rims resume {run}\n")
