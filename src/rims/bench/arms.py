"""What is compared: the layer by each of its paths, and torch's layers at equal size and at equal
parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rims.cores.sizes import units_for_parameters
from rims.nn import RIM

Mode = Literal["forward", "train", "step"]
"""Forward without gradients; forward and backward; one step of one row without gradients (acting)."""


@dataclass(frozen=True)
class Setting:
    """Sizes of one measurement; by default the paper's copying run."""

    steps: int = 70
    batch: int = 64
    input_size: int = 600
    hidden_size: int = 600
    num_rims: int = 6
    num_active: int = 4
    comm_size: int = 32
    """Key and value size of a communication head."""
    dtype: str = "float32"
    """float32, float64, or bfloat16 for float32 weights under autocast."""
    device: str = "cpu"

    @property
    def weights(self) -> dict[str, Any]:
        dtype = torch.float64 if self.dtype == "float64" else torch.float32
        return {"device": self.device, "dtype": dtype}

    def rim(self, **options: Any) -> RIM:
        """The RIM layer of these sizes."""
        return RIM(
            self.input_size,
            self.hidden_size,
            self.num_rims,
            self.num_active,
            comm_key_size=self.comm_size,
            **self.weights,
            **options,
        )


class CellLoop(nn.Module):
    """nn.LSTMCell in a Python loop: what a recurrent layer costs that has no fused sequence."""

    def __init__(self, input_size: int, hidden_size: int, **weights: Any) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(input_size, hidden_size, **weights)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        zeros = x.new_zeros(x.shape[1], self.cell.hidden_size)
        state, outputs = (zeros, zeros), []
        for step in x:
            state = self.cell(step, state)
            outputs.append(state[0])
        return torch.stack(outputs), state


def layer(name: str, setting: Setting) -> nn.Module:
    """The layer called ``name``, one of :data:`ARMS`."""
    if name.startswith("RIM"):
        return setting.rim(backend=name.split()[1])
    sizes = (setting.input_size, setting.hidden_size)
    if name.endswith("equal parameters"):
        parameters = sum(p.numel() for p in replace(setting, device="meta").rim().parameters())
        sizes = (
            setting.input_size,
            units_for_parameters(4 if "LSTM" in name else 3, setting.input_size, parameters),
        )
    kind = {"nn.LSTM": nn.LSTM, "nn.GRU": nn.GRU, "nn.LSTMCell": CellLoop}[name.split()[0].rstrip(",")]
    return kind(*sizes, **setting.weights)


ARMS = (
    "RIM fast",
    "RIM reference",
    "nn.LSTM",
    "nn.GRU",
    "nn.LSTM, equal parameters",
    "nn.GRU, equal parameters",
    "nn.LSTMCell loop",
)


REFERENCES: dict[Mode, str] = {"forward": "nn.LSTM", "train": "nn.LSTM", "step": "nn.LSTMCell loop"}
"""The arm that ratios are taken to: for acting, the cell."""


def make_call(name: str, mode: Mode, setting: Setting) -> Callable[[], object]:
    """A call of the layer ``name`` to be timed."""
    torch.manual_seed(0)
    module = layer(name, setting)
    one = mode == "step"
    shape = (1, 1) if one else (setting.steps, setting.batch)
    x = torch.randn(*shape, setting.input_size, **setting.weights)
    autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=setting.dtype == "bfloat16")

    def forward() -> None:
        with torch.no_grad(), autocast:
            module(x)

    if mode != "train":
        return forward
    x.requires_grad_()
    cotangent = torch.randn(*shape, module(x[:1, :1].detach())[0].shape[-1], device=x.device)

    def train() -> None:
        with autocast:
            y, _ = module(x)
        torch.autograd.backward(y, cotangent.to(y.dtype))

    return train
