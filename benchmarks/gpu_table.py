"""Markdown of what benchmarks/gpu.py measured: times as ratios to cuDNN's nn.LSTM in the same run.

python benchmarks/gpu_table.py gpu.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    result = json.loads(Path(sys.argv[1]).read_text())
    times = {(r["T"], r["B"], r["precision"], r["pass"], r["layer"]): r for r in result["times"]}
    layers = [name for name in dict.fromkeys(key[-1] for key in times) if name != "LSTM"]
    worst = max(r["worst"] for r in result["checks"] if r["precision"] == "float32")
    print(
        f"{result['device']}, torch {result['torch']}, Triton {result['triton']}. Largest relative error of "
        f"results and gradients against the float64 reference, in float32: {worst:.1e}; failures: "
        f"{len(result['failures'])}."
    )
    print("\n|  | LSTM, ms | " + " | ".join(layers) + " |\n|---|---:|" + "---:|" * len(layers))
    for case in dict.fromkeys(key[:-1] for key in times):
        lstm = times[*case, "LSTM"]["ms"]
        cells = []
        for layer in layers:
            found = times.get((*case, layer))
            cells.append("" if found is None else f"{found['ms'] / lstm:.2f}")
        length, batch, precision, way = case
        print(f"| T = {length}, B = {batch}, {precision}, {way} | {lstm:.2f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
