"""What ``rims bench`` measures with: pairing, memory, sizes; and one small run of it all."""

from __future__ import annotations

import json
import time

import pytest
import torch

from rims.bench import run, table
from rims.bench.arms import ARMS, Setting, layer, make_call
from rims.bench.measure import matmul_peak, paired, peak_memory
from rims.cli import main

CPU = torch.device("cpu")
TINY = Setting(steps=4, batch=2, input_size=8, hidden_size=24)


def busy(seconds: float) -> None:
    """Use the processor for so long."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_ratios_are_taken_within_rounds() -> None:
    found = paired({"one": lambda: busy(0.01), "three": lambda: busy(0.03)}, "one", CPU, repeats=5)
    assert found["one"].ratio == found["one"].ratio_low == found["one"].ratio_high == 1
    assert found["three"].ratio == pytest.approx(3, rel=0.15)
    assert found["three"].seconds == pytest.approx(0.03, rel=0.15)


def test_rounds_disturb_no_ratio() -> None:
    """What slows a whole round down, here tenfold in every second round, leaves the ratios alone."""
    calls = iter(range(1000))

    def slow(factor: float) -> None:
        busy(factor * (0.02 if next(calls) // 2 % 2 else 0.002))

    found = paired({"one": lambda: slow(1), "two": lambda: slow(2)}, "one", CPU, repeats=6)
    assert found["two"].ratio == pytest.approx(2, rel=0.2)


def allocate(megabytes: int):
    """A call that needs so much memory for a moment, in several pieces."""

    def call() -> None:
        parts = [torch.ones(2**18) for _ in range(megabytes)]
        del parts

    return call


def test_peak_memory_is_that_of_one_call() -> None:
    size = peak_memory(allocate, (64,), CPU)
    if size is None:
        pytest.skip("this system does not tell")
    assert size / 2**20 == pytest.approx(64, abs=8)


def test_arms_of_equal_parameters_have_them() -> None:
    wanted = sum(p.numel() for p in layer("RIM fast", Setting()).parameters())
    for name in ARMS:
        if name.endswith("equal parameters"):
            found = sum(p.numel() for p in layer(name, Setting()).parameters())
            assert found == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_every_arm_runs_in_every_mode(dtype: str) -> None:
    setting = Setting(**{**vars(TINY), "dtype": dtype})
    for name in ARMS:
        for mode in run.MODES:
            make_call(name, mode, setting)()


def test_the_peak_is_plausible() -> None:
    assert 1e8 < matmul_peak(CPU, torch.float32, size=256) < 1e15


def test_the_whole_as_json_and_markdown(tmp_path, capsys) -> None:
    arguments = "bench --repeats 2 --no-sweeps --setting.steps 3 --setting.batch 2 --setting.input-size 8"
    main(
        [
            *arguments.split(),
            "--setting.hidden-size",
            "24",
            "--markdown",
            "--output",
            str(tmp_path / "b.json"),
        ]
    )
    result = json.loads((tmp_path / "b.json").read_text())
    printed = capsys.readouterr().out
    assert printed.strip() == table.markdown(result).strip()
    assert {row["name"] for row in result["rows"]} == set(ARMS)
    assert result["errors"]["fast, float64"] < 1e-10
    assert result["errors"]["fast, float32"] < 1e-4
    for row in result["rows"]:
        assert f"| {row['name']} | {1e3 * row['timing']['seconds']:.4g} |" in printed


def test_sweeps_are_ratios_to_their_first_setting() -> None:
    settings = {"a": TINY, "b": Setting(**{**vars(TINY), "steps": 8})}
    first, second = run.sweep("by steps", settings, 2, lambda text: None)
    assert first.timing.ratio == 1
    assert second.tokens_per_second == pytest.approx(16 / second.timing.seconds)


def test_wrong_sizes_are_one_line(capsys) -> None:
    with pytest.raises(SystemExit) as error:
        main(["bench", "--setting.num-active", "9"])
    assert error.value.code == 2
    assert "num_active is 9; expected at most num_rims, which is 6" in capsys.readouterr().err
