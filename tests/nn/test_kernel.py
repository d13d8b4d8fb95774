"""The Triton kernels: equal to the cell (by the interpreter), and accepted by the compiler (for an H100)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rims.nn.cell import RIMCell
from rims.nn.fast import gpu

from .dense_cases import PAPER_IN_SMALL

triton = pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_by_the_interpreter() -> None:
    module = Path(__file__).with_name("interpreted_kernel.py")
    # without the run-time shape checks, which are slow at this many small calls
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers"]
    command = [sys.executable, "-m", "pytest", str(module), *options]
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_it_does_not_cover() -> None:
    from rims.nn.fast import kernel

    def obstacle(dtype: torch.dtype = torch.float32, **options: Any) -> str | None:
        layer = RIMCell(**{**PAPER_IN_SMALL, **options}, dtype=dtype)
        x, h = (torch.zeros(size, dtype=dtype) for size in ((2, 3, layer.input_size), (3, layer.hidden_size)))
        return kernel.why_not(*gpu.prepare(layer, x, h, h))

    assert obstacle() is None
    assert obstacle(communication=False) is None
    assert "float64" in str(obstacle(torch.float64))
    assert "300 units" in str(obstacle(hidden_size=1800))
    assert "heads of 256" in str(obstacle(comm_key_size=256))
    assert "64 RIMs" in str(obstacle(hidden_size=128, num_rims=64))


# What differs between specialisations: dynamics, communication, heads, masks, and a length of one.
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "gru": {"cell": "gru", "masks": True},
    "alone": {"communication": False, "input_heads": 2, "reverse": True},
    "one": {
        "num_rims": 1,
        "num_active": 1,
        "hidden_size": 100,
        "comm_value_size": 3,
        "length": 1,
        "batch": 1,
    },
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["move", "hear", "unhear", "unmove"])
def test_compiles(name: str, variant: str, dtype: torch.dtype) -> None:
    """No device is needed to compile for one; a kernel that the interpreter runs may yet not compile."""
    from .compiling import compile_for_hopper

    if variant == "alone" and name in ("hear", "unhear"):
        pytest.skip("there is nothing to hear")
    options = {"masks": False, "reverse": False, "length": 7, "batch": 64, **VARIANTS[variant]}
    compiled = compile_for_hopper(name, dtype, **options)
    assert compiled.metadata.shared <= 227 * 1024
    assert "mma.sync" in compiled.asm["ptx"]
