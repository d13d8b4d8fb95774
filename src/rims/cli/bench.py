"""The command that measures."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from rims.bench.arms import Setting
from rims.cli.tables import print_table
from rims.errors import UserError
from rims.nn.fast.memory import keep_freed_memory
from rims.train.folder import write_file


@dataclass
class Bench:
    """How fast the layer is here, as ratios to nn.LSTM in the same run: tables, and JSON."""

    setting: Setting = field(default_factory=Setting)
    """Sizes; by default the paper's copying run."""
    repeats: int = 7
    """Rounds that medians are taken over."""
    threads: int = 1
    """CPU threads."""
    sweeps: bool = True
    """Also measure against active RIMs, steps and batch."""
    compiled: bool = False
    """Also what torch.compile makes of the layer and the cells, or of cores; takes minutes."""
    cores: bool = False
    """Instead, all cores beside nn.LSTM, at RIM's state size and at its parameters."""
    only: tuple[str, ...] = ()
    """With --cores: these alone."""
    data: bool = False
    """Instead, what making training batches costs beside the updates that they are for."""
    output: Path | None = None
    """File for everything as JSON."""
    markdown: bool = False
    """Print Markdown, as in docs/performance.md."""

    def __call__(self) -> None:
        if self.cores and self.data:
            raise UserError("--cores and --data are measurements of their own; give one of the two")
        what = "cores" if self.cores else "data" if self.data else "run"
        measurements = importlib.import_module(f"rims.bench.{what}")
        table = importlib.import_module("rims.bench.table")
        versions = importlib.import_module("rims.train.versions").versions
        importlib.import_module("torch").set_num_threads(self.threads)
        keep_freed_memory()
        console = Console(stderr=True)
        with console.status("") as status:
            try:
                if what == "data":
                    result = measurements.bench(self.setting, self.repeats, status.update)
                elif what == "cores":
                    result = measurements.bench(
                        self.setting, self.repeats, self.compiled, self.only, status.update
                    )
                else:
                    result = measurements.bench(
                        self.setting, self.repeats, self.sweeps, self.compiled, status.update
                    )
            except ValueError as error:
                raise UserError(str(error)) from error
        result["versions"] = versions()
        if self.output is not None:
            write_file(self.output, json.dumps(result, indent=2) + "\n")
        if self.markdown:
            print(table.markdown(result))
            return
        print(table.about(result))
        for title, header, rows in table.tables(result):
            shown = Table(header[0], *(Column(name, justify="right") for name in header[1:]), title=title)
            for row in rows:
                shown.add_row(*row)
            print_table(shown)
