"""Captured passes: what becomes of their buffers, with a stand-in for CUDA graphs; all engines on a GPU."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
import torch

from rims import RIM
from rims.nn.cell import RIMCell
from rims.nn.fast import dense, gpu, graphs

from .dense_cases import PAPER_IN_SMALL, Case, errors, outcome

EAGER = dense.Eager(dense.TorchLoop())


class FakeBackend:
    """Replays by computing again into the same results, as a graph would."""

    def __init__(self) -> None:
        self.captures = self.replays = 0
        self.stream, self.free, self.works = 0, True, True

    def capture(self, function: graphs.Function, inputs: graphs.MaybeTensors) -> graphs.Graph:
        if not self.works:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captures += 1
        results = [None if r is None else torch.full_like(r, 7) for r in function(inputs)]

        def replay() -> None:
            self.replays += 1
            for result, new in zip(results, function(inputs)):
                if result is not None:
                    result.copy_(new)

        return graphs.Graph(replay, inputs, results)

    def context(self) -> Hashable:
        return self.stream

    def usable(self) -> bool:
        return self.free


def halves(tensors: graphs.MaybeTensors) -> graphs.MaybeTensors:
    return [None if t is None else t / 2 for t in tensors]


def test_one_graph_for_each_signature_that_comes_again() -> None:
    backend = FakeBackend()
    cache = graphs.Cache(backend)
    for value in (1.0, 2.0, 3.0):
        found = cache("halves", halves, [torch.full((3,), value), None])
        assert found[0] is not None
        assert found[0].tolist() == [value / 2] * 3
    assert (backend.captures, backend.replays) == (1, 2)
    for captures in (1, 6):
        for inputs in ([torch.ones(4), None], [torch.ones(3), torch.ones(3)], [torch.ones(3).double(), None]):
            cache("halves", halves, inputs)
        cache("others", halves, [torch.ones(3), None])
        backend.stream = 1
        cache("halves", halves, [torch.ones(3), None])
        backend.stream = 0
        assert backend.captures == captures


def test_sequences_of_ever_other_lengths_are_not_captured() -> None:
    backend = FakeBackend()
    cache = graphs.Cache(backend, capacity=4)
    for size in [*range(1, 20)] * 2:
        cache("halves", halves, [torch.ones(size)])
    assert not backend.captures
    assert len(cache.once) == 4


def test_results_are_the_callers_own() -> None:
    cache = graphs.Cache(FakeBackend())
    given = torch.ones(3)
    cache("halves", halves, [given])
    first = cache("halves", halves, [given])
    second = cache("halves", halves, [torch.zeros(3)])
    assert first[0] is not None
    assert first[0].tolist() == [0.5] * 3
    first[0].fill_(9)
    assert second[0] is not None
    assert second[0].tolist() == [0.0] * 3
    assert given.tolist() == [1.0] * 3


def test_the_least_recently_used_goes_first() -> None:
    backend = FakeBackend()
    cache = graphs.Cache(backend, capacity=2)
    for size in (1, 1, 2, 2, 1, 3, 3, 1):
        cache("halves", halves, [torch.ones(size)])
    assert backend.captures == 3
    for _ in range(2):
        cache("halves", halves, [torch.ones(2)])
    assert backend.captures == 4
    assert len(cache.graphs) == 2


def test_without_capture_it_warns_once_and_computes() -> None:
    backend = FakeBackend()
    backend.works = False
    cache = graphs.Cache(backend)
    cache("halves", halves, [torch.ones(3)])
    with pytest.warns(UserWarning, match="no CUDA graph"):
        first = cache("halves", halves, [torch.ones(3)])
    second = cache("halves", halves, [torch.ones(3)])  # a warning here would be an error
    assert first[0] is not None
    assert torch.equal(first[0], second[0])  # type: ignore[arg-type]


def test_within_another_capture_it_stays_out_of_the_way() -> None:
    backend = FakeBackend()
    backend.free = False
    assert graphs.Cache(backend)("halves", halves, [torch.ones(1)])[0] == 0.5
    assert not backend.captures


def test_two_sequences_alive_before_the_first_backward() -> None:
    backend = FakeBackend()
    engine = graphs.Graphs(EAGER, backend)
    layer = RIMCell(**PAPER_IN_SMALL)
    weights = list(layer.parameters())
    calls = [(torch.randn(3, 2, 10), torch.randn(2, 60), torch.randn(2, 60)) for _ in range(2)]

    def gradients(engine: dense.Engine, order: tuple[int, ...]) -> list[list[torch.Tensor]]:
        losses = [dense.run(*gpu.prepare(layer, *call), engine).states.square().sum() for call in calls]
        found = {n: list(torch.autograd.grad(losses[n], weights)) for n in order}
        return [found[n] for n in range(2)]

    torch.testing.assert_close(gradients(engine, (0, 1)), gradients(EAGER, (0, 1)))
    torch.testing.assert_close(gradients(engine, (1, 0)), gradients(EAGER, (0, 1)))
    assert backend.captures == 2  # one forwards, one backwards
    with torch.no_grad():
        for _ in range(2):
            dense.run(*gpu.prepare(layer, *calls[0]), engine)
    assert backend.captures == 3


def test_equals_the_engine_within() -> None:
    case = Case({**PAPER_IN_SMALL, "cell": "gru"}, reset=True, valid=True, disabled=(2,), comm_dropout=True)
    backend = FakeBackend()
    engine = graphs.Graphs(EAGER, backend)
    for _ in range(2):
        found, wanted = (outcome(case, e, torch.float64) for e in (engine, EAGER))
        assert max(errors(found, wanted).values()) == 0
    assert backend.captures == backend.replays == 2


CASES = {
    "lstm": Case({**PAPER_IN_SMALL}, length=9, batch=33, reset=True, valid=True),
    "gru": Case(
        {**PAPER_IN_SMALL, "cell": "gru"}, disabled=(1,), reverse=True, comm_dropout=True, input_dropout=True
    ),
    "plain sum": Case({**PAPER_IN_SMALL, "comm_tanh": False}, length=9, batch=33),
    "alone": Case({**PAPER_IN_SMALL, "communication": False, "input_heads": 2}, length=1, batch=1),
    "paper": Case(
        {"input_size": 60, "hidden_size": 600, "num_rims": 6, "num_active": 4}, length=12, batch=20
    ),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["kernel", "graphs", "dense"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_cell_on_a_gpu(case: Case, name: str) -> None:
    wanted = outcome(case, None, torch.float64)
    engine = gpu.engine(name)
    for _ in range(3):  # as it is, captured, then replayed
        worst = errors(outcome(case, engine, torch.float32, "cuda"), wanted)
        assert {k: v for k, v in worst.items() if not v <= 1e-4} == {}
    half = outcome(case, engine, torch.float32, "cuda", torch.bfloat16)
    assert errors(half, wanted)["y"] < 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["kernel", "graphs"])
def test_the_layer_trains_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rim = RIM(10, 60, num_layers=2, bidirectional=True, input_dropout=0.1, comm_dropout=0.1).cuda()
    x, target = torch.randn(7, 16, 10, device="cuda"), torch.randn(7, 16, 120, device="cuda")
    optimiser = torch.optim.Adam(rim.parameters(), 1e-2)
    monkeypatch.setenv("RIMS_GPU", name)
    losses = []
    for _ in range(20):
        loss = (rim(x)[0] - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
