"""Where many runs run: in processes of this machine, or on Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rims.errors import UserError
from rims.experiments.grid import Evaluation, run_grid
from rims.train.config import RunConfig

AGAIN = "the same command"
"""What goes on with runs that were stopped."""


@dataclass(frozen=True)
class Where:
    """The machine's side of many runs; none of it changes a number."""

    on: Literal["processes", "ray"] = "processes"
    workers: int | None = None
    """Runs at a time; None is one for each CPU core."""
    address: str | None = None
    """Of a Ray cluster; None is this machine."""
    retries: int = 1
    """On Ray, how often a run that fails is tried again."""

    def run(self, configs: Mapping[Path, RunConfig], testing: Evaluation) -> dict[Path, str]:
        """As :func:`rims.experiments.grid.run_grid`. Raises UserError for options that say nothing here."""
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers is {self.workers}; expected at least 1")
        if self.on == "processes":
            if self.address is not None:
                raise UserError("--address needs --on ray")
            return run_grid(configs, testing, AGAIN, self.workers)
        if self.address is not None and self.workers is not None:
            raise UserError("--workers is for this machine; with --address, Ray fills the cluster")
        from rims.experiments.cluster import run_on_ray

        return run_on_ray(configs, testing, AGAIN, self.workers, self.address, self.retries)


HERE = Where()
"""One process for each CPU core of this machine."""
