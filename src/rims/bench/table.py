"""The measurements of ``rims bench`` as text: for the terminal, and as Markdown for docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

Cells = list[tuple[str, ...]]


def tables(result: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], Cells]]:
    """Title, header and rows of every table."""
    if "cores" in result:
        yield "all cores", CORE_HEADER, [_core_cells(row) for row in result["cores"]]
        return
    if "data" in result:
        header = ("", "sequences/min", "batch, ms", "of an update", "quartiles")
        yield "making batches", header, [_data_cells(row) for row in result["data"]]
        return
    layers: Cells = [
        (row["name"], f"{row['parameters']:,}", _mebibytes(row["memory"])) for row in result["layers"]
    ]
    yield "what is compared", ("", "parameters", "peak memory"), layers
    for title, rows in groupby(result["rows"], key=lambda row: row["table"]):
        yield title, ("", "ms", "ratio", "quartiles", "tokens/s", "of peak"), [_cells(row) for row in rows]


def _mebibytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:.0f} MiB"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    timing = row["timing"]
    return (
        row["name"],
        f"{1e3 * timing['seconds']:.4g}",
        f"{timing['ratio']:.2f}",
        f"{timing['ratio_low']:.2f}-{timing['ratio_high']:.2f}",
        f"{row['tokens_per_second']:,.0f}",
        "" if row["peak_fraction"] is None else f"{100 * row['peak_fraction']:.0f} %",
    )


def _data_cells(row: dict[str, Any]) -> tuple[str, ...]:
    timing = row["timing"]
    return (
        row["task"],
        f"{row['sequences_per_minute']:,.0f}",
        f"{1e3 * timing['seconds']:.4g}",
        f"{timing['ratio']:.4f}",
        f"{timing['ratio_low']:.4f}-{timing['ratio_high']:.4f}",
    )


CORE_HEADER = (
    "",
    "size",
    "RIM's",
    "parameters",
    "state",
    "kFLOP/step",
    "train us/token",
    "ratio",
    "quartiles",
    "products us/token",
    "of the bar",
    "forward us/token",
    "ratio",
    "one step us",
)


def _core_cells(row: dict[str, Any]) -> tuple[str, ...]:
    train, forward, step = (row["timings"][mode] for mode in ("train", "forward", "step"))
    return (
        row["core"],
        row["size"],
        row["matched"],
        f"{row['parameters']:,}",
        f"{row['state_size']:,}",
        f"{row['flops_per_step'] / 1e3:,.0f}",
        f"{1e6 * train['seconds']:.4g}",
        f"{train['ratio']:.2f}",
        f"{train['ratio_low']:.2f}-{train['ratio_high']:.2f}",
        "" if row["products"] is None else f"{1e6 * row['products']:.4g}",
        "" if row["of_bar"] is None else f"{row['of_bar']:.2f}",
        f"{1e6 * forward['seconds']:.4g}",
        f"{forward['ratio']:.2f}",
        f"{1e6 * step['seconds']:.4g}",
    )


def markdown(result: dict[str, Any]) -> str:
    """All tables, under the line that says how they were made."""
    lines = [about(result), ""]
    for title, header, rows in tables(result):
        lines += [f"**{title}**", "", "| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def about(result: dict[str, Any]) -> str:
    """Machine, commit, command, and what holds for all tables, in some sentences."""
    made = result["versions"]
    machine = made["gpu"] if result["setting"]["device"] == "cuda" else made["cpu"]
    commit = (made["commit"] or "unknown")[:12]
    where = (
        f"`{made['command']}` at commit {commit} on {machine}, {result['threads']} thread(s), torch "
        f"{made['torch']}, {made['time'][:10]}. "
    )
    if "cores" in result:
        return " ".join(
            [
                f"{where}Medians of up to {result['repeats']} rounds, ratios per round to nn.LSTM of "
                f"{result['setting']['hidden_size']} units. Products: "
                "the matrix products of training alone; the bar is three times these and 60 us a step.",
                *(f"{text}." for text in result["unmatched"]),
            ]
        )
    if "data" in result:
        return (
            f"{where}Batches of {result['setting']['batch']}; medians of up to {result['repeats']} rounds, "
            "ratios per round to forward and backward of an LSTM of "
            f"{result['setting']['hidden_size']} units."
        )
    worst = ", ".join(f"{name} {value:.1e}" for name, value in result["errors"].items())
    return (
        f"{where}Medians of {result['repeats']} rounds, ratios per round. "
        f"Matmul peak {result['peak_flops'] / 1e9:.0f} GFLOP/s. Largest relative error of outputs and "
        f"gradients against the float64 reference: {worst}."
    )
