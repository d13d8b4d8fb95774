"""The table in the terminal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rims.cores import LSTMConfig
from rims.report import print_table

Make = Callable[..., Path]


@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_and_holds_the_numbers(
    make: Make, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table([make("a", seed=0), make("b", seed=1, accuracy=0.85), make("c", LSTMConfig(7))])
    printed = capsys.readouterr().out
    tables = printed[: printed.index("LSTM: one seed")]
    assert max(map(len, tables.splitlines())) <= columns
    assert "\x1b" not in printed
    rows = [line.split() for line in tables.splitlines()]
    assert ["GRU", "2", "80.0", "±", "63.5", "55.0", "±", "63.5"] in rows
    assert ["LSTM", "1", "75.0", "50.0"] in rows
    assert ["chance", "12.5", "12.5"] in rows
    assert ["LSTM", "7", "1.23M", "4321", "7.65M", "1,000", "1", "h", "02", "min"] in rows


def test_a_pipe_gets_one_line_a_row(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table([make("[bold]" + "x" * 100), make("b")])
    printed = capsys.readouterr().out
    assert sum("[bold]" + "x" * 100 in line and "75.0" in line for line in printed.splitlines()) == 1


def test_an_ascii_terminal_is_served(make: Make) -> None:
    runs = [str(make("a", seed=0)), str(make("b", seed=1)), str(make("c", LSTMConfig(7), accuracy=None))]
    code = f"from pathlib import Path; from rims.report import print_table; print_table(map(Path, {runs}))"
    source = str(Path(__file__).parents[2] / "src")
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": source, "COLUMNS": "80"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
    ).stdout
    assert b"+-" in out


def test_plotting_is_imported_only_for_a_page() -> None:
    heavy = "{'matplotlib', 'jinja2', 'rich', 'scipy'}"
    code = f"import sys, rims.report; print({heavy} & {{*sys.modules}})"
    source = str(Path(__file__).parents[2] / "src")
    out = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, check=True
    )
    assert out.stdout == b"set()\n"
