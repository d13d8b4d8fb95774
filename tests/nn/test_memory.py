"""Memory that a process has freed stays with it where it asked for that."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from rims.nn.fast.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):  # aligned blocks leave holes at first, and the next needs a little more than there is
        torch.ones(8 << 20)  # 32 MiB, 8192 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

missing = faults()
print(keep_freed_memory(), missing, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has it")
def test_freed_memory_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    kept, missing, then = done.stdout.split()
    if kept == "False":
        pytest.skip("not glibc")
    assert int(missing) > 20 * 8192 - 100
    assert int(then) < int(missing) / 2
