"""Compiles the Triton kernels for a device that is not there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from rims.nn.cell import RIMCell
from rims.nn.fast import gpu
from rims.nn.fast.kernel import backward, forward
from rims.nn.fast.kernel.sizes import Sizes
from rims.nn.sequence import How

HALF = ("reads", "w_hh", "w_qkv", "w_out", "gates", "qkv", "heard", "d_input", "d_state", "d_qkv", "d_out")
BYTES = ("reset", "valid", "disabled", "comm_keep", "active")
MASKS = ("RESET", "VALID", "DISABLED", "DROPOUT")
STEPS = ("t", "old", "new", "following", "T")


def compile_for_hopper(
    name: str, dtype: torch.dtype, *, masks: bool, reverse: bool, length: int, batch: int, **options: Any
) -> Any:
    """The kernel of that name for RIM(600, 600) with these options, as a launch would compile it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    layer = RIMCell(600, **{"hidden_size": 600, "num_rims": 6, "num_active": 4, **options})
    h = torch.zeros(batch, layer.hidden_size)
    o, i = gpu.prepare(layer, torch.zeros(length, batch, 600), h, h, How(reverse=reverse))
    sizes = Sizes(replace(o, product_dtype=dtype), i)
    settings = {**sizes.settings, "KEEP": True, **dict.fromkeys(MASKS, masks)}
    kernel = getattr(forward if hasattr(forward, name) else backward, name)
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes = {}
    for position, parameter in enumerate(kernel.arg_names):
        if parameter in settings or (parameter == "B" and batch == 1):  # a launch, too, makes a constant of 1
            signature[parameter], constants[parameter] = "constexpr", settings.get(parameter, 1)
        elif parameter == "B" or parameter in STEPS:
            signature[parameter] = "i32"
        elif parameter.endswith("_scale"):
            signature[parameter] = "fp32"
        else:
            half = "*bf16" if dtype == torch.bfloat16 else "*fp32"
            signature[parameter] = half if parameter in HALF else "*u8" if parameter in BYTES else "*fp32"
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return compile(source, target=GPUTarget("cuda", 90, 32), options=sizes.launch)
