"""What torch does with a layer beside calling it and going backwards once: second derivatives, torch.func,
forward-mode differentiation, modes that watch operations, tensors without memory, hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rims import RIM

from .strategies import rim_options

pytestmark = [
    pytest.mark.usefixtures("engine"),
    # Torch's own forward mode uses it. Its warning is a FutureWarning in torch 2.14.
    pytest.mark.filterwarnings("ignore:.torch.jit.script.*"),
]

VARIANTS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "gru": {"cell": "gru"},
    "official": {"variant": "official"},
    "competition": {"selection": "competition"},
    "topk": {"comm_topk": 2},
    "plain sum, both ways": {"comm_tanh": False, "bidirectional": True},
}
per_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def pair(**options: Any) -> tuple[RIM, RIM]:
    """The same weights, run by the reference and as a user runs them."""
    sizes = {"input_size": 3, "hidden_size": 8, "num_rims": 4, "num_active": 2}
    torch.manual_seed(0)
    reference, fast = (
        RIM(**sizes | options, dtype=torch.float64, backend=backend) for backend in ("reference", "auto")
    )
    fast.load_state_dict(reference.state_dict())
    return reference, fast


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.without_shape_checks
@per_variant
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_second_derivatives_equal_finite_differences(options: dict[str, Any], dropout: float) -> None:
    _, rim = pair(**options, input_dropout=dropout, comm_dropout=dropout)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    reset = torch.tensor([[False, False], [True, False], [False, False]])

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same dropout at each call
        named = dict(zip(dict(rim.named_parameters()), weights))
        return functional_call(rim, named, (x,), {"reset": reset})[0]

    assert gradgradcheck(call, (x, *rim.parameters()), fast_mode=True)
    assert gradcheck(call, (x, *rim.parameters()), fast_mode=True)


def penalised(rim: RIM, x: Tensor, **call: Any) -> dict[str, Tensor]:
    """Gradients of an output and of a penalty on its gradient."""
    x = x.clone().requires_grad_()
    h = torch.ones(rim.num_layers * rim.num_directions, x.shape[1], rim.hidden_size, dtype=x.dtype)
    h.requires_grad_()
    # One tensor for two states.
    y, _, traces = rim(x, (h, h) if rim.mode == "LSTM" else h, return_trace=True, **call)
    attended = [part.square().sum() for trace in traces for part in trace[1:] if part is not None]
    given = y.sum() + sum(attended)
    slopes = torch.autograd.grad(given, (x, h), create_graph=True, materialize_grads=True)
    loss = y.square().sum() + sum(slope.square().sum() for slope in slopes)
    names, inputs = zip(("x", x), ("h", h), *rim.named_parameters())
    found = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found))


@pytest.mark.without_shape_checks
@settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate])
@given(rim_options(), st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_a_penalty_on_gradients_counts(options: dict[str, Any], reset: bool, deep: bool, seed: int) -> None:
    assume(not (deep and options["inputs"] != "vector"))
    options |= {"num_layers": 2, "bidirectional": True} if deep else {}
    reference, fast = pair(**options)
    torch.manual_seed(seed)
    between = {"vector": [], "slots": [3], "private": [reference.num_rims]}[options["inputs"]]
    x = torch.randn(4, 2, *between, reference.input_size, dtype=torch.float64)
    call: dict[str, Any] = {"reset": torch.rand(4, 2) < 0.3 if reset else None}
    if between:
        call["mask"] = torch.rand(x.shape[:-1]) < 0.7
    close(penalised(fast, x, **call), penalised(reference, x, **call))


def test_a_penalty_under_autocast() -> None:
    torch.manual_seed(0)
    reference, fast = RIM(3, 8, 4, 2, backend="reference"), RIM(3, 8, 4, 2)
    fast.load_state_dict(reference.state_dict())
    x = torch.randn(3, 2, 3)

    def slopes(rim: RIM) -> tuple[Tensor, Tensor]:
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = rim(given)[0]
        (slope,) = torch.autograd.grad(y.sum(), given, create_graph=True)
        return slope, torch.autograd.grad(slope.square().sum(), given)[0]

    torch.testing.assert_close(slopes(fast), slopes(reference), rtol=0.05, atol=0.005)


@pytest.mark.parametrize("create_graph", [False, True])
def test_batched_gradients_equal_a_loop(create_graph: bool) -> None:
    _, rim = pair()
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    y, several = rim(x)[0], torch.randn(5, 3, 2, 8, dtype=torch.float64)
    (batched,) = torch.autograd.grad(
        y, x, several, is_grads_batched=True, retain_graph=True, create_graph=create_graph
    )
    mapped = vmap(lambda one: torch.autograd.grad(y, x, one, retain_graph=True)[0])(several)
    looped = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in several]
    close(batched, torch.stack(looped))
    close(mapped, torch.stack(looped))


@per_variant
def test_torch_func_equals_the_reference(options: dict[str, Any]) -> None:
    layers = pair(**options)
    x, tangent = torch.randn(2, 3, 2, 3, dtype=torch.float64)

    def results(rim: RIM) -> list[Any]:
        weights = {name: weight.detach() for name, weight in rim.named_parameters()}

        def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(rim, weights, (x,))[0]

        def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return call(weights, x[:, None]).square().sum()

        several = {name: torch.stack([weight, weight * 1.1]) for name, weight in weights.items()}
        return [
            grad(loss)(weights, x[:, 0]),
            vmap(grad(loss), (None, 1))(weights, x),  # for each sequence of the batch
            vmap(call, (0, None))(several, x),  # an ensemble
            jvp(lambda x: call(weights, x), (x,), (tangent,)),
            jacrev(lambda x: call(weights, x))(x),
            hessian(lambda x: loss(weights, x))(x[:2, 0]),
        ]

    close(*map(results, layers))


def test_an_ensemble_equals_its_members() -> None:
    members = [RIM(3, 8, 4, 2, dtype=torch.float64) for _ in range(3)]
    weights, buffers = stack_module_state(members)  # type: ignore[arg-type]
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    together = vmap(lambda w, b: functional_call(members[0], (w, b), (x,))[0])(weights, buffers)
    close(together, torch.stack([member(x)[0] for member in members]))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("record", [False, True])
def test_tangents_pass(steps: int, record: bool) -> None:
    """Without gradients and with one step, an agent's fast path would drop them in silence."""
    _, rim = pair()
    x, tangent = torch.randn(2, steps, 2, 3, dtype=torch.float64)
    with forward_ad.dual_level(), torch.set_grad_enabled(record):
        found = forward_ad.unpack_dual(rim(forward_ad.make_dual(x, tangent))[0]).tangent
    step = 1e-6
    with torch.no_grad():
        wanted = (rim(x + step * tangent)[0] - rim(x - step * tangent)[0]) / (2 * step)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_flops_are_counted() -> None:
    counts = []
    for rim in pair():
        with FlopCounterMode(display=False) as counter:
            rim(torch.randn(3, 2, 3, dtype=torch.float64))[0].sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_tensors_without_memory(steps: int, record: bool) -> None:
    """Compiled passes would read from address zero."""
    with FakeTensorMode(), torch.set_grad_enabled(record):
        rim = RIM(3, 8, 4, 2)
        y, (h, _) = rim(torch.randn(steps, 2, 3))
        assert (y.shape, h.shape) == ((steps, 2, 8), (1, 2, 8))
        if record:
            y.sum().backward()
    on_meta = RIM(3, 8, 4, 2, device="meta")
    assert on_meta(torch.empty(steps, 2, 3, device="meta"))[0].shape == (steps, 2, 8)


class Watching(TorchDispatchMode):
    """Counts operations."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **kwargs or {})


@torch.no_grad()
def test_watchers_see_every_operation() -> None:
    _, rim = pair()
    x = torch.randn(1, 2, 3, dtype=torch.float64)
    wanted = rim(x)[0]
    with Watching() as watching:
        close(rim(x)[0], wanted)
    assert watching.seen > 20
    both = rim(TwoTensor(x, 2 * x))[0]
    close(both.a, wanted)
    close(both.b, rim(2 * x)[0])


def test_a_replaced_forward_is_called() -> None:
    """As wrappers that move weights about, and many a trial, replace it."""
    _, rim = pair()
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    wanted = rim(x)[0]
    dynamics = rim.first.dynamics
    dynamics.forward = lambda u, *state: type(dynamics).forward(dynamics, 2 * u, *state)  # type: ignore[method-assign]
    assert not torch.allclose(rim(x)[0], wanted)


@torch.no_grad()
@pytest.mark.parametrize("which", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_hooks_are_called(which: str, everywhere: bool) -> None:
    _, rim = pair()
    called = []

    def hook(module: nn.Module, *_: Any) -> None:
        called.append(type(module).__name__)

    if everywhere:
        handle = getattr(nn.modules.module, f"register_module_{which}_hook")(hook)
    else:
        handle = getattr(rim.first.dynamics, f"register_{which}_hook")(hook)
    try:
        with torch.enable_grad():
            rim(torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True))[0].sum().backward()
    finally:
        handle.remove()
    assert "LSTMDynamics" in called
