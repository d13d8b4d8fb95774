"""Bouncing balls into a file, which the task ``balls-file`` reads (layout: rims.tasks.balls_file)."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from rims.errors import UserError
from rims.tasks.balls import Balls
from rims.tasks.balls_file import UNIT
from rims.tasks.base import Split
from rims.tasks.render import owners
from rims.tasks.video import Scene

PORTION = 100
"""Sequences made and written at a time; part of what a seed's sequences are."""


def sequences(
    task: Balls, split: Split, count: int, seed: int
) -> Iterator[tuple[Scene, Bool[Tensor, "T B N"]]]:
    """What the file of a seed shows: ``count`` sequences of the split, portion by portion, each with which
    balls have hit something. They depend on the seed, the split and their place alone."""
    for number, start in enumerate(range(0, count, PORTION)):
        random = np.random.default_rng([seed, get_args(Split).index(split), number])
        scene, collisions = task.draw(random, PORTION)
        keep = min(PORTION, count - start)
        moving = (part[:, :keep] for part in scene[:2])
        yield Scene(*moving, *(part[:keep] for part in scene[2:])), collisions[:, :keep]


def write(
    task: Balls,
    path: Path,
    counts: dict[Split, int],
    seed: int,
    progress: Callable[[int], None] = lambda written: None,
) -> None:
    """Write ``counts`` sequences of each split under the task's training condition; no group where there are
    none. ``progress`` is told how many are written so far.

    ``collisions`` marks the pixels of the balls that have hit something since the frame before. R-NEM's field
    ``events`` is left out, because its meaning is not known.

    The file appears under its name when it is whole. Raises UserError when it exists or cannot be written.
    """
    try:
        import h5py
    except ModuleNotFoundError as missing:
        raise UserError("HDF5 files need h5py: pip install 'rims[train]'") from missing
    if path.exists():
        raise UserError(f"{path} exists; give another name, or remove it")
    partial = path.with_name(path.name + ".partial")
    try:
        try:
            with h5py.File(partial, "w") as file:
                file.attrs.update(unit=UNIT, seed=seed, task=json.dumps(dataclasses.asdict(task)))
                written = 0
                for split, count in counts.items():
                    start = 0
                    for scene, collisions in sequences(task, split, count, seed):
                        fields = _fields(task, scene, collisions)
                        if not start:
                            group = file.create_group(split)
                            _create(group, fields, count)
                        rows = slice(start, start + len(scene.radii))
                        for name, (sequences_first, values) in fields.items():
                            group[name][rows if sequences_first else (slice(None), rows)] = values
                        start = rows.stop
                        progress(written + start)
                    written += start
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _fields(task: Balls, scene: Scene, collisions: Tensor) -> dict[str, tuple[bool, np.ndarray]]:
    """The values of each field, and whether sequences, and not frames, are its first axis."""
    size = (task.side, task.side)
    frames = task.render(scene).numpy()
    numbers = owners(
        scene.positions.double().numpy(), scene.radii.double().numpy(), size, scene.curtain.double().numpy()
    )
    # Of each pixel, whether the ball it belongs to has hit something; none, number 0, has not.
    hit = np.pad(collisions.numpy(), ((0, 0), (0, 0), (1, 0)))
    steps, batch = frames.shape[:2]
    marks = np.take_along_axis(hit, numbers.reshape(steps, batch, -1), axis=2).reshape(numbers.shape)
    images = {"features": frames, "groups": numbers, "collisions": marks.astype(np.uint8)}
    fields = {name: (False, np.moveaxis(image, 2, -1)) for name, image in images.items()}
    for name, part in scene._asdict().items():
        fields[name] = (name not in ("positions", "velocities"), part.numpy())
    return fields


def _create(group: Any, fields: dict[str, tuple[bool, np.ndarray]], count: int) -> None:
    """Empty fields for ``count`` sequences; a chunk of images is one sequence, so that a batch costs its own
    sequences to read."""
    for name, (sequences_first, values) in fields.items():
        axis = 0 if sequences_first else 1
        shape = (*values.shape[:axis], count, *values.shape[axis + 1 :])
        options: dict[str, Any] = {}
        if values.dtype == np.uint8:
            options = {
                "chunks": (*values.shape[:axis], 1, *values.shape[axis + 1 :]),
                "compression": "gzip",
                "compression_opts": 1,
            }
        group.create_dataset(name, shape, values.dtype, **options)
