"""Another engine's passes captured in CUDA graphs: hundreds of small operations, launched as one.

A graph reads and writes fixed memory. Inputs are copied into it before each replay and results copied out of
it after, what the backward pass needs included, so that nothing of one call is overwritten by the next, in
whatever order their backward passes come. The copies move some 0.2 GB at the paper's size (T=70, B=64), well
under a tenth of a millisecond; the launches they save take several.

Forward and backward pass are two graphs. There is one of each for every combination of options, shapes and
dtypes, the least recently used dropped first. A combination is captured when it comes a second time:
capturing takes as long as several runs without, which sequences of ever other lengths would never get back.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from rims.nn.fast.dense import Engine, Hoisted, Inputs, Options, Saved

CAPACITY = 16
"""Graphs kept, forward and backward counted apart; as many combinations are remembered that came once."""

V = TypeVar("V")
MaybeTensors = Sequence[Tensor | None]
Function = Callable[[MaybeTensors], MaybeTensors]


class Graph(NamedTuple):
    """A captured function: ``replay()`` computes ``results`` from ``inputs``, each at a fixed place."""

    replay: Callable[[], None]
    inputs: MaybeTensors
    results: MaybeTensors


@runtime_checkable
class Backend(Protocol):
    """What captures; another one stands in for it in tests."""

    def capture(self, function: Function, inputs: MaybeTensors) -> Graph:
        """Capture the function on fixed ``inputs``."""

    def context(self) -> Hashable:
        """What else a graph depends on than its function and its inputs' shapes."""

    def usable(self) -> bool:
        """Whether graphs can be used just now."""


class CudaBackend:
    """CUDA graphs."""

    def capture(self, function: Function, inputs: MaybeTensors) -> Graph:
        main = torch.cuda.current_stream()
        side = torch.cuda.Stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):  # libraries set themselves up, which cannot be captured
            for _ in range(2):
                function(inputs)
        main.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread, a data loader's, may allocate meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = function(inputs)
        return Graph(graph.replay, inputs, results)

    def context(self) -> Hashable:
        """The stream, so that no two streams replay one graph at once, and the precision of products."""
        stream, matmul = torch.cuda.current_stream(), torch.backends.cuda.matmul
        return stream.device_index, stream.cuda_stream, matmul.allow_tf32

    def usable(self) -> bool:
        """Not within somebody else's capture."""
        return not torch.cuda.is_current_stream_capturing()


class Cache:
    """Graphs by key, the most recently used kept."""

    def __init__(self, backend: Backend, capacity: int = CAPACITY) -> None:
        self.backend, self.capacity = backend, capacity
        self.graphs: OrderedDict[Hashable, Graph | None] = OrderedDict()
        self.once: OrderedDict[Hashable, None] = OrderedDict()
        self.lock = threading.Lock()  # the backward pass runs in threads of autograd's

    def __call__(self, name: Hashable, function: Function, inputs: MaybeTensors) -> MaybeTensors:
        """``function(inputs)``, by a graph; ``name`` says which function. Results are the caller's own."""
        if not self.backend.usable():
            return function(inputs)
        key = (name, self.backend.context(), *map(signature, inputs))
        with self.lock:
            if key not in self.graphs and key not in self.once:
                self._put(self.once, key, None)
                return function(inputs)
            if key not in self.graphs:
                del self.once[key]
                self._put(self.graphs, key, self._capture(function, inputs))
            self.graphs.move_to_end(key)
            graph = self.graphs[key]
            if graph is None:
                return function(inputs)
            for own, given in zip(graph.inputs, inputs):
                if own is not None and given is not None:
                    own.copy_(given)
            graph.replay()
            return [None if result is None else result.clone() for result in graph.results]

    def _put(self, into: OrderedDict[Hashable, V], key: Hashable, value: V) -> None:
        into[key] = value
        if len(into) > self.capacity:
            into.popitem(last=False)

    def _capture(self, function: Function, inputs: MaybeTensors) -> Graph | None:
        own = [None if t is None else t.detach().clone(memory_format=torch.contiguous_format) for t in inputs]
        try:
            return self.backend.capture(function, own)
        except RuntimeError as error:
            warnings.warn(f"no CUDA graph, operations are launched one by one: {error}", stacklevel=2)
            return None


def signature(tensor: Tensor | None) -> Hashable:
    """What of a tensor a graph depends on."""
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


class Graphs:
    """Another engine's passes, captured. See :class:`rims.nn.fast.dense.Engine`."""

    def __init__(self, engine: Engine, backend: Backend | None = None) -> None:
        self.engine = engine
        self.cache = Cache(backend or CudaBackend())

    def forward(self, o: Options, i: Inputs, keep: bool) -> tuple[Hoisted, Saved]:
        """The forward pass."""

        def function(tensors: MaybeTensors) -> MaybeTensors:
            hoisted, s = self.engine.forward(o, Inputs(*tensors), keep)  # type: ignore[arg-type]
            return [*hoisted, *s]

        results = self.cache(("forward", o, keep), function, i)
        split = len(Hoisted._fields)
        return Hoisted(*results[:split]), Saved(*results[split:])  # type: ignore[arg-type]

    def backward(
        self,
        o: Options,
        i: Inputs,
        hoisted: Hoisted,
        s: Saved,
        want_x: bool,
        dy: Tensor,
        dh: Tensor,
        dc: Tensor,
    ) -> list[Tensor | None]:
        """The backward pass."""
        first, second = len(i), len(i) + len(hoisted)
        third = second + len(s)

        def function(tensors: MaybeTensors) -> MaybeTensors:
            return self.engine.backward(
                o,
                Inputs(*tensors[:first]),  # type: ignore[arg-type]
                Hoisted(*tensors[first:second]),  # type: ignore[arg-type]
                Saved(*tensors[second:third]),  # type: ignore[arg-type]
                want_x,
                *tensors[third:],  # type: ignore[arg-type]
            )

        return list(self.cache(("backward", o, want_x), function, [*i, *hoisted, *s, dy, dh, dc]))
