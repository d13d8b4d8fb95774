"""Options that several commands have."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from rims.cores import CORES
from rims.tasks import TASKS
from rims.train.config import TrainingOptions


def unchecked(kind: Any) -> Any:
    """The dataclass ``kind`` without its own checks.

    tyro draws a box around the ValueError of a class's checks. RunConfig.from_json makes them when it builds
    the real class, and they end in one line like all else.
    """
    summary = inspect.cleandoc(kind.__doc__).split("\n\n")[0].replace("``", "")  # all that help has room for
    namespace = {"__post_init__": lambda self: None, "__doc__": summary, "__module__": kind.__module__}
    return dataclass(type(kind.__name__, (kind,), namespace))


def choice(registry: dict[str, Any], prefix: bool) -> Any:
    """A registry as tyro's subcommands."""
    choices = [
        Annotated[unchecked(kind), tyro.conf.subcommand(name, prefix_name=prefix)]
        for name, kind in registry.items()
    ]
    # A union of one is no union, and would be no subcommand.
    return Union[(*choices, Annotated[None, tyro.conf.Suppress])]


TaskOptions: Any = choice(TASKS, prefix=False)
CoreOptions: Any = choice(CORES, prefix=True)
UncheckedTraining: Any = unchecked(TrainingOptions)
DataDir = Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")]
PLURALS = sorted({f"--{task.condition_name.removesuffix('s')}s" for task in TASKS.values()})
"""``--delays`` and the like: what ``--conditions`` is also called."""
