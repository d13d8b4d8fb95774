"""The run folder: what a run is, what it measured and where it stands, in files that survive a kill.

::

    config.json      RunConfig and the format's version
    versions.json    commit, versions, machine and command, one entry a start or resume
    metrics.jsonl    a line a measurement: {"update": 500, "split": "training" | "validation",
                     "condition": 50, "seconds": 61.2, "loss": ...}; at the training condition, and with
                     validate_shifted at each test condition
    evaluation.json  test metrics: {"commit": ..., "conditions": [{"condition": 50, "checkpoint": "last",
                     "update": 30000, "sequences": 2048, "metrics": {...}}]}
    summary.json     written at the end: updates, seconds, parameters (of the model), core_parameters,
                     state_size, flops_per_step, validation (metrics of the last one, at the training
                     condition)
    checkpoints/     last.ckpt (to resume), best.ckpt (lowest validation loss at the training condition)
    tensorboard/     event files
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rims.errors import UserError
from rims.train.config import RunConfig

FORMAT = 1
"""Version of the run folder; a folder of another version is refused."""

BESIDE_RUNS = ("report.html", "summary.json")
"""Files that commands write into a folder of runs."""


class Run:
    """A run folder. ``Run.create`` starts one, ``Run.open`` reads one."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> Run:
        """Make the folder. Raises UserError when one stands there already or it cannot be written."""
        path = Path(path)
        if (path / "config.json").exists():
            raise UserError(f"{path} holds a run already; give --resume to go on with it, or another folder")
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            run = cls(path, config)
            run.write_json("config.json", {"format": FORMAT, **config.to_json()})
        except OSError as error:
            raise UserError(f"cannot write the run folder {path}: {error.strerror or error}") from error
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Read the folder. Raises UserError when it is missing, half-written or of another version."""
        path = Path(path)
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise UserError(f"{path} is no run folder: it {what}")
        data = cls._read(path, "config.json")
        if data is None:
            raise UserError(f"{path} is no run folder: it has no config.json")
        version = data.pop("format", None) if isinstance(data, dict) else None
        if version != FORMAT:
            raise UserError(
                f"{path} is a run folder of format {version}; this version of rims reads format {FORMAT}"
            )
        try:
            return cls(path, RunConfig.from_json(data))
        except UserError as error:
            raise UserError(f"{path / 'config.json'}: {error}") from error

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "best.ckpt"

    def read_json(self, name: str) -> Any:
        """The file's content, ``None`` when there is no such file. Raises UserError when it is not whole."""
        return self._read(self.path, name)

    @staticmethod
    def _read(path: Path, name: str) -> Any:
        try:
            return json.loads((path / name).read_text())
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path / name} is damaged: {error}") from error
        except OSError as error:
            raise UserError(f"cannot read {path / name}: {error.strerror or error}") from error

    def write_json(self, name: str, value: Any) -> None:
        """Write the file at once or not at all."""
        write_atomically(self.path / name, (json.dumps(value, indent=2) + "\n").encode())

    def metrics(self) -> list[dict[str, Any]]:
        """The measurements so far, in order. A last line cut short by a kill is left out."""
        try:
            lines = (self.path / "metrics.jsonl").read_text().split("\n")
        except FileNotFoundError:
            return []
        rows = []
        for number, line in enumerate(lines[:-1], 1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{self.path / 'metrics.jsonl'} is damaged in line {number}: {error}"
                ) from error
        return rows

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Append one measurement, on the disk before the checkpoint that counts on it."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep_metrics_until(self, update: int) -> None:
        """Drop the measurements after ``update``: a resumed run makes them again."""
        rows: Iterable[dict[str, Any]] = (row for row in self.metrics() if row["update"] <= update)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.path / "metrics.jsonl", text.encode())

    def remove_leftovers(self) -> None:
        """Remove the unfinished files of killed processes. Only for the process that trains the run."""
        for leftover in self.path.glob(f"**/.*{_UNFINISHED}"):
            leftover.unlink(missing_ok=True)


def runs_in(paths: Iterable[Path]) -> list[Path]:
    """The run folders among ``paths``, and of a folder of run folders, those in it, by name.

    The page and summary that are written beside runs are passed over: ``runs/*`` can be given again.
    Raises UserError for a path that is none of these.
    """
    found: list[Path] = []
    for path in paths:
        if path.name in BESIDE_RUNS and path.is_file() and not (path.parent / "config.json").exists():
            continue
        inside = [] if (path / "config.json").exists() else sorted(path.glob("*/config.json"))
        found += [config.parent for config in inside] or [Run.open(path).path]
    return found


def write_file(path: Path, text: str) -> None:
    """:func:`write_atomically` for a file that a user named. Raises UserError when it cannot be written."""
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


_UNFINISHED = ".unfinished"


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace ``path`` by ``content``: a reader or a kill sees the old or the new, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
