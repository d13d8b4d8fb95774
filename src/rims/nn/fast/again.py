"""A call once more, by the reference, for gradients that are themselves to be differentiated or mapped over.

The backward passes written by hand leave autograd no graph of what they did. With ``create_graph=True`` their
results would be taken for constants, and a penalty on them would be left out in silence; with
``is_grads_batched=True`` they would be given tensors without memory. There, gradients are autograd's, through
the steps of the cell.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rims.nn.cell import RIMCell
from rims.nn.fast.passes import Weights
from rims.nn.sequence import How, run_cell


@dataclass
class Again:
    """What such a call takes, apart from the tensors that gradients reach."""

    cell: RIMCell
    how: How
    product_dtype: torch.dtype
    """Not the weights' under autocast."""
    input_keep: Tensor | None
    """``[T, ...]``: what dropout kept of what the RIMs read, times ``input_scale``."""
    input_scale: float
    comm_keep: Tensor | None
    """``[T, ...]``: what it kept of what they heard, times ``comm_scale``."""
    comm_scale: float

    def run(self, x: Tensor, h: Tensor, c: Tensor, *weights: Tensor | None) -> tuple[Tensor | None, ...]:
        """All states, the last h and c, and the parts of a trace, as the fast paths have them."""
        own = {id(old): new for old, new in zip(Weights.of(self.cell).tensors(), weights) if old is not None}
        cell = copy.deepcopy(self.cell, own)  # the same modules around the given weights
        order = range(len(x))[:: -1 if self.how.reverse else 1]
        cell.input_dropout = Kept(self.input_keep, self.input_scale, order)  # type: ignore[assignment]
        if cell.communication is not None:
            cell.communication.dropout = Kept(self.comm_keep, self.comm_scale, order)  # type: ignore[assignment]
        if cell.inputs == "vector" and x.dim() == 4:
            x = x[:, :, 0]
        autocast = self.product_dtype != h.dtype
        with torch.autocast(x.device.type, self.product_dtype if autocast else None, enabled=autocast):
            *outputs, trace = run_cell(cell, x, h, c, self.how)
        return *outputs, *(trace or (None, None, None))


class Kept(nn.Module):
    """Dropout of the next step, as it was drawn."""

    def __init__(self, keep: Tensor | None, scale: float, order: range) -> None:
        super().__init__()
        self.keep, self.scale, self.order = keep, scale, iter(order)

    def forward(self, values: Tensor) -> Tensor:
        if self.keep is None:
            return values
        return values * self.keep[next(self.order)].view_as(values) * self.scale


def wanted(grads: Sequence[Tensor | None]) -> bool:
    """Whether the backward pass that is given ``grads`` has to be autograd's."""
    return torch.is_grad_enabled() or not all(g is None or torch._C._has_storage(g) for g in grads)


def gradients(
    again: Again | None,
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of x, h, c and the weights, those that are ``needed``, from those of what :meth:`Again.run`
    gives."""
    assert again is not None, "a gradient of a gradient of a call that cannot be repeated"
    with torch.enable_grad():
        own = [t if t is None else t.view_as(t) for t in inputs]  # a tensor may be given as h and as c
        outputs = again.run(*own)  # type: ignore[arg-type]
    pairs = [(o, g) for o, g in zip(outputs, grads) if o is not None and g is not None and o.requires_grad]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in pairs],
            [t for t, want in zip(own, needed) if want and t is not None],
            [g for _, g in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return [next(found) if want and t is not None else None for t, want in zip(own, needed)]
