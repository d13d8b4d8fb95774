"""A run folder, read: its options, tests, curves and commits."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rims.errors import UserError
from rims.train.config import RunConfig
from rims.train.folder import Run


@dataclass
class Result:
    """What one run folder says."""

    run: Run
    evaluation: dict[int, dict[str, float]]
    """Test metrics by condition; empty when the run is not evaluated."""
    references: dict[int, dict[str, dict[str, float]]]
    """By condition, the metrics of predictors that learn nothing, by their names."""
    sequences: dict[int, int]
    """Test sequences by condition."""
    weights: dict[int, tuple[str, int]]
    """The checkpoint tested and the updates it had seen, by condition, as far as the folder tells."""
    evaluation_commit: str | None
    summary: dict[str, Any] | None
    """None until the run has ended."""
    metrics: list[dict[str, Any]]
    versions: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Result:
        """Raises UserError when the folder is missing or damaged."""
        run = Run.open(path)
        evaluation = run.read_json("evaluation.json")
        try:
            conditions = evaluation["conditions"] if evaluation else []
            by_condition = {
                int(entry["condition"]): {name: float(value) for name, value in entry["metrics"].items()}
                for entry in conditions
            }
            references = {
                int(entry["condition"]): {
                    name: {metric: float(value) for metric, value in metrics.items()}
                    for name, metrics in entry.get("references", {}).items()
                }
                for entry in conditions
            }
            sequences = {int(entry["condition"]): int(entry["sequences"]) for entry in conditions}
            weights = {
                int(entry["condition"]): (str(entry["checkpoint"]), int(entry["update"]))
                for entry in conditions
                if "checkpoint" in entry and "update" in entry
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            name = run.path / "evaluation.json"
            raise UserError(f"{name} is damaged: {type(error).__name__} {error}") from error
        versions = run.read_json("versions.json") or []
        return cls(
            run,
            by_condition,
            references,
            sequences,
            weights,
            _hash(evaluation.get("commit")) if evaluation else None,
            run.read_json("summary.json"),
            run.metrics(),
            versions if isinstance(versions, list) else [versions],
        )

    @property
    def config(self) -> RunConfig:
        return self.run.config

    @property
    def seed(self) -> int:
        return self.config.training.seed

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.run.path.name or str(self.run.path)

    @property
    def argument(self) -> str:
        """The folder as it is typed in a shell."""
        return shlex.quote(str(self.run.path))

    @property
    def updates(self) -> int:
        """Updates made so far, as far as the folder tells."""
        if self.summary is not None:
            return int(self.summary["updates"])
        return max((int(row["update"]) for row in self.metrics), default=0)

    @property
    def seconds(self) -> float | None:
        """Wall time spent on training so far."""
        if self.summary is not None and self.summary.get("seconds") is not None:
            return float(self.summary["seconds"])
        return max((float(row["seconds"]) for row in self.metrics if "seconds" in row), default=None)

    @property
    def commit(self) -> str | None:
        """The commit that measured the numbers, or else the last that trained."""
        trained = [_hash(entry.get("commit") or entry.get("git")) for entry in self.versions]
        return self.evaluation_commit or next((known for known in reversed(trained) if known), None)

    def curve(self, split: str, name: str) -> tuple[list[int], list[float]]:
        """Updates and values of a measurement; validation is taken at the training condition alone."""
        trained = self.config.task.training_condition
        rows = [
            row
            for row in self.metrics
            if row.get("split") == split
            and row.get(name) is not None
            and (split == "training" or row.get("condition", trained) == trained)
        ]
        return [int(row["update"]) for row in rows], [float(row[name]) for row in rows]


def options(config: RunConfig) -> dict[str, Any]:
    """Every option but the seed, by its dotted name, such as ``core.hidden_size``."""
    flat = {
        f"{part}.{name}": value for part, values in config.to_json().items() for name, value in values.items()
    }
    del flat["training.seed"]
    return flat


def _hash(commit: Any) -> str | None:
    """A commit in seven digits, with a plus where the checkout had changes that no commit holds."""
    if isinstance(commit, dict):
        known = _hash(commit.get("commit"))
        return known and known + ("+" if commit.get("dirty") else "")
    return str(commit)[:7] if commit else None
