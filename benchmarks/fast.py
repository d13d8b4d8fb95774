"""How fast a RIM layer is, as ratios to torch.nn.LSTM of the same sizes, in one run.

``python benchmarks/fast.py [--threads 1] [--repeats 7] [--quick]``

Times are CPU time of the process, which other work on the machine disturbs less than the clock; the
contestants take turns, each call is preceded by an untimed one of the same, and medians are divided. The
spread is the interquartile range of the contestant's times over their median. Memory is the growth of the
resident set at its peak over forward and backward, each in a fresh process (Linux).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from rims import RIM

SIZE, LENGTH, BATCH = 600, 70, 64


def train(layer: nn.Module, length: int = LENGTH) -> Callable[[], object]:
    """Forward and backward, with gradients of the input too."""
    x = torch.randn(length, BATCH, SIZE, requires_grad=True)
    return lambda: layer(x)[0].sum().backward()


def infer(layer: nn.Module) -> Callable[[], object]:
    x = torch.randn(LENGTH, BATCH, SIZE)

    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def act(layer: nn.Module) -> Callable[[], object]:
    """Two hundred single steps of a single row."""
    cell = isinstance(layer, nn.LSTMCell)
    x, h = (torch.randn(1, SIZE), torch.randn(1, SIZE)) if cell else torch.randn(2, 1, 1, SIZE).unbind(0)

    def run() -> None:
        with torch.no_grad():
            for _ in range(200):
                layer(x, (h, h))

    return run


def compare(title: str, repeats: int, base: str, **contestants: Callable[[], object]) -> None:
    """Print each contestant's median time, spread, and ratio to that of ``base``."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            run()
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    print(f"\n{title}")
    reference = statistics.median(times[base])
    for name, taken in times.items():
        middle = statistics.median(taken)
        low, _, high = statistics.quantiles(taken, n=4)
        spread = (high - low) / middle
        ratio = middle / reference
        print(f"  {name:24} {middle * 1e3:9.1f} ms   spread {spread:4.0%}   ratio {ratio:6.3f}")


def peak_memory(kind: str, length: int) -> float:
    """MB by which the resident set grows over one forward and backward, in a fresh process."""
    code = f"""
import torch
from rims import RIM
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024
torch.set_num_threads(1)
layer = torch.nn.LSTM({SIZE}, {SIZE}) if "{kind}" == "lstm" else RIM({SIZE}, {SIZE}, 6, 4)
layer(torch.randn(2, 2, {SIZE}))[0].sum().backward()
layer.zero_grad()
x = torch.randn({length}, {BATCH}, {SIZE}, requires_grad=True)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
layer(x)[0].sum().backward()
print(status("VmHWM") - before)
"""
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="the two main ratios only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {args.threads} thread(s), {args.repeats} repeats"
    )
    print(f"T={LENGTH}, B={BATCH}, input {SIZE}, hidden {SIZE}, 6 RIMs, 4 active, float32")

    lstm, rim = nn.LSTM(SIZE, SIZE), RIM(SIZE, SIZE, 6, 4)
    narrow, loop = RIM(SIZE, SIZE, 6, 4, comm_key_size=16), RIM(SIZE, SIZE, 6, 4, backend="reference")
    compare(
        "forward and backward",
        args.repeats,
        "nn.LSTM",
        **{"nn.LSTM": train(lstm), "RIM": train(rim), "RIM, 4 x 16 heads": train(narrow)},
        **{"RIM, reference": train(loop)},
    )
    compare(
        "forward without gradients",
        args.repeats,
        "nn.LSTM",
        **{"nn.LSTM": infer(lstm), "RIM": infer(rim), "RIM, 4 x 16 heads": infer(narrow)},
        **{"RIM, reference": infer(loop)},
    )
    if args.quick:
        return
    compare(
        "one step at B=1, without gradients (x 200)",
        args.repeats,
        "nn.LSTMCell",
        **{"nn.LSTMCell": act(nn.LSTMCell(SIZE, SIZE)), "RIM": act(rim), "RIM, reference": act(loop)},
    )
    compare(
        "32 RIMs of 64 units, forward and backward",
        args.repeats,
        "32 active",
        **{f"{a} active": train(RIM(SIZE, 2048, 32, a)) for a in (32, 16, 8, 4)},
    )
    compare(
        "RIM, forward and backward, by T; linear is 1, 2, 4, 8",
        max(3, args.repeats // 2),
        "T=70",
        **{f"T={length}": train(rim, length) for length in (70, 140, 280, 560)},
    )
    print("\npeak memory of forward and backward, MB")
    for length in (LENGTH, 4 * LENGTH):
        ours, theirs = peak_memory("rim", length), peak_memory("lstm", length)
        print(f"  T={length}: RIM {ours:.0f}, nn.LSTM {theirs:.0f}, ratio {ours / theirs:.3f}")


if __name__ == "__main__":
    main()
