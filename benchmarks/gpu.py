"""The engines of the GPU's fast path: right, and how fast.

    PYTHONPATH=src python benchmarks/gpu.py OUT            on a machine with a GPU
    PYTHONPATH=src python benchmarks/gpu.py OUT --cpu-dry-run   that this script itself works, anywhere

Compares every engine with the float64 reference in all results and gradients, then times forward and
forward + backward against cuDNN's nn.LSTM of the same hidden size. Prints tables, writes OUT/gpu.json. What
fails prints why, and the rest runs. Checks run side by side in processes, since compiling the kernels takes
most of their time; so does what the timed ones need compiled. Needs torch and, for the kernel, Triton.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

DRY = "--cpu-dry-run" in sys.argv
if DRY:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch  # noqa: E402

from rims import RIM  # noqa: E402
from rims.nn.cell import RIMCell  # noqa: E402
from rims.nn.fast import dense, gpu  # noqa: E402
from rims.nn.sequence import How, run_cell  # noqa: E402

DEVICE = "cpu" if DRY else "cuda"
ENGINES = ("kernel", "dense") if DRY else ("kernel", "graphs", "dense")
DTYPES = {"float32": None, "bf16": torch.bfloat16}
SIZE = 24 if DRY else 600
LENGTHS, BATCHES = ((3,), (2,)) if DRY else ((70, 196), (64, 512))
MIN_SECONDS = 0.01 if DRY else 0.3
PROCESSES = 2 if DRY else 12

CHECKS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "lstm, plain sum": {"comm_tanh": False},
    "gru": {"cell": "gru"},
    "no communication": {"communication": False},
    "no bias, 2 input heads": {"bias": False, "input_heads": 2, "input_value_size": 30},
    "odd heads": {"comm_heads": 3, "comm_key_size": 7, "comm_value_size": 5},
}


def outcome(cell: RIMCell, engine: str | None, data: dict[str, Any], dtype: torch.dtype, half: Any) -> Any:
    """All results and gradients by name; of the reference where ``engine`` is None."""
    cell = cell.to(dtype)
    cell.zero_grad()
    x, h, c = (data[name].to(dtype, copy=True).requires_grad_() for name in ("x", "h", "c"))
    how = How(data["reset"], None, data["valid"], data["disabled"], return_trace=True)
    with torch.autocast(DEVICE, dtype=half, enabled=half is not None):
        if engine is None:
            y, h_last, c_last, trace = run_cell(cell, x, h, c, how)
            active = trace.active if trace is not None else None
        else:
            o, i = gpu.prepare(cell, x, h, c, how)
            with torch.autocast(DEVICE, enabled=False):
                y, h_last, c_last, active, *_ = dense.run(o, i, gpu.engine(engine))
            y = y.masked_fill(~data["valid"][..., None], 0.0)
    sum(
        (part * data[name].to(dtype)).sum() for part, name in ((y, "dy"), (h_last, "dh"), (c_last, "dc"))
    ).backward()
    found = {"y": y, "h": h_last, "c": c_last, "d x": x.grad, "d h": h.grad, "d c": c.grad}
    found |= {f"d {name}": p.grad for name, p in cell.named_parameters()}
    return active, {k: v.detach().double() for k, v in found.items() if v is not None}


Rows = list[dict[str, Any]]


def check(engine: str, name: str) -> Rows:
    """Largest relative errors against float64, of float32 and of autocast."""
    torch.manual_seed(0)
    length, batch = (3, 2) if DRY else (20, 50)
    cell = RIMCell(SIZE, SIZE, 6, 4, **CHECKS[name]).to(DEVICE).double()
    data: dict[str, Any] = {"x": torch.randn(length, batch, SIZE), "dy": torch.randn(length, batch, SIZE)}
    data |= {part: torch.randn(batch, SIZE) for part in ("h", "c", "dh", "dc")}
    data |= {"reset": torch.rand(length, batch) < 0.1, "valid": torch.rand(length, batch) < 0.9}
    data["disabled"] = torch.tensor([False, True, False, False, False, False])
    data = {k: v.to(DEVICE) for k, v in data.items()}
    active, wanted = outcome(cell, None, data, torch.float64, None)
    rows = []
    for precision, half in DTYPES.items():
        if DRY and engine == "kernel" and half is not None:
            half = torch.float16  # the interpreter's products of bf16 are wrong
        chosen, found = outcome(cell, engine, data, torch.float32, half)
        error = {k: float((found[k] - v).norm() / v.norm().clamp_min(1e-9)) for k, v in wanted.items()}
        worst = max(error, key=lambda k: error[k] if error[k] == error[k] else float("inf"))
        same = float((chosen == active).double().mean())
        rows.append(
            {
                "engine": engine,
                "check": name,
                "precision": precision,
                "y": error["y"],
                "worst": error[worst],
                "worst of": worst,
                "same active": same,
            }
        )
        cell.double()
    return rows


def timed(run: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of a call: median, first and third quartile of repeats."""
    for _ in range(1 if DRY else 5):
        run()
    times: list[float] = []
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - begin < MIN_SECONDS and len(times) < 200):
        if DEVICE == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            before = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - before))
    low, median, high = statistics.quantiles(times, n=4)
    peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else float("nan")
    return {"ms": median, "low": low, "high": high, "peak GiB": peak, "repeats": len(times)}


def measure(name: str, length: int, batch: int, precision: str) -> Rows:
    """A layer's times, forward without gradients and forward + backward."""
    torch.manual_seed(0)
    x = torch.randn(length, batch, SIZE, device=DEVICE)
    dy = torch.randn(length, batch, SIZE, device=DEVICE)
    half = DTYPES[precision]
    if name.startswith("LSTM"):
        layer: torch.nn.Module = torch.nn.LSTM(SIZE, SIZE).to(DEVICE)
    else:
        layer = RIM(SIZE, SIZE, 6, 4, backend="auto").to(DEVICE)
        os.environ["RIMS_GPU"] = name

    def forward() -> torch.Tensor:
        if DRY and name in ENGINES:  # the way in is open to CUDA tensors alone
            h = torch.zeros(batch, SIZE)
            return dense.run(*gpu.prepare(layer.cells[0], x, h, h), gpu.engine(name)).states  # type: ignore[index, arg-type]
        with torch.autocast(DEVICE, dtype=half, enabled=half is not None):
            return layer(x)[0]

    def without_gradients() -> None:
        with torch.no_grad():
            forward()

    def both() -> None:
        layer.zero_grad(set_to_none=True)
        y = forward()
        y.backward(dy.to(y.dtype))

    tf32 = None
    if name == "LSTM, no tf32":
        tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        what = {"layer": name, "T": length, "B": batch, "precision": precision}
        rows = [{**what, "pass": "forward", **timed(without_gradients)}]
        rows.append({**what, "pass": "forward + backward", **timed(both)})
    finally:
        os.environ.pop("RIMS_GPU", None)
        if tf32 is not None:
            torch.backends.cudnn.allow_tf32 = tf32
    return rows


def guarded(function: Callable[..., Rows], *arguments: Any) -> tuple[Rows, str]:
    """What the function finds, or nothing and why it failed."""
    try:
        return function(*arguments), ""
    except Exception:
        return [], f"FAILED: {function.__name__}{arguments}\n{traceback.format_exc(limit=-8)}"


def show(rows: Rows) -> None:
    """A line a row."""
    for row in rows:
        cells = (f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in row.items())
        print("  ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpu-dry-run", action="store_true")
    parser.add_argument("--engines", nargs="+", default=[*ENGINES, "reference"])
    arguments = parser.parse_args()
    out, engines = arguments.out, arguments.engines
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"torch": torch.__version__, "checks": [], "times": [], "failures": []}
    try:
        import triton

        result["triton"] = triton.__version__
    except ImportError:
        result["triton"] = None
    result["device"] = "cpu, dry run" if DRY else torch.cuda.get_device_name()
    print({k: result[k] for k in ("device", "torch", "triton")})

    def add(into: str, rows: Rows, failure: str) -> None:
        if failure:
            print(failure)
            result["failures"].append(failure)
        if into:
            show(rows)
            result[into] += rows
        (out / "gpu.json").write_text(json.dumps(result, indent=1))

    checks = [("checks", check, engine, name) for name in CHECKS for engine in ENGINES if engine in engines]
    warmed = DTYPES if "kernel" in engines else ()
    compiled = [("", measure, "kernel", LENGTHS[0], BATCHES[0], precision) for precision in warmed]
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        jobs = [(job[0], pool.submit(guarded, *job[1:])) for job in [*compiled, *checks]]
        for into, job in jobs:
            try:
                add(into, *job.result())
            except BrokenProcessPool as error:
                add(into, [], f"FAILED: {error}")
    layers = ("LSTM", "LSTM, no tf32", *engines)
    for length in LENGTHS:
        for batch in BATCHES:
            for precision in DTYPES:
                for layer in layers:
                    if layer == "reference" and (length, batch) != (LENGTHS[0], BATCHES[0]):
                        continue  # slow, and its time hardly depends on the batch
                    if layer == "LSTM, no tf32" and precision != "float32":
                        continue
                    add("times", *guarded(measure, layer, length, batch, precision))

    print(f"\n{'ms, median':16}" + "".join(f"{layer:>16}" for layer in layers))
    for length in LENGTHS:
        for batch in BATCHES:
            for precision in DTYPES:
                for way in ("forward", "forward + backward"):
                    what = {"T": length, "B": batch, "precision": precision, "pass": way}
                    cells = []
                    for layer in layers:
                        wanted = {**what, "layer": layer}
                        found = [r["ms"] for r in result["times"] if wanted.items() <= r.items()]
                        cells.append(f"{found[0]:16.3f}" if found else f"{'-':>16}")
                    print(f"T={length} B={batch} {precision} {way}\n{'':16}" + "".join(cells))
    worst = max((r["worst"] for r in result["checks"] if r["precision"] == "float32"), default=float("nan"))
    print(f"\nworst relative error in float32: {worst:.2g}; failures: {len(result['failures'])}")


if __name__ == "__main__":
    main()
