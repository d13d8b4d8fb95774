"""Bouncing balls from files: R-NEM's own, or those that ``rims generate`` writes (rims.tasks.balls_writer).

A file is HDF5 with the groups ``training``, ``validation`` and ``test``. In each (T frames, N sequences):

* ``features (T, N, H, W, 1)``, the frames; the one field that is needed. R-NEM's have T = 51, H = W = 64 and
  are black and white. Ours are bytes, and have 3 channels where balls are coloured.
* ``groups (T, N, H, W, 1)``, which ball a pixel belongs to; ``collisions``, of the same shape, and ``events
  (T, N, 1, 1, 1)``, as R-NEM's evaluation takes them; ``positions`` and ``velocities``. None of these is read
  from R-NEM's files, in which their units are unknown.

Files with the attribute ``unit = "pixel"`` are ours: there, with K balls, NaN where there is none,
``positions`` and ``velocities (T, N, K, 2)``, ``radii`` and ``colours (N, K)`` and ``curtain (N, 4)`` are
those of :class:`~rims.tasks.video.Scene`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from rims.errors import UserError
from rims.tasks.balls import straight_on
from rims.tasks.base import Batch, DatasetTask, Frames, Split, register
from rims.tasks.video import Scene, VideoTask

UNIT = "pixel"
"""The attribute ``unit`` of our files."""

MOVING = ("positions", "velocities")
LASTING = ("radii", "colours", "curtain")
"""Fields of the scene, in the order of :class:`~rims.tasks.video.Scene`."""

SAMPLE = 16
"""Sequences looked at to tell whether integers are 0 and 1 or brightness."""


@register
@dataclass
class BallsFile(VideoTask, DatasetTask):
    """Bouncing balls, or any other clips, from HDF5 files laid out as R-NEM's.

    Conditions are the files: 0 is ``path``, from which is learned, 1 and on are those of ``test_paths``. Each
    sequence is the first ``length`` frames of its row. Brightness is floats from 0 to 1, bytes, or integers
    that are 0 and 1 alone. Held-out sets have as many sequences as the smallest file has of the split.

    What is read of a file is the rows asked for. That is quick where a chunk holds few sequences, as in our
    files, or the file is not chunked; others may be rewritten by HDF5's own ``h5repack``.
    """

    name: ClassVar[str] = "balls-file"
    condition_name: ClassVar[str] = "file"
    categorical: ClassVar[bool] = True

    path: str = ""
    """File to learn from."""

    test_paths: tuple[str, ...] = ()
    """More files to test with."""

    @property
    def input(self) -> Frames:
        height, width, channels = self._features(0, "training").shape[2:]
        return Frames(height, width, channels)

    @property
    def training_condition(self) -> int:
        return 0

    @property
    def test_conditions(self) -> tuple[int, ...]:
        return tuple(range(1 + len(self.test_paths)))

    def label(self, condition: int) -> str:
        return self._path(condition).stem

    def _path(self, condition: int) -> Path:
        paths = (self.path, *self.test_paths)
        if not 0 <= condition < len(paths):
            raise ValueError(f"file is {condition}; expected 0 to {len(paths) - 1}")
        if not paths[condition]:
            raise UserError("balls-file needs a file: its option path is empty")
        return Path(paths[condition]).expanduser()

    def _features(self, condition: int, split: Split) -> Any:
        """The data set of frames. Raises UserError when the file has none that fit."""
        path = self._path(condition)
        data = _field(path, split, "features")
        what, shape = f"{path}, {split}/features", data.shape
        if len(shape) != 5 or shape[4] not in (1, 3):
            raise UserError(f"{what}: the shape is {shape}; expected (T, N, H, W, 1) or (T, N, H, W, 3)")
        if not shape[1]:
            raise UserError(f"{what}: the shape is {shape}; expected at least one sequence")
        if shape[2] != shape[3] or shape[2] % 8 or not shape[2]:
            raise UserError(
                f"{what}: frames are {shape[2]} x {shape[3]}; expected squares with a side that is a "
                "multiple of 8"
            )
        if shape[0] < self.length:
            raise UserError(f"{what}: sequences have {shape[0]} frames; expected at least {self.length}")
        if (condition, split) != (0, "training"):
            expected = self._features(0, "training").shape[2:]
            if shape[2:] != expected:
                raise UserError(f"{what}: frames are {shape[2:]}; expected {expected}, as in {self.path}")
        return data

    def prepare(self) -> None:
        for split in ("training", "validation", "test"):
            self._check(0, split)
        for condition in self.test_conditions[1:]:
            self._check(condition, "test")

    def _check(self, condition: int, split: Split) -> None:
        """Raises UserError unless all that is read of a split fits, but for values."""
        frames, path = self._features(condition, split), self._path(condition)
        if _is_ours(path):
            _scene_fields(path, split, *frames.shape[:2])

    def size(self, split: Split) -> int:
        others = self.test_conditions[1:] if split != "training" else ()
        have = [c for c in others if split in _open(self._path(c), os.getpid())]
        return min(self._features(condition, split).shape[1] for condition in (0, *have))

    def examples(self, split: Split, indices: Tensor, condition: int | None = None) -> Batch:
        condition = 0 if condition is None else condition
        path, rows = self._path(condition), indices.numpy()
        data = self._features(condition, split)
        with _damage(path):
            values = _rows(data, rows, self.length)
            frames = torch.from_numpy(_brightness(values, path, split)).permute(0, 1, 4, 2, 3).contiguous()
            if not _is_ours(path):
                return self.clips(frames)
            fields = _scene_fields(path, split, *data.shape[:2])
            parts = {name: _rows(fields[name], rows, self.length) for name in MOVING}
            parts |= {name: _rows(fields[name], rows) for name in LASTING}
            kinds = {name: np.int64 if name == "colours" else np.float32 for name in parts}
            scene = {name: torch.from_numpy(part.astype(kinds[name])) for name, part in parts.items()}
            return self.clips(frames, Scene(**scene))

    def extrapolated(self, batch: Batch, steps: int) -> UInt8[Tensor, "S B C H W"] | None:
        """As :meth:`rims.tasks.balls.Balls.extrapolated`, of our files; None of others."""
        if batch.details is None:
            return None
        return straight_on(batch.details, self.feed_in - 1, steps, self.input).to(batch.inputs.device)


@functools.lru_cache(maxsize=32)
def _open(path: Path, process: int) -> Any:
    """The file, opened once in each process: a handle must not be used by two."""
    try:
        import h5py
    except ModuleNotFoundError as missing:
        raise UserError("HDF5 files need h5py: pip install 'rims[train]'") from missing
    with _damage(path):
        return h5py.File(path, "r")


def _is_ours(path: Path) -> bool:
    return bool(_open(path, os.getpid()).attrs.get("unit") == UNIT)


def _field(path: Path, split: Split, name: str) -> Any:
    """A data set of numbers in a group. Raises UserError saying what is missing or is none."""
    place = _open(path, os.getpid())
    for what, step in (("group", split), ("field", name)):
        if not hasattr(place, "keys"):
            raise UserError(f"{path}, {place.name.lstrip('/')}: it is a field; expected a group of fields")
        if step not in place:
            raise UserError(f"{path} has no {what} {step}; {place.name} has {', '.join(place) or 'nothing'}")
        place = place[step]
    if hasattr(place, "keys"):
        raise UserError(f"{path}, {split}/{name}: it is a group; expected a field")
    if place.dtype.kind not in "biuf":
        raise UserError(f"{path}, {split}/{name}: values are {place.dtype}; expected numbers")
    return place


def _scene_fields(path: Path, split: Split, frames: int, sequences: int) -> dict[str, Any]:
    """The fields of the scene, which our files have. Raises UserError for one whose shape does not fit the
    frames, or the number of balls."""
    fields = {name: _field(path, split, name) for name in (*MOVING, *LASTING)}
    radii = fields["radii"].shape
    if len(radii) != 2:
        raise UserError(f"{path}, {split}/radii: the shape is {radii}; expected ({sequences}, balls)")
    moving, each = (frames, sequences, radii[1], 2), (sequences, radii[1])
    expected = dict.fromkeys(MOVING, moving) | {"radii": each, "colours": each, "curtain": (sequences, 4)}
    for name, field in fields.items():
        if field.shape != expected[name]:
            raise UserError(f"{path}, {split}/{name}: the shape is {field.shape}; expected {expected[name]}")
    return fields


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What h5py raises as a UserError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        if path.is_dir():  # HDF5 says so at length
            raise UserError(f"{path} is a folder; expected an HDF5 file") from None
        reason = " ".join(str(error).partition("(")[2].rstrip(")").split()) or error.strerror or error
        raise UserError(f"{path} cannot be read; truncated, damaged or no HDF5 file: {reason}") from error


def _rows(data: Any, indices: np.ndarray, length: int | None = None) -> np.ndarray:
    """The sequences at ``indices`` of a field ``(T, N, ...)``, their first ``length`` frames; without, of one
    that is ``(N, ...)``."""
    # A read for each run of neighbours: for scattered rows HDF5's own selection takes fifty times as long.
    time = () if length is None else (slice(length),)
    unique, back = np.unique(indices, return_inverse=True)
    runs = np.split(unique, np.flatnonzero(np.diff(unique) > 1) + 1)
    parts = [data[(*time, slice(run[0], run[-1] + 1))] for run in runs]
    return np.take(np.concatenate(parts, axis=len(time)), back, axis=len(time))


def _brightness(values: np.ndarray, path: Path, split: Split) -> UInt8[np.ndarray, ...]:
    """As bytes from 0 to 255."""
    kind = values.dtype.kind
    largest = 1 if kind in "bf" or (kind in "iu" and _binary(path, split, os.getpid())) else 255
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= largest):
        raise UserError(
            f"{path}, {split}/features: values are {values.dtype} from {low} to {high}; "
            "expected floats from 0 to 1, or integers from 0 to 1 or 255"
        )
    if largest == 255:
        return values.astype(np.uint8)
    return np.round(values.astype(np.float32) * 255).astype(np.uint8)


@functools.lru_cache(maxsize=32)
def _binary(path: Path, split: Split, process: int) -> bool:
    """Whether integers are 0 and 1, by the first sequences of the split; in our files they never are."""
    return not _is_ours(path) and bool(_field(path, split, "features")[:, :SAMPLE].max() <= 1)
