"""How a call is cut into tiles and padded, and what does not fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rims.nn.fast.dense import Inputs, Options


class Sizes:
    """How a call is cut into tiles and padded."""

    def __init__(self, o: Options, i: Inputs) -> None:
        self.rim = i.h0.shape[1] // o.num_rims
        self.key = self.value = 1
        if o.heads:
            assert i.query is not None
            assert i.value is not None
            self.key, self.value = i.query.shape[-1] // o.heads, i.value.shape[-1] // o.heads
        self.key_padded, self.value_padded = power_of_two(self.key), power_of_two(self.value)
        self.rim_stride = (self.rim + 15) // 16 * 16
        """Of a row of a weight matrix: rows start where 16-byte loads may."""
        self.rim_padded = max(16, power_of_two(self.rim))
        self.rims_padded = power_of_two(o.num_rims)
        self.tile = rows_of_a_tile(i.h0, o.num_rims)
        item = o.product_dtype.itemsize
        row = self.rim_padded * item
        self.chunk = min(64, max(16, CHUNK // (4 * row)))
        """Rows of the gates' matrices at a time."""
        self.wide_chunk = min(128, max(16, CHUNK // row))
        """Rows or columns of one matrix."""
        self.chunk_bytes = max(
            self.chunk * (4 * row + self.tile * item), self.wide_chunk * (row + self.tile * item)
        )
        self.stages = max(2, min(3, 1 + (shared_memory(i.h0.device) - RESERVED) // self.chunk_bytes))
        """One more than there are chunks on their way. More gained nothing."""
        self.settings: dict[str, Any] = {
            "K": o.num_rims,
            "A": o.num_active,
            "D": self.rim,
            "R": o.input_heads,
            "H": o.heads,
            "EP": self.key_padded,
            "VP": self.value_padded,
            "DS": self.rim_stride,
            "DP": self.rim_padded,
            "KP": self.rims_padded,
            "BM": self.tile,
            "BK": self.chunk,
            "BN": self.wide_chunk,
            "BW": self.wide_chunk,
            "STAGES": self.stages,
            "GRU": o.gru,
            "SQUASH": o.squash,
            "BIAS": i.bias_ih is not None,
            "RESET": i.reset is not None,
            "VALID": i.valid is not None,
            "DISABLED": i.disabled is not None,
            "DROPOUT": i.comm_keep is not None,
            "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3",
        }
        # In half precision four warps are faster, in float32, whose products are three, eight.
        self.launch = {"num_warps": 4 if self.rim_padded <= 64 or item == 2 else 8}

    def of(self, kernel: Any) -> dict[str, Any]:
        """What a launch of ``kernel`` is given of them."""
        return {name: self.settings[name] for name in kernel.arg_names if name in self.settings} | self.launch


CHUNK = 32 * 1024
"""Bytes of weights that are loaded at a time."""

RESERVED = 16 * 1024
"""Bytes of shared memory that are left for all else."""


def shared_memory(device: torch.device) -> int:
    """Bytes that a program may have."""
    if device.type != "cuda":  # the interpreter, and compiling for an H100
        return 227 * 1024
    least_of_ampere = 99 * 1024
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", least_of_ampere)


def power_of_two(size: int) -> int:
    """The least that is not below ``size``."""
    return 1 << (size - 1).bit_length()


def rows_of_a_tile(state: Tensor, num_rims: int) -> int:
    """16, the least a tensor core takes, until that many rows of a RIM keep every multiprocessor busy: a tile
    takes as long as the weights need to arrive, however few its rows, so more programs finish sooner."""
    if not state.is_cuda:
        return 16
    processors = torch.cuda.get_device_properties(state.device).multi_processor_count
    return 16 if -(-len(state) // 16) * num_rims <= processors else 32


def why_not(o: Options, i: Inputs) -> str | None:
    """What keeps a sequence from the kernels; None if nothing does."""
    sizes = Sizes(o, i)
    if i.h0.dtype != torch.float32:
        return f"states of {i.h0.dtype}"
    if (obstacle := unfit(i.h0.device, sizes)) is not None:
        return obstacle
    if sizes.rim_padded > 256:
        return f"{sizes.rim} units a RIM: more than 256"
    if sizes.rims_padded * max(sizes.key_padded, sizes.value_padded) > 1024 or sizes.rims_padded > 32:
        return f"{o.num_rims} RIMs with heads of {sizes.key} and {sizes.value}: too many for a tile"
    return None


def unfit(device: torch.device, sizes: Sizes) -> str | None:
    """What keeps the kernels from a device; None if nothing does."""
    if device.type != "cuda":  # the interpreter
        return None
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip or properties.major < 8:
        return f"the device {properties.name}"
    needed = (sizes.stages - 1) * sizes.chunk_bytes + RESERVED
    if needed > shared_memory(device):
        return f"{sizes.rim} units a RIM: {needed} bytes of the device's shared memory"
    return None


def pad(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Zeros at the end of ``dim``, up to ``size``."""
    missing = size - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def pad_heads(weight: Tensor, heads: int, size: int) -> Tensor:
    """``[..., H * E]`` to ``[..., H * size]``."""
    return pad(weight.unflatten(-1, (heads, -1)), -1, size).flatten(-2)


def queries_keys_values(o: Options, i: Inputs, sizes: Sizes) -> Tensor:
    """The three matrices of the communication side by side, heads padded: ``[K, D, Q]``."""
    assert i.query is not None
    assert i.key is not None
    assert i.value is not None
    parts = ((i.query, sizes.key_padded), (i.key, sizes.key_padded), (i.value, sizes.value_padded))
    return torch.cat([pad_heads(weight, o.heads, size) for weight, size in parts], -1).to(o.product_dtype)


def projection(o: Options, i: Inputs, sizes: Sizes) -> Tensor:
    """``[D, H * V]``, heads padded."""
    assert i.out is not None
    return pad_heads(i.out, o.heads, sizes.value_padded).to(o.product_dtype)
