"""torch.compile, torch.export and ONNX give the layer's numbers.

In processes of their own: the tests' run-time shape checks cannot be traced.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

EXPORT = """
import sys
import onnxruntime
import torch
from rims import RIMCell

for options in ({}, {"cell": "gru"}, {"variant": "official"}, {"selection": "competition"}):
    cell = RIMCell(10, 24, comm_key_size=4, **options).eval()

    def inputs(batch):
        x, *state = torch.randn(batch, 10), torch.randn(batch, 24), torch.randn(batch, 24)
        return x, tuple(state) if cell.cell == "lstm" else state[0]

    batch = {0: torch.export.Dim("batch")}
    shapes = {"x": batch, "hx": (batch, batch) if cell.cell == "lstm" else batch}
    x, state = inputs(5)  # another batch than the one exported with
    expected = cell(x, state)
    expected = expected if cell.cell == "lstm" else (expected,)

    exported = torch.export.export(cell, inputs(3), dynamic_shapes=shapes).module()(x, state)
    torch.testing.assert_close(exported if cell.cell == "lstm" else (exported,), expected)

    torch.onnx.export(cell, inputs(3), dynamo=True, dynamic_shapes=shapes, verbose=False).save(sys.argv[1])
    session = onnxruntime.InferenceSession(sys.argv[1])
    flat = [x, *(state if cell.cell == "lstm" else (state,))]
    found = session.run(None, {i.name: v.numpy() for i, v in zip(session.get_inputs(), flat)})
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-5, atol=1e-6)
"""

COMPILE = """
import gc
import torch
from torch import nn
from rims import RIM
from rims.nn.fast import opaque

class Model(nn.Module):
    def __init__(self, inputs="vector", **options):
        super().__init__()
        self.rim = RIM(8, 24, inputs=inputs, **{"comm_key_size": 4, **options})
        self.head = nn.Linear(24 * self.rim.num_directions, 3)

    def forward(self, x, reset):
        mask = None if x.dim() == 3 else x[..., 0] > -1
        return self.head(self.rim(x, reset=reset, mask=mask)[0])

def values(model, call, x, reset):
    torch.manual_seed(1)  # the same dropout in both
    model.zero_grad()
    y = call(x, reset)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters())]

for backend, steps, options in (
    ("inductor", 30, {}),
    ("aot_eager", 5, {"cell": "gru", "bias": False}),
    ("aot_eager", 5, {"cell": "gru", "num_layers": 2, "bidirectional": True, "communication": False}),
    ("aot_eager", 5, {"variant": "official", "input_dropout": 0.2, "comm_dropout": 0.3}),
    ("aot_eager", 5, {"selection": "competition", "inputs": "slots", "input_heads": 2, "comm_topk": 2}),
    ("aot_eager", 5, {"inputs": "private"}),
    ("aot_eager", 5, {"num_active": 6, "input_attention": False}),
    ("aot_eager", 1, {}),
):
    torch.compiler.reset()
    model = Model(**options)
    slots = {"slots": (3,), "private": (6,)}.get(options.get("inputs"), ())
    x, reset = torch.randn(steps, 3, *slots, 8), torch.rand(steps, 3) < 0.3
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for got, expected in zip(values(model, compiled, x, reset), values(model, model, x, reset)):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    y = compiled(x, reset)
    one_operator = steps > 1 and model.rim.first.selection == "null"
    assert bool(opaque.KEPT) == one_operator  # what its backward pass needs
    del y
    gc.collect()
    assert not opaque.KEPT
    with torch.no_grad():
        got = compiled(x, reset)
        assert not opaque.KEPT
    if not options.get("input_dropout"):
        torch.testing.assert_close(got, model(x, reset), rtol=1e-4, atol=1e-5)
"""


@pytest.mark.slow
def test_the_step_as_exported_program_and_as_onnx(tmp_path) -> None:
    subprocess.run([sys.executable, "-c", EXPORT, str(tmp_path / "cell.onnx")], check=True)


@pytest.mark.slow
def test_a_model_with_the_layer_compiles_in_one_graph() -> None:
    subprocess.run([sys.executable, "-c", COMPILE], check=True)
