"""Everything that decides a training run, as plain dataclasses, and its form as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from rims.cores import CORES, CoreConfig
from rims.errors import UserError
from rims.tasks import TASKS, Task


@dataclass
class ModelOptions:
    """Encoder and head around the core. Options that do not concern a task's kind of input are ignored."""

    input_size: int = 600
    """Width of the embedding or projection that the core reads."""

    dropout: float = 0.0
    """Dropout on the core's input and output (the released code: 0.5 on copying; the paper names none)."""

    init: Literal["torch", "released"] = "torch"
    """Weights of encoder and head, frames apart: torch's, or U(-0.1, 0.1) as in the released code."""

    channels: tuple[int, int, int] = (16, 32, 64)
    """Frames: channels of the encoder's three maps, and backwards of the decoder's."""

    hidden: int = 512
    """Frames: width of the decoder's first layer. That of the encoder's last is input_size."""


@dataclass
class TrainingOptions:
    """Optimisation, validation and the machine."""

    updates: int = 30_000
    """Gradient steps (the paper's 150 epochs of 200)."""

    batch_size: int = 64
    """Sequences a step."""

    learning_rate: float = 1e-3
    """Adam's step size."""

    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    """Learning rate over the run: constant, cosine to zero, or halved at every five validations in a row
    without a loss 0.01 % lower (the paper's D.5)."""

    clip: float = 1.0
    """Largest gradient norm over all parameters; 0 switches clipping off."""

    seed: int = 0
    """Decides the initial weights, the training data and the dropout masks."""

    validate_every: int = 500
    """Updates between validations at the training condition, by which the best checkpoint is chosen."""

    validation_sequences: int = 512
    """Held-out sequences a validation and condition (at most all that a data set has)."""

    validate_shifted: bool = False
    """Also validate at the test conditions; no choice is ever made by what is measured there."""

    checkpoint_every: int = 500
    """Updates between checkpoints."""

    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""

    devices: int = 1
    """Devices of a node to train on (data-parallel when more than one)."""

    nodes: int = 1
    """Nodes to train on, each with as many devices; the command is started on each of them."""

    precision: str = "32-true"
    """Lightning's precision, such as 32-true or bf16-mixed."""

    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""

    workers: int = 0
    """Processes that make training batches ahead; 0: the training process makes them."""

    def __post_init__(self) -> None:
        for name in (
            "updates",
            "batch_size",
            "validate_every",
            "validation_sequences",
            "checkpoint_every",
            "devices",
            "nodes",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("clip", "threads", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 0")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected above 0")


@dataclass
class RunConfig:
    """One run."""

    task: Task
    core: CoreConfig
    model: ModelOptions = field(default_factory=ModelOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)

    def to_json(self) -> dict[str, Any]:
        """Plain values; task and core carry their registered name."""
        return {
            "task": {"name": self.task.name, **dataclasses.asdict(self.task)},
            "core": {"name": self.core.name, **dataclasses.asdict(self.core)},
            "model": dataclasses.asdict(self.model),
            "training": dataclasses.asdict(self.training),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunConfig:
        """Inverse of :meth:`to_json`. An option that was written without, as it did not exist yet, has its
        default, or what its field's metadata say was done ``formerly``. Raises UserError naming an unknown
        task, core or option."""
        task = _pick("task", TASKS, data)
        core = _pick("core", CORES, data)
        return cls(
            task,
            core,
            _build("model", ModelOptions, data.get("model", {})),
            _build("training", TrainingOptions, data.get("training", {})),
        )


def _pick(kind: str, registry: dict[str, Any], data: dict[str, Any]) -> Any:
    values = dict(data.get(kind, {}))
    name = values.pop("name", None)
    if name not in registry:
        raise UserError(f"unknown {kind} {name!r}; known: {', '.join(sorted(registry))}")
    return _build(f"{kind} {name}", registry[name], values)


def _build(what: str, kind: Any, values: dict[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"{what} has no option {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    former = {f.name: f.metadata["formerly"] for f in dataclasses.fields(kind) if "formerly" in f.metadata}
    lists_as_tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return kind(**{**former, **lists_as_tuples})
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: {str(error).splitlines()[0]}") from error
