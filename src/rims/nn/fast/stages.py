"""What happens between the matrix products, forwards and backwards: pure functions of rows.

Shapes: N rows (active RIMs of all batch elements), D units of a RIM, H heads, S slots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rims.nn.attention import competition_attention, null_attention


def tanh_(x: Tensor) -> Tensor:
    """In place, as 2 sigmoid(2x) - 1: torch's sigmoid is four times as fast as its tanh on a CPU. The
    absolute error stays at the rounding of numbers near 1."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)


def lstm(sums: Tensor, c: Tensor, tanh_c: Tensor) -> tuple[Tensor, Tensor]:
    """Gates and next state from their ``sums [N, 4D]`` and ``c [N, D]``; sums become the gates in place, and
    ``tanh_c [N, D]`` the tanh of the new cell state. Returns the new h and c."""
    size = c.shape[1]
    i, f, g, o = sums.split(size, dim=1)
    g.mul_(2)
    sums.sigmoid_()
    g.mul_(2).sub_(1)  # tanh, see above
    c = (f * c).addcmul_(i, g)
    return o * tanh_(tanh_c.copy_(c)), c


def lstm_backward(gates: Tensor, c: Tensor, tanh_c: Tensor, dh: Tensor, dc: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the sums ``[N, 4D]`` and of the old ``c``, from those of the new ``h`` and ``c``."""
    size = c.shape[1]
    i, f, g, o = gates.split(size, dim=1)
    dsums = torch.empty_like(gates)
    di, df, dg, do = dsums.split(size, dim=1)
    torch.mul(dh, tanh_c, out=do)
    dc = dc + torch.ops.aten.tanh_backward(dh * o, tanh_c)
    torch.mul(dc, g, out=di)
    torch.mul(dc, c, out=df)
    torch.ops.aten.tanh_backward(dc * i, g, grad_input=dg)
    input_forget = dsums[:, : 2 * size]
    torch.ops.aten.sigmoid_backward(input_forget, gates[:, : 2 * size], grad_input=input_forget)
    torch.ops.aten.sigmoid_backward(do, o, grad_input=do)
    return dsums, dc.mul_(f)


def gru(from_input: Tensor, from_state: Tensor, h: Tensor) -> Tensor:
    """The next h from the two sums ``[N, 3D]``; ``from_input`` becomes the gates in place."""
    size = h.shape[1]
    reset_update, n = from_input[:, : 2 * size], from_input[:, 2 * size :]
    reset_update.add_(from_state[:, : 2 * size]).sigmoid_()
    r, z = reset_update.split(size, dim=1)
    tanh_(n.addcmul_(r, from_state[:, 2 * size :]))
    return (1 - z).mul_(n).addcmul_(z, h)


def gru_backward(
    gates: Tensor, n_state: Tensor, h: Tensor, dh: Tensor, dwrite: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both sums ``[N, 3D]`` and of the old ``h``, from those of the new ``h`` and of ``write`` =
    1 - z."""
    size = h.shape[1]
    r, z, n = gates.split(size, dim=1)
    dz = dh * (h - n)
    if dwrite is not None:
        dz -= dwrite
    dn = torch.ops.aten.tanh_backward(dh * (1 - z), n)
    d_input = torch.cat([dn * n_state, dz, dn], dim=1)
    reset_update = d_input[:, : 2 * size]
    torch.ops.aten.sigmoid_backward(reset_update, gates[:, : 2 * size], grad_input=reset_update)
    d_state = d_input.clone()
    d_state[:, 2 * size :] *= r
    return d_input, d_state, dh * z


def softmax_(scores: Tensor) -> Tensor:
    """Over the last dimension, in place: for the few RIMs there, torch's own is four times slower."""
    weights = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    return weights.div_(weights.sum(-1, keepdim=True))


def softmax_backward(weights: Tensor, dweights: Tensor) -> Tensor:
    """Gradient of the scores whose softmax over the last dimension is ``weights``."""
    product = weights * dweights
    return product.addcmul_(weights, product.sum(-1, keepdim=True), value=-1)


class Chooser(NamedTuple):
    """How attention weights follow from scores: what null and competition selection share."""

    competition: bool
    num_active: int
    disabled: Tensor | None

    def __call__(self, scores: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights ``[B, H, K, S+1]`` and penalty ``[B, K]`` from scores ``[B, H, K, S]``."""
        if self.competition:
            return competition_attention(scores, self.num_active, present, self.disabled)
        return null_attention(scores, present)

    def backward(
        self, scores: Tensor | None, present: Tensor | None, weights: Tensor, dweights: Tensor
    ) -> Tensor:
        """Gradient of the scores. Competition ranks and subtracts inside; autograd does that small stage."""
        if not self.competition:
            return softmax_backward(weights, dweights)[..., 1:]
        assert scores is not None
        with torch.enable_grad():
            scores = scores.detach().requires_grad_()
            weights, _ = self(scores, present)
        return torch.autograd.grad(weights, scores, dweights)[0]
