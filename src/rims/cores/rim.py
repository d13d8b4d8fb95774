"""The RIM layer behind the Core contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from rims.cores.base import Core, CoreConfig, Inputs, register
from rims.nn import RIM, Trace


class RIMState(NamedTuple):
    """Hidden and cell state of all RIMs, ``[B, H]`` each."""

    h: Float[Tensor, "B H"]
    c: Float[Tensor, "B H"]


class RIMCore(Core):
    """One layer of :class:`rims.RIM`. The state is :class:`RIMState`, or ``h [B, H]`` with GRU dynamics."""

    def __init__(self, rim: RIM) -> None:
        super().__init__()
        if rim.num_layers != 1 or rim.bidirectional or rim.batch_first:
            raise ValueError(f"got {rim}; expected one layer, one direction, time first")
        self.rim = rim
        self.input_size = rim.input_size
        self.output_size = rim.hidden_size
        self.inputs = rim.first.inputs
        if self.inputs == "private":
            self.num_inputs = rim.num_rims
        self.disabled: tuple[int, ...] = ()
        """RIMs that are removed, for lesion studies: see :meth:`rims.RIM.forward`."""

    def initial_state(self, batch_size: int) -> RIMState | Float[Tensor, "B H"]:
        zeros = next(self.parameters()).new_zeros(batch_size, self.output_size)
        return RIMState(zeros, zeros) if self.rim.mode == "LSTM" else zeros

    def forward(
        self,
        x: Float[Tensor, "T B *S I"],
        state: RIMState | Tensor | None = None,
        reset: Bool[Tensor, "T B"] | None = None,
    ) -> tuple[Float[Tensor, "T B H"], RIMState | Tensor]:
        output, state, _ = self._run(x, state, reset, return_trace=False)
        return output, state

    @property
    def flops_per_step(self) -> int:
        """As for any core, of the step as specified: all RIMs computed. The fast path skips the dynamics of
        those that are not active."""
        backend, self.rim.backend = self.rim.backend, "reference"
        try:
            return super().flops_per_step
        finally:
            self.rim.backend = backend

    def trace(
        self,
        x: Float[Tensor, "T B *S I"],
        state: RIMState | Tensor | None = None,
        reset: Bool[Tensor, "T B"] | None = None,
    ) -> tuple[Float[Tensor, "T B H"], RIMState | Tensor, Trace]:
        """As calling the core; also says which RIM was active when, and who attended to what."""
        output, state, traces = self._run(x, state, reset, return_trace=True)
        return output, state, traces[0]

    def _run(
        self, x: Tensor, state: RIMState | Tensor | None, reset: Tensor | None, return_trace: bool
    ) -> tuple[Tensor, RIMState | Tensor, Sequence[Trace]]:
        self.check_input(x, reset)
        if state is not None:
            self.start(state, self.initial_state(x.shape[1]))
        hx: tuple[Tensor, Tensor] | Tensor | None = None
        if isinstance(state, Tensor):
            hx = state[None]
        elif state is not None:
            hx = (state.h[None], state.c[None])
        output, last, *traces = self.rim(
            x, hx, reset=reset, disabled=self.disabled, return_trace=return_trace
        )
        last = last[0] if isinstance(last, Tensor) else RIMState(last[0][0], last[1][0])
        return output, last, traces[0] if traces else []


@register
@dataclass
class RIMConfig(CoreConfig):
    """Recurrent Independent Mechanisms, one layer; sizes are the paper's."""

    name: ClassVar[str] = "rim"

    hidden_size: int = 600
    """Units of all RIMs together."""

    num_rims: int = 6
    """RIMs (k_T)."""

    num_active: int = 4
    """RIMs active at each step (k_A)."""

    cell: Literal["lstm", "gru"] = "lstm"
    """Dynamics of a RIM."""

    variant: Literal["paper", "official"] = "paper"
    """The paper's equations, or the released event-based code."""

    selection: Literal["null", "competition"] = "null"
    """Least attention on the null slot, or competition between RIMs."""

    inputs: Inputs = "vector"
    """What is read at each step: a vector; or of frames, their places as slots, or a strip by each RIM
    ("private")."""

    input_attention: bool = True
    """False: every RIM reads the input itself (needs num_active = num_rims)."""

    input_heads: int = 1
    """Heads of the input attention."""

    input_key_size: int = 64
    """Key size of a head."""

    input_value_size: int | None = None
    """Value size of a head; None: 4 * units of a RIM / heads."""

    input_dropout: float = 0.0
    """Dropout on what a RIM reads from the input (paper: 0.1)."""

    communication: bool = True
    """False: RIMs do not hear each other."""

    comm_heads: int = 4
    """Heads of the communication."""

    comm_key_size: int | None = None
    """Key size of a head; None: 32, or 16 in the official variant."""

    comm_value_size: int | None = None
    """Value size of a head; None: as the key size."""

    comm_tanh: bool = field(default=True, metadata={"formerly": False})
    """An LSTM RIM adds the tanh of what it hears, and its state stays bounded; False: the plain sum of the
    paper's equation 5, which may diverge."""

    comm_topk: int | None = None
    """RIMs that one hears a head; None: all."""

    comm_dropout: float = 0.0
    """Dropout on what a RIM hears (paper: 0.1)."""

    backend: Literal["auto", "reference", "fast"] = "auto"
    """How the sequence is run: see :class:`rims.RIM`."""

    @property
    def steadier(self) -> str:
        plain = self.communication and self.variant == "paper" and self.cell == "lstm" and not self.comm_tanh
        return "--core.comm-tanh True" if plain else ""

    def sized(self, size: int) -> RIMConfig:
        """With ``size`` units a RIM: the total is a multiple of their number."""
        return replace(self, hidden_size=size * self.num_rims)

    def build(self, input_size: int) -> RIMCore:
        return RIMCore(RIM(input_size, **vars(self)))
