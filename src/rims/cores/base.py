"""The Core contract: what training, evaluation, reinforcement learning, tests and reports may expect of any
recurrent system.

Shapes: T time, B batch, I input size, O output size.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

State = Any
"""A tensor or a NamedTuple of tensors, every one with the batch first; nothing else."""

Inputs = Literal["vector", "slots", "private"]
"""What a core reads at each step: a vector; any number of slots, such as objects or places; or, of the parts
that it consists of, an input for each alone."""

S = TypeVar("S")
C = TypeVar("C", bound="CoreConfig")


class Core(nn.Module):
    """A recurrent system: ``output, state = core(x, state=None, reset=None)``.

    * ``x`` is ``[T, B, input_size]``, ``output`` is ``[T, B, output_size]``. For cores whose ``inputs`` are
      "slots" or "private", x is ``[T, B, S, input_size]``.
    * ``state`` is the state before step 0; ``None`` means ``initial_state(B)``. The returned state is the one
      after step T-1, so stepping one by one, or in chunks of any length, equals the whole sequence.
    * ``reset`` is ``[T, B]`` bool: where true, that row's state is re-initialised *before* step t.
    * Rows of the batch never influence each other.
    """

    input_size: int
    output_size: int

    inputs: Inputs = "vector"
    num_inputs: int = 1
    """S: private inputs, as the core has them; slots, as ``flops_per_step`` counts them, for calls may come
    with any number. A model sets that of its encoder."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state of ``batch_size`` fresh rows, on the core's device and in its dtype."""

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "T B *S I"],
        state: State | None = None,
        reset: Bool[Tensor, "T B"] | None = None,
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """Run the sequence. Raises ValueError, saying what was given and what is expected, for wrong
        shapes."""

    def check_input(self, x: Tensor, reset: Tensor | None = None) -> None:
        """Refuse an input that the contract does not allow."""
        between = {"vector": "", "slots": "slots, ", "private": f"{self.num_inputs}, "}[self.inputs]
        wrong = x.dim() != (4 if between else 3) or x.shape[-1] != self.input_size
        if wrong or (self.inputs == "private" and x.shape[2] != self.num_inputs):
            raise ValueError(f"x has shape {tuple(x.shape)}; expected [T, B, {between}{self.input_size}]")
        if not len(x):
            raise ValueError(f"x has shape {tuple(x.shape)}; expected at least one time step")
        if reset is not None and (reset.shape != x.shape[:2] or reset.dtype != torch.bool):
            raise ValueError(
                f"reset has shape {tuple(reset.shape)}, {reset.dtype}; expected bool {list(x.shape[:2])}"
            )

    def start(self, state: State | None, initial: State) -> State:
        """The state before step 0: ``state``, or ``initial`` if there is none. Raises ValueError for one of
        another kind or shape, which might be broadcast unseen."""
        if state is None:
            return initial
        if not isinstance(state, Tensor if isinstance(initial, Tensor) else type(initial)):
            raise ValueError(f"state is a {type(state).__name__}; expected a {type(initial).__name__}")
        for name, part, like in zip(names(initial), tensors(state), tensors(initial)):
            if part.shape != like.shape:
                raise ValueError(f"{name} has shape {tuple(part.shape)}; expected {tuple(like.shape)}")
        return state

    @property
    def num_parameters(self) -> int:
        """Trainable parameters. All of them are live: the contract tests require a gradient for each."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def state_size(self) -> int:
        """Numbers that one row carries from step to step."""
        return sum(t[0].numel() for t in tensors(self.initial_state(1)))

    @property
    def flops_per_step(self) -> int:
        """Floating-point operations of the matrix products of one forward step of one row (a multiply-add is
        two), with ``num_inputs`` slots or private inputs where the core reads such."""
        # In float64 nn.LSTM runs as matrix products, which the counter sees; in float32 as one fused call.
        core = copy.deepcopy(self).to("cpu", torch.float64).eval()
        several = () if self.inputs == "vector" else (self.num_inputs,)
        x = torch.zeros(1, 1, *several, self.input_size, dtype=torch.float64)
        state = map_state(Tensor.detach, core.typical_state(1))
        # Nor does the counter see the fused attention of the CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            core(x, state)
        return counter.get_total_flops()

    def typical_state(self, batch_size: int) -> State:
        """A state from which a step costs what it costs in the long run."""
        return self.initial_state(batch_size)


def tensors(state: State) -> tuple[Tensor, ...]:
    """The tensors of a state."""
    return (state,) if isinstance(state, Tensor) else tuple(state)


def names(state: State) -> tuple[str, ...]:
    """What the tensors of a state are called."""
    return ("state",) if isinstance(state, Tensor) else tuple(f"state.{name}" for name in state._fields)


def map_state(function: Any, *states: S) -> S:
    """Apply ``function`` to corresponding tensors of states of one kind; the result is of that kind."""
    first: Any = states[0]
    if isinstance(first, Tensor):
        return function(*states)
    return type(first)(*(function(*parts) for parts in zip(*states)))


def reset_state(state: S, initial: S, reset: Bool[Tensor, " B"]) -> S:
    """``initial`` in the rows where ``reset`` is true, ``state`` elsewhere.

    Selected with ``where``, never multiplied: a state that holds inf or NaN is cleared as well.
    """
    return map_state(
        lambda now, fresh: torch.where(reset.view(-1, *[1] * (now.dim() - 1)), fresh, now), state, initial
    )


@dataclass
class CoreConfig:
    """The options of a core, as they stand in a run folder and on the command line. Subclasses add fields."""

    name: ClassVar[str]

    size: ClassVar[str] = "hidden_size"
    """The integer option that fair comparisons vary (see :meth:`sized` and rims.cores.sizes)."""

    recurrent: ClassVar[bool] = True
    """Whether the core carries anything from step to step. One that does not is a control, and no size makes
    it comparable in state."""

    @property
    def inputs(self) -> Inputs:
        """What the core reads; an option of those cores that can read different things."""
        return "vector"

    @property
    def steadier(self) -> str:
        """An option with which training may no longer diverge, as the command line spells it; "" where there
        is none."""
        return ""

    def sized(self: C, size: int) -> C:
        """This config at a size of 1, 2, ...: each is possible, and parameters and state size grow with it.

        The size is the value of the option named by :attr:`size`, unless a core says otherwise.
        """
        return dataclasses.replace(self, **{self.size: size})

    def build(self, input_size: int) -> Core:
        """Make the core. Raises ValueError for options that do not fit together."""
        raise NotImplementedError


CORES: dict[str, type[CoreConfig]] = {}
"""Every registered core's config by its name; a new core joins training, tests and reports by being
registered."""


def register(config: type[CoreConfig]) -> type[CoreConfig]:
    """Class decorator: add a config to :data:`CORES` under its ``name``."""
    if config.name in CORES:
        raise ValueError(f"a core named {config.name!r} is registered already")
    CORES[config.name] = config
    return config
