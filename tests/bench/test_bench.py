"""What ``rims bench`` measures with: pairing, memory, sizes; and one small run of it all."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rims.bench import cores, data, run, table
from rims.bench.arms import ARMS, Setting, layer, make_call
from rims.bench.measure import matmul_peak, paired, peak_memory
from rims.bench.products import products_of
from rims.cli import main
from rims.cores import CORES, GRUConfig, LSTMConfig, SLSTMConfig
from rims.tasks import Balls, Copying

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


NO_BFLOAT16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="torch has no nn.LSTM in bfloat16 on this CPU"
)


@pytest.mark.parametrize("dtype", ["float32", "float64", pytest.param("bfloat16", marks=NO_BFLOAT16)])
def test_every_arm_runs_in_every_mode(dtype: str) -> None:
    setting = Setting(**{**vars(TINY), "dtype": dtype})
    for name in ARMS:
        for mode in run.MODES:
            make_call(name, mode, setting)()


def test_the_peak_is_plausible() -> None:
    assert 1e8 < matmul_peak(CPU, torch.float32, size=256) < 1e15


@pytest.mark.without_shape_checks
def test_the_whole_as_json_and_markdown(tmp_path, capsys, monkeypatch) -> None:
    def of_one(make: Any, arguments: tuple[Any, ...], device: torch.device) -> int | None:
        """Each takes a process of its own, seconds; "unknown" is a value too."""
        return peak_memory(make, arguments, device) if arguments[0] == "RIM fast" else None

    monkeypatch.setattr(run, "peak_memory", of_one)
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
    (measured,) = (row for row in result["layers"] if row["memory"] is not None)
    assert measured["name"] == "RIM fast"
    assert measured["memory"] > 0
    assert result["errors"]["fast, float64"] < 1e-10
    assert result["errors"]["fast, float32"] < 1e-4
    for row in result["rows"]:
        assert f"| {row['name']} | {1e3 * row['timing']['seconds']:.4g} |" in printed


@pytest.mark.without_shape_checks
def test_all_cores_as_json_and_markdown(tmp_path, capsys) -> None:
    small = "--setting.steps 3 --setting.batch 2 --setting.input-size 8 --setting.hidden-size 24"
    file = tmp_path / "cores.json"
    main(["bench", "--cores", *small.split(), "--repeats", "2", "--markdown", "--output", str(file)])
    result = json.loads(file.read_text())
    printed = capsys.readouterr().out
    assert printed.strip() == table.markdown(result).strip()
    assert {row["core"] for row in result["cores"]} == set(CORES)
    (rim,) = (row for row in result["cores"] if row["core"] == "rim")
    assert (rim["matched"], rim["state_size"]) == ("state, parameters", 48)
    for row in result["cores"]:
        option, size = row["size"].split()
        core = CORES[row["core"]]
        config = TINY.config if row["core"] == "rim" else core(**{option: int(size)})
        built = config.build(8)
        assert (built.num_parameters, built.state_size) == (row["parameters"], row["state_size"])
        assert built.flops_per_step == row["flops_per_step"]
        if "state" in row["matched"]:
            assert row["state_size"] == rim["state_size"]
        if "parameters" in row["matched"]:
            assert row["parameters"] == pytest.approx(rim["parameters"], rel=0.05)
        assert f"| {row['core']} | {row['size']} | {row['matched']} | {row['parameters']:,} |" in printed
        assert f"| {1e6 * row['timings']['step']['seconds']:.4g} |" in printed
        # Products are seen one by one but in nn.LSTM, in what skips inactive RIMs, and in attention.
        assert (row["of_bar"] is None) == (row["products"] is None)
        assert (row["products"] is None) == (row["core"] in ("rim", "lstm", "transformer"))
        if row["products"] is not None:
            assert 0 < row["products"] < row["timings"]["train"]["seconds"]
            assert f"| {1e6 * row['products']:.4g} | {row['of_bar']:.2f} |" in printed


def test_the_products_of_a_call_are_done_again_and_nothing_else() -> None:
    x, w = torch.randn(4, 3, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    bias = torch.zeros(5)

    def call() -> None:
        (torch.addmm(bias.expand(4, 5), x, w).tanh() @ w.mT).sum().backward()

    again, flops = products_of(call)
    # Two products of 4 x 3 x 5, and two for the gradients of each.
    assert flops == 6 * 2 * 4 * 3 * 5
    x.grad = None
    with FlopCounterMode(display=False) as counter:
        again()
    assert counter.get_total_flops() == flops
    assert x.grad is None


def test_the_bar_is_three_times_the_products_and_60_us_a_step(monkeypatch) -> None:
    """Ten tokens in five steps: products of 10 ms in a core of 40 ms."""
    setting = Setting(steps=5, batch=2, input_size=3)
    core = GRUConfig(4).build(3)
    monkeypatch.setattr(cores, "call_of", lambda *_: lambda: busy(0.04))
    for seen, expected in ((2.4, None), (2.6, 0.04 / (3 * 0.01 + 5 * 60e-6))):
        flops = seen * 10 * core.flops_per_step
        monkeypatch.setattr(cores, "products_of", lambda _, flops=flops: (lambda: busy(0.01), flops))
        products, of_bar = cores.bar(core, core, setting, repeats=1)
        if expected is None:
            assert products is of_bar is None
        else:
            assert (products, of_bar) == pytest.approx((0.001, expected), rel=0.2)


def test_batches_beside_updates(tmp_path, capsys, monkeypatch) -> None:
    clips = {"length": 4, "feed_in": 2, "rollout": 2}
    monkeypatch.setattr(data, "TASKS", {"copying": Copying(), "balls: 4": Balls(side=16, **clips)})
    small = "--setting.batch 2 --setting.hidden-size 4 --setting.input-size 3"
    file = tmp_path / "data.json"
    main(["bench", "--data", *small.split(), "--repeats", "2", "--markdown", "--output", str(file)])
    rows, printed = json.loads(file.read_text())["data"], capsys.readouterr().out
    for row in rows:
        assert row["sequences_per_minute"] == pytest.approx(120 / row["timing"]["seconds"])
        assert f"| {row['task']} | {row['sequences_per_minute']:,.0f} |" in printed
    assert [row["task"] for row in rows] == ["copying", "balls: 4"]
    with pytest.raises(SystemExit):
        main(["bench", "--data", "--cores"])
    assert "give one of the two" in capsys.readouterr().err


def test_cores_that_cannot_be_matched_have_their_default_size(monkeypatch) -> None:
    monkeypatch.setattr(cores, "CORES", {"gru": GRUConfig, "slstm": SLSTMConfig})
    setting = Setting(input_size=8, hidden_size=18)  # state 36; an sLSTM's is a multiple of 16
    found, unmatched = cores.sizes(setting)
    assert [(equal, config.name) for equal, config in found] == [
        ("state", "gru"),
        ("parameters", "gru"),
        ("", "slstm"),
        ("parameters", "slstm"),
    ]
    assert found[2][1] == SLSTMConfig()
    assert unmatched == [
        "no head_size gives slstm the state size of rim, 36: head_size 2 has 32, head_size 3 has 48"
    ]


def test_only_some_cores() -> None:
    found, _ = cores.sizes(TINY, ["gru", "lstm"])
    assert {config.name for _, config in found} == {"gru", "lstm"}
    with pytest.raises(ValueError, match=r"^only is 'elman'; expected one of 'dnc', "):
        cores.sizes(TINY, ["gru", "elman"])


def test_a_core_and_the_reference_share_their_rounds_which_are_few_if_it_is_slow(monkeypatch) -> None:
    calls: list[str] = []

    def call(name: str, seconds: float):
        def run() -> None:
            calls.append(name)
            busy(seconds)

        return run

    monkeypatch.setattr(cores, "LIMIT", 0.2)
    timing = cores.pair(call("core", 0.06), call("lstm", 0.03), TINY, repeats=9)
    assert timing.ratio == pytest.approx(2, rel=0.2)
    assert timing.seconds == pytest.approx(0.06, rel=0.2)
    assert calls == ["lstm", "core", "core"] + 3 * ["lstm", "core"]
    calls.clear()
    cores.pair(call("core", 0.005), call("lstm", 0.005), TINY, repeats=1)
    assert 2 <= calls[3:].count("core") == calls[3:].count("lstm") <= 4


def test_seconds_of_a_core_are_those_of_a_token() -> None:
    """Beside a reference of known seconds: 5 x 4 tokens in a sequence, one in a step."""
    setting = Setting(steps=5, batch=4, input_size=8, hidden_size=24)
    references = {mode: lambda: busy(0.02) for mode in cores.MODES}
    row = cores.compare(LSTMConfig(hidden_size=24), "", references, setting, repeats=1)
    for mode, timing in row.timings.items():
        tokens = 1 if mode == "step" else 20
        assert timing.ratio == pytest.approx(timing.seconds * tokens / 0.02, rel=0.2)


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
