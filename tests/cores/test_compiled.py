"""A compiled step gives the numbers of the step as written.

In processes of their own: the tests' run-time shape checks cannot be traced.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

COMPILE = """
import copy
import sys
import torch
from rims.cores import CORES
from rims.cores.base import tensors

torch.manual_seed(0)
options = {"hidden_size": 6, "memory_slots": 5, "memory_width": 3, "num_writes": 2}
core = CORES[sys.argv[1]](compile=True, **options).build(4)
plain = CORES[sys.argv[1]](**options).build(4)
plain.load_state_dict(core.state_dict())
x, reset = torch.randn(5, 3, 4), torch.rand(5, 3) < 0.3

def values(core):
    core.zero_grad()
    output, state = core(x, reset=reset)
    output.square().sum().backward()
    return [output, *tensors(state), *(p.grad for p in core.parameters())]

for got, expected in zip(values(core), values(plain), strict=True):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

assert core.flops_per_step == plain.flops_per_step and core.compile_step
copied = copy.deepcopy(core)
with torch.no_grad():
    copied.state_gates.weight.mul_(2), plain.state_gates.weight.mul_(2)
torch.testing.assert_close(copied(x)[0], plain(x)[0], rtol=1e-4, atol=1e-5)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["ntm", "dnc"])
def test_a_compiled_step_equals_the_step_as_written(name: str) -> None:
    subprocess.run([sys.executable, "-c", COMPILE, name], check=True)
