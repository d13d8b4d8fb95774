"""Which RIMs are active.

Selection is a hard choice: no gradient passes through it, only through the attention weights of the RIMs that
were chosen. A RIM that was never active keeps its zero state, hence the same attention on null and
on the input; it is chosen as soon as fewer than ``num_active`` others prefer the input to null. That is all
that keeps RIMs in use.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def select_active(
    penalty: Float[Tensor, "B K"], num_active: int, disabled: Bool[Tensor, " K"] | None = None
) -> Bool[Tensor, "B K"]:
    """The ``num_active`` RIMs of each row with the least ``penalty``.

    Exactly ``num_active`` are chosen (or all that are not ``disabled``, where those are fewer). Ties go to
    the lower index, and NaN comes last: a RIM's rank is the number of those before it, which is the same on
    every device, while ``topk`` breaks ties differently from device to device, and at zero state all RIMs
    tie.

    ``penalty`` must be at least float32: early in training the RIMs differ by 1e-4 around 0.5, which half
    precision cannot tell apart.
    """
    penalty = penalty.masked_fill(penalty.isnan(), torch.inf)
    own, other = penalty[:, :, None], penalty[:, None, :]
    index = torch.arange(penalty.shape[1], device=penalty.device)
    before = (other < own) | ((other == own) & (index < index[:, None]))
    if disabled is None:
        return before.sum(dim=-1) < num_active
    return ((before & ~disabled).sum(dim=-1) < num_active) & ~disabled


def lesion_mask(
    disabled: Sequence[int] | None, num_rims: int, device: torch.device
) -> Bool[Tensor, " K"] | None:
    """True for the RIMs named in ``disabled``, which may be an array or a tensor too; None where it names
    none.

    Raises ValueError for what is no index of a RIM, a mask for one, and when no RIM would be left.
    """
    if disabled is None:
        return None
    disabled = disabled.tolist() if hasattr(disabled, "tolist") else disabled
    if not isinstance(disabled, Collection):
        raise ValueError(f"disabled is {disabled!r}; expected the indices of RIMs, as [{disabled!r}]")
    if not disabled:
        return None
    for index in disabled:
        if isinstance(index, bool):  # as a number, True would remove RIM 1
            raise ValueError(f"disabled names RIM {index}; expected indices of RIMs, not a mask")
        if not 0 <= index < num_rims:
            raise ValueError(f"disabled names RIM {index}; expected 0 to {num_rims - 1}")
    if len(set(disabled)) == num_rims:
        raise ValueError(f"disabled names all {num_rims} RIMs; expected at least one to be left")
    return torch.tensor([k in disabled for k in range(num_rims)], device=device)
