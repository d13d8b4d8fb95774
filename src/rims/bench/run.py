"""All measurements of ``rims bench`` and their tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rims.bench.arms import ARMS, COMPILED, REFERENCES, Mode, Setting, layer, make_call
from rims.bench.measure import Timing, matmul_peak, paired, peak_memory
from rims.cores import RIMCore
from rims.nn import RIM

MODES: dict[Mode, str] = {
    "forward": "forward, no gradients",
    "train": "forward + backward",
    "step": "one step of one row",
}
TRAIN_FLOPS = 3
"""A backward pass multiplies twice as much as the forward pass."""


@dataclass
class Row:
    """One line of a table."""

    table: str
    name: str
    timing: Timing
    tokens_per_second: float
    peak_fraction: float | None = None
    """Of the machine's measured matmul peak, by the operations of a dense RIM; None for torch's layers."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    setting: Setting, repeats: int, peak: float, compiled: bool, say: Callable[[str], None]
) -> Iterator[Row]:
    """Every arm in every mode at one setting."""
    device = torch.device(setting.device)
    flops = RIMCore(replace(setting, device="cpu").rim()).flops_per_step
    for mode, table in MODES.items():
        say(table)
        names = (*ARMS, *COMPILED[mode]) if compiled else ARMS
        calls = {name: make_call(name, mode, setting) for name in names}
        times = paired(calls, REFERENCES[mode], device, repeats, number=100 if mode == "step" else 1)
        tokens = 1 if mode == "step" else setting.steps * setting.batch
        for name, timing in times.items():
            work = flops * tokens * (TRAIN_FLOPS if mode == "train" else 1)
            rim = name.startswith("RIM")
            yield Row(
                table,
                name,
                timing,
                tokens / timing.seconds,
                work / timing.seconds / peak if rim and mode != "step" else None,
            )


def layers(setting: Setting, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Parameters of every arm, and the bytes that forward + backward need at their peak beside them."""
    say("memory")
    for name in ARMS:
        parameters = layer(name, replace(setting, device="meta")).parameters()
        yield {
            "name": name,
            "parameters": sum(p.numel() for p in parameters),
            "memory": peak_memory(make_call, (name, "train", setting), torch.device(setting.device)),
        }


def sweep(
    table: str, settings: dict[str, Setting], repeats: int, say: Callable[[str], None]
) -> Iterator[Row]:
    """The fast path's forward + backward over settings, as ratios to the first of them."""
    say(table)
    device = torch.device(next(iter(settings.values())).device)
    calls = {name: make_call("RIM auto", "train", setting) for name, setting in settings.items()}
    for name, timing in paired(calls, next(iter(calls)), device, repeats).items():
        yield Row(table, name, timing, settings[name].steps * settings[name].batch / timing.seconds)


def errors(setting: Setting) -> dict[str, float]:
    """Largest relative error of outputs and of all gradients, of the fast path and of the float32 reference,
    against the reference in float64, at a size where no rounding flips a choice between RIMs."""
    small = replace(
        setting, steps=20, batch=8, input_size=40, hidden_size=10 * setting.num_rims, dtype="float64"
    )
    torch.manual_seed(0)
    truth = small.rim(backend="reference")
    x = torch.randn(small.steps, small.batch, small.input_size, **small.weights)
    cotangent = torch.randn(small.steps, small.batch, small.hidden_size, **small.weights)
    expected = _values(truth, x, cotangent)
    found = {}
    for backend in ("fast", "reference"):
        for dtype in (torch.float32, torch.float64):
            if (backend, dtype) == ("reference", torch.float64):
                continue
            rim = small.rim(backend=backend)
            rim.load_state_dict(truth.state_dict())
            values = _values(rim.to(dtype), x.to(dtype), cotangent.to(dtype))
            found[f"{backend}, {str(dtype).removeprefix('torch.')}"] = max(
                ((v - e).abs().max() / e.abs().max()).item() for v, e in zip(values, expected)
            )
    return found


def _values(rim: RIM, x: Tensor, cotangent: Tensor) -> Sequence[Tensor]:
    x = x.detach().requires_grad_()
    y, _ = rim(x)
    gradients = torch.autograd.grad((y * cotangent).sum(), [x, *rim.parameters()])
    return [y.detach().double(), *(g.double() for g in gradients)]


def bench(
    setting: Setting, repeats: int, sweeps: bool, compiled: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Everything, as plain values: ``rows``, ``layers``, ``errors``, ``peak_flops``, ``setting``."""
    device = torch.device(setting.device)
    say("matmul peak")
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(setting.dtype, torch.float32)
    peak = matmul_peak(device, dtype)
    rows = list(compare(setting, repeats, peak, compiled, say))
    if sweeps:
        actives = {
            f"{a} of {setting.num_rims} active": replace(setting, num_active=a)
            for a in range(1, setting.num_rims + 1)
        }
        rows += sweep("RIM by active RIMs", dict(reversed(actives.items())), repeats, say)
        many = replace(setting, hidden_size=2048, num_rims=32)
        counts = {f"{a} of 32 active, 64 units each": replace(many, num_active=a) for a in (32, 16, 8, 4)}
        rows += sweep("32 RIMs by active RIMs", counts, repeats, say)
        lengths = {f"T = {t}": replace(setting, steps=t) for t in (70, 140, 280, 560)}
        rows += sweep("RIM by steps", lengths, repeats, say)
        batches = {f"B = {b}": replace(setting, batch=b) for b in (64, 1, 8, 256)}
        rows += sweep("RIM by batch", batches, repeats, say)
    return {
        "setting": asdict(setting),
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "peak_flops": peak,
        "errors": errors(setting),
        "layers": list(layers(setting, say)),
        "rows": [row.as_json() for row in rows],
    }
