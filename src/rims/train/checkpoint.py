"""Checkpoints: written at once or not at all, read with care."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from rims.errors import UserError
from rims.models import SequenceModel
from rims.train.config import RunConfig
from rims.train.folder import Run, write_atomically
from rims.train.module import build_model

Which = Literal["last", "best"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints with the run's config inside, in files that a kill leaves whole."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        # Through memory: torch.save into a file that cannot be written raises a RuntimeError about its
        # archive, not the OSError.
        buffer = io.BytesIO()
        torch.save({**checkpoint, "rims": self.config.to_json()}, buffer)
        write_atomically(Path(path), buffer.getbuffer())

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path), self.config, map_location)


def read_checkpoint(path: Path, config: RunConfig, map_location: Any = "cpu") -> dict[str, Any]:
    """The checkpoint's content. Nothing in the file is executed.

    Raises UserError, naming the file, when it is missing, damaged, not of rims, or of a run with another
    config.
    """
    try:
        content = io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    try:
        with zipfile.ZipFile(content) as archive:
            if archive.testzip() is not None:  # torch.load does not look at the checksums
                raise zipfile.BadZipFile
        content.seek(0)
        checkpoint = torch.load(content, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged archive or pickle raises nearly anything
        raise UserError(f"{path} is damaged or is no checkpoint of rims") from error
    if not isinstance(checkpoint, dict) or not {"rims", "state_dict", "global_step"} <= checkpoint.keys():
        raise UserError(f"{path} is no checkpoint of rims")
    # Compared as configs: in the checkpoint of an earlier version, options that are newer have their default.
    try:
        same = RunConfig.from_json(checkpoint["rims"]) == config
    except (UserError, AttributeError, TypeError, ValueError):
        same = False
    if not same:
        raise UserError(f"{path} belongs to a run with another config than the one of its folder")
    return checkpoint


def load_model(run: Run, checkpoint: Which = "last") -> SequenceModel:
    """The run's model with the weights of its last or best checkpoint, on the CPU, in eval mode.

    Raises UserError when there is no such checkpoint or it cannot be used.
    """
    return load_model_and_update(run, checkpoint)[0]


def load_model_and_update(run: Run, checkpoint: Which = "last") -> tuple[SequenceModel, int]:
    """As :func:`load_model`, with the number of updates that the weights have seen."""
    path = run.last_checkpoint if checkpoint == "last" else run.best_checkpoint
    content = read_checkpoint(path, run.config)
    model = build_model(run.config)
    prefix = "model."
    weights = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit this version's {run.config.core.name} core") from error
    return model.eval(), content["global_step"]
