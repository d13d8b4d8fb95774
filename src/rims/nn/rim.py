"""The sequence layer: called as torch.nn.LSTM is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rims.nn.cell import RIMCell
from rims.nn.checks import check_device, check_shape, split_state
from rims.nn.fast import Backend, opaque, run_sequence, why_not
from rims.nn.selection import lesion_mask
from rims.nn.sequence import How, run_cell
from rims.nn.trace import Trace


class RIM(nn.Module):
    """Recurrent Independent Mechanisms over sequences, with the calls and the behaviour of ``torch.nn.LSTM``.

    ``y, (h, c) = rim(x, (h0, c0))``, or ``y, h = rim(x, h0)`` with GRU dynamics. Shapes, with L layers, Dir
    directions (1 or 2), T steps, B rows and H = ``hidden_size``, the total over all RIMs: ``x [T, B,
    input_size]``, ``y [T, B, Dir * H]``, ``h`` and ``c`` ``[L * Dir, B, H]``; ``[B, T, ...]`` for x and y
    with ``batch_first``; no B anywhere for unbatched input. x may be a PackedSequence, and y then is one. The
    initial state is zero unless given. With ``inputs="slots"`` x is ``[T, B, S, input_size]``, with
    ``"private"`` ``[T, B, K, input_size]``. Higher layers read the whole output of the layer below as a
    vector.

    Args:
        input_size, hidden_size, num_rims, num_active: as for :class:`RIMCell`.
        num_layers: layers, each reading the output of the one below.
        bias: whether the dynamics have biases.
        batch_first: x and y are ``[B, T, ...]``; states are not.
        dropout: on the output of each layer but the last.
        bidirectional: a second layer beside each reads the sequence backwards; outputs are concatenated.
        backend: "reference" runs the cell step by step, "fast" the whole sequence as one function
            (docs/performance.md), "auto" fast where it applies. The result is the same.
        device, dtype: of the weights. **options: further options of :class:`RIMCell`: cell, variant,
        selection, inputs, heads, sizes, dropouts.

    Raises:
        ValueError: for sizes and options that do not fit together, and for inputs of the wrong shape or
            dtype.

    Example:
        >>> import torch
        >>> from rims import RIM
        >>> rim = RIM(input_size=10, hidden_size=24, num_rims=6, num_active=4)
        >>> y, (h, c) = rim(torch.randn(7, 3, 10))
        >>> y.shape, h.shape, bool((y[-1] == h[0]).all())
        (torch.Size([7, 3, 24]), torch.Size([1, 3, 24]), True)
        >>> y, (h, c), traces = rim(torch.randn(7, 3, 10), return_trace=True)
        >>> traces[0].active.shape, traces[0].active.sum(-1).unique().tolist()
        (torch.Size([7, 3, 6]), [4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_rims: int = 6,
        num_active: int = 4,
        *,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        backend: Backend = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; expected at least 1")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout is {dropout}; expected 0 <= dropout < 1")
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} has no effect with num_layers=1: it is applied between layers",
                stacklevel=2,
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = (
            bias,
            batch_first,
            dropout,
            bidirectional,
        )
        if backend not in ("auto", "reference", "fast"):
            raise ValueError(f"backend is {backend!r}; expected one of 'auto', 'reference', 'fast'")
        self.backend: Backend = backend
        self.num_directions = 2 if bidirectional else 1
        cells = []
        for layer in range(num_layers):
            size = input_size if layer == 0 else self.num_directions * hidden_size
            here = options if layer == 0 else {**options, "inputs": "vector"}
            for _ in range(self.num_directions):
                cells.append(
                    RIMCell(
                        size, hidden_size, num_rims, num_active, bias=bias, device=device, dtype=dtype, **here
                    )
                )
        self.cells = nn.ModuleList(cells)

    @property
    def first(self) -> RIMCell:
        """The cell of layer 0, forward direction."""
        cell = next(iter(self.cells))
        assert isinstance(cell, RIMCell)
        return cell

    @property
    def num_rims(self) -> int:
        """K, the number of RIMs."""
        return self.first.num_rims

    @property
    def num_active(self) -> int:
        """A, how many are active at each step."""
        return self.first.num_active

    @property
    def rim_size(self) -> int:
        """D, the units of one RIM."""
        return self.first.rim_size

    @property
    def mode(self) -> str:
        """Dynamics, "LSTM" or "GRU", as nn.RNNBase has it."""
        return self.first.cell.upper()

    def flatten_parameters(self) -> None:
        """Does nothing; code written for nn.LSTM may call it."""

    def reset_parameters(self) -> None:
        """Draw fresh weights."""
        for cell in self.cells:
            cell.reset_parameters()  # type: ignore[operator]

    def forward(
        self,
        x: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | Tensor | None = None,
        *,
        reset: Tensor | None = None,
        mask: Tensor | None = None,
        disabled: Sequence[int] | None = None,
        return_trace: bool = False,
    ) -> Any:
        """Run the sequence.

        Args:
            x: the input, in any of the shapes above.
            hx: initial state, ``(h0, c0)``, or ``h0`` with GRU dynamics.
            reset: bool ``[T, B]`` (``[B, T]`` with batch_first, ``[T]`` unbatched): where true, that row's
                state is set to zero before step t. Backwards, the state is set to zero between t and t - 1:
                nothing crosses the boundary in either direction.
            mask: bool, the shape of x less its last dimension: which slots or private inputs are present.
            disabled: indices of RIMs that are removed from every layer and direction: never active, heard by
                nobody, their state left as it is.
            return_trace: also return a list of :class:`Trace`, one for each layer and direction, in the order
                of the states.

        Returns:
            ``y, state`` or ``y, state, traces``.
        """
        if isinstance(x, PackedSequence):
            if mask is not None:
                raise ValueError("mask is given; expected none with a PackedSequence")
            padded, lengths = pad_packed_sequence(x)
            steps = torch.arange(len(padded))[:, None]
            valid = (steps < lengths).to(padded.device)
            start = self._checked(padded, hx, reset, None, "TB")
            y, state, traces = self._run(padded, start, reset, None, valid, disabled, return_trace)
            if x.sorted_indices is not None:
                y, lengths = y[:, x.sorted_indices], lengths[x.sorted_indices.cpu()]
            packed = pack_padded_sequence(y, lengths)
            output: Any = PackedSequence(packed.data, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
            return (output, state, traces) if return_trace else (output, state)

        inputs = self.first.inputs
        batched_dims = 3 if inputs == "vector" else 4
        if x.dim() not in (batched_dims - 1, batched_dims):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; expected {batched_dims} dimensions for "
                f"inputs={inputs!r}, or {batched_dims - 1} for a single sequence"
            )
        unbatched = x.dim() == batched_dims - 1
        start = self._checked(x, hx, reset, mask, "T" if unbatched else "BT" if self.batch_first else "TB")
        if unbatched:
            x, reset, mask = (None if t is None else t.unsqueeze(1) for t in (x, reset, mask))  # type: ignore[assignment]
            start = start[0].unsqueeze(1), start[1].unsqueeze(1)
        elif self.batch_first:
            x, reset, mask = (None if t is None else t.transpose(0, 1) for t in (x, reset, mask))  # type: ignore[assignment]
        assert isinstance(x, Tensor)
        y, state, traces = self._run(x, start, reset, mask, None, disabled, return_trace)
        if unbatched:
            y = y.squeeze(1)
            state = (
                state.squeeze(1) if isinstance(state, Tensor) else tuple(part.squeeze(1) for part in state)
            )
        elif self.batch_first:
            y = y.transpose(0, 1)
        return (y, state, traces) if return_trace else (y, state)

    def _checked(
        self,
        x: Tensor,
        hx: tuple[Tensor, Tensor] | Tensor | None,
        reset: Tensor | None,
        mask: Tensor | None,
        layout: str,
    ) -> tuple[Tensor, Tensor]:
        """The initial h and c, ``[L, B, H]`` or ``[L, H]``. Raises ValueError for arguments that do not fit,
        with shapes as they were given: the first dimensions are those that ``layout`` names."""
        first = self.first
        first.check_input(x, layout, mask)
        sizes = dict(zip(layout, x.shape))
        if not sizes["T"]:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected at least one time step")
        leading = list(sizes.values())
        if reset is not None and (list(reset.shape) != leading or reset.dtype != torch.bool):
            raise ValueError(f"reset has shape {tuple(reset.shape)}, {reset.dtype}; expected bool {leading}")
        rows = (sizes["B"],) if "B" in sizes else ()
        shape = (self.num_layers * self.num_directions, *rows, self.hidden_size)
        if hx is None:
            h0 = c0 = x.new_zeros(shape, dtype=first.dynamics.weight_hh.dtype)
        else:
            h0, c0 = split_state(hx, first.cell, "h0", "c0")
        check_shape(shape, h0=h0, c0=c0)
        check_device(x.device, reset=reset, h0=h0, c0=c0)
        first.check_state_dtype(h0=h0, c0=c0)
        return h0, c0

    def _run(
        self,
        x: Tensor,
        state: tuple[Tensor, Tensor],
        reset: Tensor | None,
        mask: Tensor | None,
        valid: Tensor | None,
        disabled: Sequence[int] | None,
        return_trace: bool,
    ) -> tuple[Tensor, Any, list[Trace]]:
        """All layers and directions over ``x [T, B, ...]``; rows stand still where ``valid [T, B]`` is
        false."""
        first = self.first
        h0, c0 = (part.unbind() for part in state)
        removed = lesion_mask(disabled, first.num_rims, x.device)
        last_h, last_c, traces = [], [], []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(self.num_directions):
                index = layer * self.num_directions + direction
                cell = self.cells[index]
                assert isinstance(cell, RIMCell)
                how = How(reset, mask if layer == 0 else None, valid, removed, direction == 1, return_trace)
                call = cell, x, h0[index], c0[index], how
                y, h, c, trace = self._runner(*call)(*call)
                outputs.append(y)
                last_h.append(h)
                last_c.append(c)
                if trace is not None:
                    traces.append(trace)
            x = torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]
            if layer < self.num_layers - 1:
                x = nn.functional.dropout(x, self.dropout, self.training)
        if len(last_h) == 1:  # views: of a single step's time two copies are a part
            h, c = last_h[0][None], last_c[0][None]
        else:
            h, c = torch.stack(last_h), torch.stack(last_c)
        return x, (h, c) if first.cell == "lstm" else h, traces

    def _runner(self, cell: RIMCell, x: Tensor, h: Tensor, c: Tensor, how: How) -> Any:
        """What runs the sequence, by ``backend``."""
        if self.backend == "reference":
            return run_cell
        if torch.compiler.is_compiling() and opaque.applies(cell, x, h, c, how):
            return opaque.run_sequence
        obstacle = why_not(cell, x, h, c)
        if obstacle is None:
            return run_sequence
        if self.backend == "fast":
            raise ValueError(f'backend is "fast", which does not cover {obstacle}; expected "auto"')
        return run_cell

    def extra_repr(self) -> str:
        text = self.first.extra_repr()
        for name, default in (
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0.0),
            ("bidirectional", False),
        ):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text
