"""Compiles the Triton kernels for a device that is not there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from rims.nn.cell import RIMCell
from rims.nn.fast import gpu, kernel
from rims.nn.sequence import How

HALF = ("reads", "w_hh", "w_qkv", "w_out", "gates", "qkv", "heard", "d_input", "d_state", "d_qkv", "d_out")
BYTES = ("reset", "valid", "disabled", "comm_keep", "active")
NUMBERS = {"T": "i32", "B": "i32", "key_scale": "fp32", "comm_scale": "fp32"}


def compile_for_hopper(
    direction: str, dtype: torch.dtype, *, masks: bool, reverse: bool, length: int, batch: int, **options: Any
) -> Any:
    """The kernel for RIM(600, 600) with these options, as a launch would compile it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    layer = RIMCell(600, **{"hidden_size": 600, "num_rims": 6, "num_active": 4, **options})
    h = torch.zeros(batch, layer.hidden_size)
    o, i = gpu.prepare(layer, torch.zeros(length, batch, 600), h, h, How(reverse=reverse))
    sizes = kernel.Sizes(replace(o, product_dtype=dtype), i)
    settings = {
        **sizes.common,
        "A": o.num_active,
        "QT": sizes.query_tile,
        "KEEP": True,
        **dict.fromkeys(("BIAS",), True),
        **dict.fromkeys(("RESET", "VALID", "DISABLED", "DROPOUT"), masks),
    }
    function = getattr(kernel, direction)
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes = {}
    for position, name in enumerate(function.arg_names):
        value = {"T": length, "B": batch}.get(name)
        if name in settings or value == 1:  # a launch, too, makes a constant of 1
            signature[name], constants[name] = "constexpr", settings.get(name, value)
        elif name in NUMBERS:
            signature[name] = NUMBERS[name]
        else:
            half = "*bf16" if dtype == torch.bfloat16 else "*fp32"
            signature[name] = half if name in HALF else "*u8" if name in BYTES else "*fp32"
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constexprs=constants, attrs=attributes)
    return compile(source, target=GPUTarget("cuda", 90, 32), options=sizes.launch)
