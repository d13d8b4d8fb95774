"""What is compared: the layer by each of its paths, and torch's layers at equal size and at equal
parameters."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rims.cores import GRUConfig, LSTMConfig, RIMConfig
from rims.cores.sizes import matched
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

    @property
    def config(self) -> RIMConfig:
        """The RIM core of these sizes."""
        return RIMConfig(
            self.hidden_size, self.num_rims, num_active=self.num_active, comm_key_size=self.comm_size
        )

    def rim(self, **options: Any) -> RIM:
        """The RIM layer of these sizes."""
        return RIM(self.input_size, **{**vars(self.config), **self.weights, **options})


class OneStep(nn.Module):
    """A RIM's cell for sequences of one step."""

    def __init__(self, rim: RIM) -> None:
        super().__init__()
        self.cell = rim.first

    def forward(self, x: Tensor) -> Any:
        return self.cell(x[0])


class WithoutCompiler(nn.Module):
    """A RIM whose fast path is torch operations, as where there is no C compiler."""

    def __init__(self, rim: RIM) -> None:
        super().__init__()
        self.rim = rim

    def forward(self, x: Tensor) -> Any:
        before = os.environ.get("RIMS_CPU")
        os.environ["RIMS_CPU"] = "torch"
        try:
            return self.rim(x)
        finally:
            del os.environ["RIMS_CPU"]
            if before is not None:
                os.environ["RIMS_CPU"] = before


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
    """The layer called ``name``, one of :data:`ARMS` or :data:`COMPILED`."""
    if name == "RIMCell, compiled":
        return _compiled(OneStep(setting.rim()))
    if name == WITHOUT_COMPILER:
        return WithoutCompiler(setting.rim(backend="fast"))
    if name.endswith(", compiled"):
        return _compiled(layer(COMPILED_FROM[name], setting))
    if name.startswith("RIM"):
        return setting.rim(backend=name.split()[1])
    hidden_size = setting.hidden_size
    if name.endswith("equal parameters"):
        core = LSTMConfig() if "LSTM" in name else GRUConfig()
        hidden_size = matched(core, setting.config, setting.input_size, "params").hidden_size
    kind = {"nn.LSTM": nn.LSTM, "nn.GRU": nn.GRU, "nn.LSTMCell": CellLoop}[name.split()[0].rstrip(",")]
    return kind(setting.input_size, hidden_size, **setting.weights)


WITHOUT_COMPILER = "RIM fast, no compiler"
ARMS = (
    "RIM fast",
    WITHOUT_COMPILER,
    "RIM reference",
    "nn.LSTM",
    "nn.GRU",
    "nn.LSTM, equal parameters",
    "nn.GRU, equal parameters",
    "nn.LSTMCell loop",
)


COMPILED_FROM = {"RIM, compiled": "RIM auto", "nn.LSTMCell, compiled": "nn.LSTMCell loop"}
COMPILED: dict[Mode, tuple[str, ...]] = {
    "forward": ("RIM, compiled",),
    "train": ("RIM, compiled",),
    "step": ("RIMCell, compiled", "nn.LSTMCell, compiled"),
}
"""What torch.compile makes of them; measured on request, since it takes a minute and needs a C++ compiler."""


def _compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, fullgraph=True)  # type: ignore[return-value]


REFERENCES: dict[Mode, str] = {"forward": "nn.LSTM", "train": "nn.LSTM", "step": "nn.LSTMCell loop"}
"""The arm that ratios are taken to: for acting, the cell."""


def make_call(name: str, mode: Mode, setting: Setting) -> Callable[[], object]:
    """A call of the layer ``name`` to be timed."""
    torch.manual_seed(0)
    return call_of(layer(name, setting), mode, setting)


def call_of(module: nn.Module, mode: Mode, setting: Setting) -> Callable[[], object]:
    """A call of a layer or core to be timed."""
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
