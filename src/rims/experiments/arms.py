"""What an experiment is: arms, each one configuration beside the numbers that were published for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from rims.cores import CORES, CoreConfig, RIMConfig
from rims.cores.sizes import Match, matched, measure
from rims.errors import UserError
from rims.tasks import Task
from rims.train.config import ModelOptions, RunConfig, TrainingOptions

Scale = Literal["smoke", "small", "short", "paper"]
"""Minutes, to see that all works; hours on two CPU cores, a day for images of 14 x 14 and more; the paper's
sizes for as many updates as "small"; its sizes and updates."""

SCALES: tuple[Scale, ...] = get_args(Scale)

PAPER: dict[str, Any] = {"input_dropout": 0.1, "comm_dropout": 0.1, "comm_tanh": False}
"""Of the paper's RIMs: Table 3, and the plain sum of equation 5."""


MEMORY: dict[int, dict[str, dict[str, Any]]] = {
    1200: {"ntm": {"memory_slots": 40}},
    600: {
        "ntm": {"memory_slots": 20},
        "dnc": {"memory_slots": 8, "memory_width": 8},
        "rmc": {"num_heads": 3},
        "slstm": {"num_heads": 3},
        "transformer": {"num_layers": 3, "num_heads": 2},
    },
    240: {
        "ntm": {"memory_slots": 8},
        "dnc": {"memory_slots": 6, "memory_width": 6, "num_reads": 2},
        "transformer": {"num_layers": 3, "num_heads": 2},
    },
}
"""Options of other cores by the state size of the RIMs beside them: memories small enough, and in such parts,
that the rest of a core can make up the same state, or come near the parameters."""


@dataclass(frozen=True)
class Arm:
    """A row of the table."""

    name: str
    """Also that of its folder."""
    config: RunConfig
    published: dict[int, float] = field(default_factory=dict)
    """The paper's value of the experiment's metric, by condition, where it has one for this arm."""

    def runs(self, folder: Path, seeds: Iterable[int]) -> dict[Path, RunConfig]:
        """Its runs of these seeds, by their folders."""
        return {
            folder / f"{self.name}-{seed}": replace(
                self.config, training=replace(self.config.training, seed=seed)
            )
            for seed in seeds
        }


@dataclass(frozen=True)
class Grid:
    """An experiment at one scale."""

    arms: list[Arm]
    seeds: int
    impossible: list[str] = field(default_factory=list)
    """Arms that were wanted but have no size, and why."""

    def only(self, names: Sequence[str]) -> Grid:
        """The arms of these names. Raises UserError for an unknown or impossible one."""
        known = {arm.name: arm for arm in self.arms}
        for name in names:
            for why in self.impossible:
                if why.startswith(f"{name}: "):
                    raise UserError(why)
            if name not in known:
                raise UserError(f"unknown arm {name!r}; known: {', '.join(known)}")
        return replace(self, arms=[known[name] for name in names] or self.arms)


@dataclass(frozen=True)
class Experiment:
    """A named experiment."""

    name: str
    source: str
    """Where in the paper."""
    metrics: tuple[str, ...]
    """What its tables show, one each; published numbers are of the first."""
    build: Callable[[Scale], Grid]
    test_sequences: int | None = None
    """Test sequences a condition; None: all of a data set, and as many as `rims eval` takes of others."""
    lesions: bool = False
    """Whether runs are tested without each of their RIMs too, as `rims lesion` does."""


EXPERIMENTS: dict[str, Experiment] = {}


def register(experiment: Experiment) -> Experiment:
    """Add an experiment to :data:`EXPERIMENTS`."""
    EXPERIMENTS[experiment.name] = experiment
    return experiment


@dataclass(frozen=True)
class Setup:
    """What the arms of a grid share: all but the core."""

    task: Task
    model: ModelOptions
    training: TrainingOptions

    def arm(self, name: str, core: CoreConfig, published: dict[int, float] | None = None) -> Arm:
        config = copy.deepcopy(
            RunConfig(self.task, core, self.model, self.training)
        )  # shared with no other arm
        return Arm(name, config, published or {})

    def others(self, like: RIMConfig) -> tuple[list[Arm], list[str]]:
        """Every other recurrent core at the state size and at the parameters of the RIMs ``like``, and what
        has no such size."""
        options = MEMORY.get(measure(like, self.model.input_size, "state_size"), {})
        arms, impossible = [], []
        for name in sorted(name for name in CORES if CORES[name].recurrent and name != like.name):
            for match in get_args(Match):
                try:
                    core = matched(CORES[name](**options.get(name, {})), like, self.model.input_size, match)
                except ValueError as error:
                    impossible.append(f"{name}-{match}: {error}")
                else:
                    arms.append(self.arm(f"{name}-{match}", core))
        return arms, impossible


SMALL = {"input_key_size": 32, "input_value_size": 64, "comm_key_size": 16}
"""Attention of RIMs of 50 units or fewer rather than 100."""


V = TypeVar("V")


def sized(scale: Scale, smoke: V, small: V, paper: V) -> V:
    """What fits the sizes of the scale: "short" has the paper's."""
    return {"smoke": smoke, "small": small, "short": paper, "paper": paper}[scale]


def attention(scale: Scale) -> dict[str, int]:
    """Sizes of the RIMs' attention."""
    return sized(scale, SMALL, SMALL, {})


def budget(scale: Scale, updates: int, every: int, **options: Any) -> TrainingOptions:
    """``updates`` with a validation, at the test conditions too, ``every`` so many; a few at the smoke scale.
    Scales that end sooner than the paper's take a cosine; those of smaller sizes, the CPU."""
    shared: dict[str, Any] = {"validate_shifted": True, "threads": 1, **options}
    if scale == "smoke":
        shared |= {"updates": 4, "validate_every": 2, "checkpoint_every": 2, "validation_sequences": 16}
    else:
        shared |= {"updates": updates, "validate_every": every, "checkpoint_every": 500}
    if scale != "paper":
        shared["schedule"] = "cosine"
    if scale in ("smoke", "small"):
        shared["accelerator"] = "cpu"
    return TrainingOptions(**shared)


def rims(active: int, rims: int = 6, size: int = 600, **options: Any) -> RIMConfig:
    """``active`` of ``rims`` RIMs of ``size`` units together, with the paper's dropout and its equation 5."""
    return RIMConfig(hidden_size=size, num_rims=rims, num_active=active, **{**PAPER, **options})


def later(scale: Scale, unit: int) -> RIMConfig:
    """The sizes that an author gave later, in an answer to an issue of the released code (number 2): 510
    units, 5 RIMs, 3 active. With RIMs of ``unit`` units where the scale has fewer than the paper."""
    return rims(3, 5, sized(scale, 5 * unit, 5 * unit, 510), **attention(scale))


def unlike(arms: Iterable[Arm]) -> list[Arm]:
    """The arms without those that repeat an earlier one under another name."""
    found: list[Arm] = []
    for arm in arms:
        if all(arm.config != other.config for other in found):
            found.append(arm)
    return found
