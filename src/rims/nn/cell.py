"""One time step of a layer of Recurrent Independent Mechanisms: the specification that every faster path is
tested against.

Equation numbers are those of arXiv 1909.10893v6. Shapes: B batch, K RIMs (k_T), A active RIMs (k_A), D units
of a RIM, I input size, S input slots, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rims.nn.attention import Communication, InputAttention, Read
from rims.nn.checks import check_choice, check_device, check_positive, check_shape, split_state
from rims.nn.dynamics import GRUDynamics, LSTMDynamics
from rims.nn.selection import lesion_mask, select_active


class StepTrace(NamedTuple):
    """What happened in one step."""

    active: Bool[Tensor, "B K"]
    """Which RIMs were active."""
    input_attention: Float[Tensor, "B H K S+1"] | None
    """Attention of every RIM, active or not, on the null slot (index 0) and the input's slots; None without
    input attention."""
    communication: Float[Tensor, "B H K K"] | None
    """How much of each RIM (last) each active RIM heard; zero rows for inactive RIMs; None without
    communication."""


class RIMCell(nn.Module):
    """Recurrent Independent Mechanisms, one step: ``h, c = cell(x, (h, c))``, or ``h = cell(x, h)`` with GRU
    dynamics.

    Used as ``nn.LSTMCell``, ``nn.GRUCell``. A step has the four stages of the paper: every RIM reads from the
    input by attention (2.2), the ``num_active`` that care most become active (2.2), those update their state
    by their own LSTM or GRU (2.3) and then read from all RIMs (2.4). All others keep hidden and cell state
    bit for bit, and their gradient passes through untouched.

    Args:
        input_size: I, the size of the input, or of each slot.
        hidden_size: units of all RIMs together (the paper's 600); a RIM has ``hidden_size / num_rims``.
        num_rims: K, the number of RIMs (the paper's k_T).
        num_active: A, how many are active at each step (k_A).
        cell: dynamics, "lstm" or "gru".
        variant: "paper" (v6: inactive RIMs are heard with the state they keep; the attention's result is
            projected, bounded and added) or "official" (the released event-based code: all RIMs
            compute a candidate state and are heard with it, no gradient reaches an inactive candidate, the
            result is gated). With GRU dynamics the paper variant writes what was heard through the update
            gate and a tanh, see :meth:`_communicate`.
        selection: "null" (least attention on the null slot, v6) or "competition" (RIMs compete for each slot,
            ICLR text).
        inputs: "vector" ``[B, I]``, "slots" ``[B, S, I]`` (objects or image positions; with an optional mask)
            or "private" ``[B, K, I]`` (RIM k sees input k alone).
        bias: whether the dynamics have biases.
        input_attention: False switches it off: every RIM reads x itself; all must be active (the ablation of
            Table 4).
        input_heads: heads of the input attention. 1, as in D.1, D.3 and all released code; Table 3 alone says
            4.
        input_key_size: key and query size of a head (Table 3: 64).
        input_value_size: value size of a head; default 4 * D / input_heads, so that a RIM reads 4 * D numbers
            (Table 3).
        communication: False switches it off (the ablation of Table 4).
        comm_heads: heads of the communication (Table 3: 4).
        comm_key_size: key and query size of a head; default 32 (Table 3), or the released code's 16 in the
            official variant.
        comm_value_size: value size of a head; default as ``comm_key_size``.
        comm_tanh: an LSTM RIM of the paper variant adds the tanh of what it hears, and its state stays
            within (-2, 2). False for the plain sum of equation 5, which may grow without bound and at the
            paper's sizes mostly does, see :meth:`_communicate`. A GRU RIM always adds a tanh, and so does the
            official variant.
        comm_topk: hear only this many RIMs a head; None hears all (2.4 calls sparse communication
            orthogonal).
        input_dropout, comm_dropout: on what was read from the input, and on the projected communication
            (Table 3: 0.1 each). 0 by default, as nn.LSTM's.

    Raises:
        ValueError: for sizes and options that do not fit together.

    Example:
        >>> import torch
        >>> from rims import RIMCell
        >>> cell = RIMCell(input_size=10, hidden_size=24, num_rims=6, num_active=4)
        >>> h = c = torch.zeros(3, 24)
        >>> h, c = cell(torch.randn(3, 10), (h, c))
        >>> h.shape, (h.view(3, 6, 4) != 0).any(-1).sum(-1).tolist()
        (torch.Size([3, 24]), [4, 4, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_rims: int = 6,
        num_active: int = 4,
        *,
        cell: Literal["lstm", "gru"] = "lstm",
        variant: Literal["paper", "official"] = "paper",
        selection: Literal["null", "competition"] = "null",
        inputs: Literal["vector", "slots", "private"] = "vector",
        bias: bool = True,
        input_attention: bool = True,
        input_heads: int = 1,
        input_key_size: int = 64,
        input_value_size: int | None = None,
        communication: bool = True,
        comm_heads: int = 4,
        comm_key_size: int | None = None,
        comm_value_size: int | None = None,
        comm_tanh: bool = True,
        comm_topk: int | None = None,
        input_dropout: float = 0.0,
        comm_dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("cell", cell, ("lstm", "gru"))
        check_choice("variant", variant, ("paper", "official"))
        check_choice("selection", selection, ("null", "competition"))
        check_choice("inputs", inputs, ("vector", "slots", "private"))
        check_positive(
            input_size=input_size,
            hidden_size=hidden_size,
            num_rims=num_rims,
            num_active=num_active,
            input_heads=input_heads,
            input_key_size=input_key_size,
            comm_heads=comm_heads,
        )
        if num_active > num_rims:
            raise ValueError(f"num_active is {num_active}; expected at most num_rims, which is {num_rims}")
        if hidden_size % num_rims:
            raise ValueError(
                f"hidden_size (of all RIMs) is {hidden_size}; expected a multiple of num_rims={num_rims}"
            )
        if not input_attention and (num_active != num_rims or inputs == "slots"):
            raise ValueError(
                f"input_attention is False with num_active={num_active} of {num_rims}, inputs={inputs!r}; "
                "expected num_active = num_rims (nothing ranks them) and no slots (nothing chooses)"
            )
        rim_size = hidden_size // num_rims
        if input_value_size is None:
            if 4 * rim_size % input_heads:
                raise ValueError(
                    f"input_heads is {input_heads}; expected a divisor of {4 * rim_size}, or input_value_size"
                )
            input_value_size = 4 * rim_size // input_heads
        comm_key_size = (16 if variant == "official" else 32) if comm_key_size is None else comm_key_size
        comm_value_size = comm_key_size if comm_value_size is None else comm_value_size
        check_positive(
            input_value_size=input_value_size, comm_key_size=comm_key_size, comm_value_size=comm_value_size
        )
        if comm_topk is not None and not 1 <= comm_topk <= num_rims:
            raise ValueError(
                f"comm_topk is {comm_topk}; expected 1 to num_rims, which is {num_rims}, or None"
            )
        for name, p in (("input_dropout", input_dropout), ("comm_dropout", comm_dropout)):
            if not 0.0 <= p < 1.0:
                raise ValueError(f"{name} is {p}; expected 0 <= {name} < 1")

        self.input_size, self.hidden_size, self.rim_size = input_size, hidden_size, rim_size
        self.num_rims, self.num_active = num_rims, num_active
        self.cell, self.variant, self.selection, self.inputs = cell, variant, selection, inputs
        self.squash = communication and variant == "paper" and (comm_tanh or cell == "gru")
        self.input_attention = (
            InputAttention(
                input_size,
                rim_size,
                num_rims,
                num_active,
                heads=input_heads,
                key_size=input_key_size,
                value_size=input_value_size,
                selection=selection,
                private=inputs == "private",
                device=device,
                dtype=dtype,
            )
            if input_attention
            else None
        )
        self.input_dropout = nn.Dropout(input_dropout)
        self.dynamics = (LSTMDynamics if cell == "lstm" else GRUDynamics)(
            input_heads * input_value_size if input_attention else input_size,
            rim_size,
            num_rims,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.communication = (
            Communication(
                rim_size,
                num_rims,
                heads=comm_heads,
                key_size=comm_key_size,
                value_size=comm_value_size,
                topk=comm_topk,
                gated=variant == "official",
                dropout=comm_dropout,
                device=device,
                dtype=dtype,
            )
            if communication
            else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights.

        Paper variant (the text names no initialisation): U(-b, b) with b = 1/sqrt(D) for the dynamics, what
        an nn.LSTM of D units has, and 1/sqrt(rows) for the attention, what nn.Linear has. Official: as
        released, b = 1/sqrt(K * D) and 0.01 * N(0, 1).
        """
        official = self.variant == "official"
        bound = 1 / math.sqrt(self.hidden_size if official else self.rim_size)
        for weight in self.dynamics.parameters():
            nn.init.uniform_(weight, -bound, bound)
        for attention in (self.input_attention, self.communication):
            if attention is None:
                continue
            for weight in (attention.query, attention.key, attention.value):
                if official:
                    nn.init.normal_(weight, std=0.01)
                else:
                    nn.init.uniform_(
                        weight, -1 / math.sqrt(weight.shape[-2]), 1 / math.sqrt(weight.shape[-2])
                    )
        if self.communication is not None:
            self.communication.out.reset_parameters()
            if self.communication.gate is not None:
                self.communication.gate.reset_parameters()

    def forward(
        self,
        x: Tensor,
        hx: tuple[Tensor, Tensor] | Tensor | None = None,
        *,
        mask: Tensor | None = None,
        disabled: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor] | Tensor:
        """One step.

        Args:
            x: ``[B, I]``, ``[B, S, I]`` or ``[B, K, I]``, by the cell's ``inputs``; without B for a single
                row, and so all else.
            hx: ``(h, c)``, each ``[B, hidden_size]``, or ``h`` with GRU dynamics; zeros by default.
            mask: bool, the shape of x less its last dimension: with slots or private inputs, which of them
                are present.
            disabled: indices of RIMs that are removed: never active, heard by nobody, their state left as it
                is.

        Returns:
            The next state, in the form of ``hx``.
        """
        unbatched = x.dim() == (1 if self.inputs == "vector" else 2)
        self.check_input(x, "" if unbatched else "B", mask)
        shape = (self.hidden_size,) if unbatched else (x.shape[0], self.hidden_size)
        if hx is None:
            h = c = x.new_zeros(shape, dtype=self.dynamics.weight_hh.dtype)
        else:
            h, c = split_state(hx, self.cell, "h", "c")
        check_device(x.device, h=h, c=c)
        self.check_state_dtype(h=h, c=c)
        check_shape(shape, h=h, c=c)
        if unbatched:
            x, h, c, mask = x[None], h[None], c[None], None if mask is None else mask[None]
        h, c, _ = self.step(x, h, c, mask, lesion_mask(disabled, self.num_rims, x.device))
        if unbatched:
            h, c = h[0], c[0]
        return (h, c) if self.cell == "lstm" else h

    def step(
        self,
        x: Tensor,
        h: Float[Tensor, "B KD"],
        c: Float[Tensor, "B KD"],
        mask: Bool[Tensor, "B S"] | None = None,
        disabled: Bool[Tensor, " K"] | None = None,
    ) -> tuple[Float[Tensor, "B KD"], Float[Tensor, "B KD"], StepTrace]:
        """The four stages, on checked arguments; with GRU dynamics ``c`` is passed through. Also says what
        happened."""
        h_old = h.unflatten(-1, (self.num_rims, self.rim_size))
        c_old = c.unflatten(-1, (self.num_rims, self.rim_size))

        # 1. What in the input concerns each RIM? (2.2, equation 1)
        read = self._read(x, h_old, mask, disabled)

        # 2. Those that care most are active. (2.2)
        active = select_active(read.penalty, self.num_active, disabled)
        is_active = active[..., None]

        # 3. They move by their own dynamics. (2.3, equation 3)
        u = self.input_dropout(read.values)
        if isinstance(self.dynamics, LSTMDynamics):
            h_new, c_new = self.dynamics(u, h_old, c_old)
            write = None
        else:
            h_new, write = self.dynamics(u, h_old)
            c_new = c_old

        # 4. They read from all RIMs. (2.4, equations 4 and 5)
        h_new, heard = self._communicate(h_new, h_old, write, is_active, disabled)

        # All others keep their state.
        h = torch.where(is_active, h_new.to(h.dtype), h_old).flatten(1)
        c = torch.where(is_active, c_new.to(c.dtype), c_old).flatten(1)
        return h, c, StepTrace(active, None if self.input_attention is None else read.attention, heard)

    def _read(
        self, x: Tensor, h: Float[Tensor, "B K D"], mask: Tensor | None, disabled: Tensor | None
    ) -> Read:
        slots = x[:, None] if self.inputs == "vector" else x
        if self.input_attention is not None:
            return self.input_attention(slots, h, mask, disabled)
        if mask is not None:
            slots = slots.masked_fill(~mask[..., None], 0.0)
        every_rim = slots.expand(-1, self.num_rims, -1)
        tie = h.new_zeros(h.shape[:2], dtype=torch.float32)
        return Read(every_rim, tie[:, None, :, None], tie)

    def _communicate(
        self,
        h_new: Float[Tensor, "B K D"],
        h_old: Float[Tensor, "B K D"],
        write: Float[Tensor, "B K D"] | None,
        is_active: Bool[Tensor, "B K 1"],
        disabled: Tensor | None,
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B H K K"] | None]:
        """Add to each state what its RIM hears.

        Paper variant: an inactive RIM is heard with the state it keeps. Official variant: with its candidate,
        which it will discard, and no gradient reaches that candidate.

        A GRU's hidden state is its own memory, so anything added to it piles up over time: the plain residual
        of equation 5 grew to 2e6 within 128 steps. In the paper variant a GRU RIM therefore writes as a GRU
        writes everything, through its update gate and a
        tanh: h = z * h + (1 - z) * (n + tanh(out)), which stays within max(2, |h_0|) for any weights.

        An LSTM's hidden state is made anew from its cell state whenever its RIM is active, and takes the
        plain residual with ``comm_tanh=False``. That is not bounded either: a RIM that rests is heard with
        the sum that it keeps, so sums build on sums, and large weights let them grow; trained at the paper's
        sizes it mostly diverges (docs/log.md). The default is therefore h~ + tanh(out), within
        max(2, |h_0|).
        """
        if self.communication is None:
            return h_new, None
        if self.variant == "paper":
            out, attention = self.communication(torch.where(is_active, h_new, h_old), disabled)
            if self.squash:
                out = torch.tanh(out)
            if write is not None:
                out = write * out
        else:
            out, attention = self.communication(torch.where(is_active, h_new, h_new.detach()), disabled)
        return h_new + out, torch.where(is_active[:, None], attention, 0.0)

    def check_input(self, x: Tensor, leading: str, mask: Tensor | None = None) -> None:
        """Raise ValueError unless ``x`` is ``[..., I]`` after as many dimensions as ``leading`` has letters,
        their names (with slots ``[..., S, I]``), in the cell's dtype and on its device."""
        dims = len(leading) + (1 if self.inputs == "vector" else 2)
        wrong = x.dim() != dims or x.shape[-1] != self.input_size
        if wrong or (self.inputs == "private" and x.shape[-2] != self.num_rims):
            expected = {
                "vector": f"{self.input_size}]",
                "slots": f"slots, {self.input_size}]",
                "private": f"{self.num_rims}, {self.input_size}]",
            }[self.inputs]
            before = "[" + "".join(f"{name}, " for name in leading)
            raise ValueError(
                f'x has shape {tuple(x.shape)}; expected {before}{expected} for inputs="{self.inputs}"'
            )
        check_device(self.dynamics.weight_hh.device, x=x, mask=mask)
        dtype = self.dynamics.weight_hh.dtype
        if x.dtype != dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
            raise ValueError(f"x has dtype {x.dtype}; expected the weights' {dtype}")
        if mask is None:
            return
        if self.inputs == "vector":
            raise ValueError('mask is given; expected none for inputs="vector"')
        if mask.shape != x.shape[:-1] or mask.dtype != torch.bool:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}, {mask.dtype}; expected bool {list(x.shape[:-1])}"
            )

    def check_state_dtype(self, **parts: Tensor) -> None:
        """Raise ValueError unless a state has the weights' dtype; any, under autocast."""
        dtype = self.dynamics.weight_hh.dtype
        for name, part in parts.items():
            if part.dtype != dtype and not torch.is_autocast_enabled(part.device.type):
                raise ValueError(f"{name} has dtype {part.dtype}; expected the weights' {dtype}")

    def extra_repr(self) -> str:
        text = (
            f"{self.input_size}, {self.hidden_size}, num_rims={self.num_rims}, num_active={self.num_active}"
        )
        for name, default in (
            ("cell", "lstm"),
            ("variant", "paper"),
            ("selection", "null"),
            ("inputs", "vector"),
        ):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)!r}"
        return text
