"""Acting, one step without gradients, equals the reference, whatever happened to the weights since the last
step."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import rims.nn.fast.single as single
from rims import RIM
from rims.nn.selection import select_active

pytestmark = pytest.mark.usefixtures("engine")

INPUT, SIZE = 5, 4
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def pair(dtype: torch.dtype = torch.float64, num_rims: int = 5, **options: Any) -> tuple[RIM, RIM]:
    """The same weights, run by the reference and by the fast path."""
    num_active = options.pop("num_active", 3)
    reference, fast = (
        RIM(INPUT, num_rims * SIZE, num_rims, num_active, dtype=dtype, backend=backend, **options)
        for backend in ("reference", "fast")
    )
    fast.load_state_dict(reference.state_dict())
    return reference, fast


def state_of(rim: RIM, batch: int, scale: float = 1.0) -> tuple[Tensor, Tensor] | Tensor:
    dtype = rim.first.dynamics.weight_hh.dtype
    h, c = (scale * torch.randn(rim.num_layers, batch, rim.hidden_size, dtype=dtype) for _ in range(2))
    return (h, c) if rim.mode == "LSTM" else h


def act(rim: RIM, x: Tensor, state: Any, **call: Any) -> list[Tensor]:
    """The output and the parts of the next state."""
    with torch.no_grad():
        y, state = rim(x, state, **call)
    return [y, *([state] if isinstance(state, Tensor) else state)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_reference(dtype: torch.dtype, data: st.DataObject) -> None:
    num_rims = data.draw(st.integers(2, 6))
    options = data.draw(
        st.fixed_dictionaries(
            {
                "cell": st.sampled_from(["lstm", "gru"]),
                "num_active": st.integers(1, num_rims),
                "num_layers": st.integers(1, 2),
                "input_heads": st.sampled_from([1, 2, 4]),
                "comm_heads": st.integers(1, 3),
                "comm_value_size": st.sampled_from([None, 3]),
                "comm_tanh": st.booleans(),
                "comm_topk": st.none() | st.integers(1, num_rims),
                "bias": st.booleans(),
            }
        )
    )
    batch = data.draw(st.sampled_from([1, 1, 2, single.MOST_ROWS]))
    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    reference, fast = pair(dtype, num_rims, **options)
    x, state = torch.randn(1, batch, INPUT, dtype=dtype), state_of(reference, batch)
    call: dict[str, Any] = {
        "disabled": data.draw(st.sampled_from([None, [0], list(range(1, num_rims))])),
        "reset": torch.rand(1, batch) < 0.5 if data.draw(st.booleans()) else None,
    }
    gaps = []

    def watch(penalty: Tensor, *args: Any) -> Tensor:
        gaps.append(min((g for g in penalty.sort(-1).values.diff().flatten().tolist() if g), default=1.0))
        return select_active(penalty, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rims.nn.cell.select_active", watch)
        patch.setattr("rims.nn.attention.select_active", watch)
        wanted = act(reference, x, state, **call)
    assume(dtype == torch.float64 or min(gaps) > 1e-6)  # nearer ones float32 may rank either way
    for a, b in zip(wanted, act(fast, x, state, **call)):
        torch.testing.assert_close(b, a, rtol=0, atol=TOLERANCE[dtype])


@settings(max_examples=100, deadline=None)
@given(
    penalty=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, torch.nan]), min_size=1, max_size=7),
    num_active=st.integers(1, 7),
    data=st.data(),
)
def test_ranks_one_row_by_the_one_rule(penalty: list[float], num_active: int, data: st.DataObject) -> None:
    ranked = torch.tensor(penalty)
    removed = st.lists(st.booleans(), min_size=len(penalty), max_size=len(penalty)).filter(
        lambda d: not all(d)
    )
    disabled = data.draw(st.none() | removed.map(torch.tensor))
    wanted = select_active(ranked[None], num_active, disabled)[0].nonzero().flatten().tolist()
    assert sorted(single.first(ranked, num_active, disabled)) == wanted


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("batch", [1, 2])
def test_inactive_rims_keep_their_state_bit_for_bit_and_arguments_stay(batch: int, cell: str) -> None:
    reference, fast = pair(cell=cell)
    x, state = torch.randn(1, batch, INPUT, dtype=torch.float64), state_of(reference, batch)
    before = copy.deepcopy((x, state))
    with torch.no_grad():
        _, _, (trace,) = reference(x, state, return_trace=True)
    asleep = ~trace.active.repeat_interleave(SIZE, dim=-1)
    y, *new = act(fast, x, state)
    torch.testing.assert_close((x, state), before, rtol=0, atol=0)
    for old, part in zip([state] if isinstance(state, Tensor) else state, new):
        assert part[asleep].equal(old[asleep])
        part.zero_()  # a state that is changed in place, as at the end of an episode, is nobody else's
    assert y.any()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_from_the_zero_state_ties_go_to_the_lower_index(cell: str) -> None:
    reference, fast = pair(torch.float32, cell=cell)
    x = torch.randn(1, 1, INPUT)
    y = act(fast, x, None)[0]
    assert y.view(5, SIZE).any(-1).tolist() == [True] * 3 + [False] * 2
    torch.testing.assert_close(y, act(reference, x, None)[0])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("where", ["x", "one RIM"])
def test_nan_is_where_the_reference_has_it(where: str, cell: str) -> None:
    reference, fast = pair(cell=cell)
    x, state = torch.randn(1, 1, INPUT, dtype=torch.float64), state_of(reference, 1)
    (x if where == "x" else state if isinstance(state, Tensor) else state[0])[0, 0, 1] = torch.nan
    wanted = act(reference, x, state)
    assert wanted[0].isnan().any()
    torch.testing.assert_close(act(fast, x, state), wanted, equal_nan=True)


def in_place(rim: RIM) -> None:
    with torch.no_grad():
        for weight in rim.parameters():
            weight.mul_(1.5)


def through_data(rim: RIM) -> None:
    """As target networks are often updated; it leaves no mark on the tensor."""
    for weight in rim.parameters():
        weight.data.mul_(1.5)


def through_numpy(rim: RIM) -> None:
    """As another process does that shares the memory."""
    for weight in rim.parameters():
        array = weight.detach().numpy()
        array *= 1.5


def optimiser(rim: RIM) -> None:
    adam = torch.optim.Adam(rim.parameters(), lr=0.3)
    rim(torch.ones(2, 1, INPUT, dtype=torch.float64))[0].square().sum().backward()
    adam.step()


def load(rim: RIM) -> None:
    rim.load_state_dict({name: 1.5 * weight for name, weight in rim.state_dict().items()})


def assign(rim: RIM) -> None:
    rim.load_state_dict({name: 1.5 * weight for name, weight in rim.state_dict().items()}, assign=True)


def replace(rim: RIM) -> None:
    for module in rim.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(1.5 * weight.detach()))


def to_float32(rim: RIM) -> None:
    rim.float()


@pytest.mark.parametrize(
    "change", [in_place, through_data, through_numpy, optimiser, load, assign, replace, to_float32]
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_change_of_a_weight_is_seen_at_once(
    batch: int, cell: str, change: Callable[[RIM], None]
) -> None:
    _, fast = pair(cell=cell)
    x, state = torch.randn(1, batch, INPUT, dtype=torch.float64), state_of(fast, batch)
    before = act(fast, x, state)[0]
    change(fast)
    dtype = fast.first.dynamics.weight_hh.dtype
    x, state = (
        x.to(dtype),
        state.to(dtype) if isinstance(state, Tensor) else tuple(s.to(dtype) for s in state),
    )
    after = act(fast, x, state)
    assert dtype == torch.float32 or not after[0].equal(before)
    reference = RIM(INPUT, 5 * SIZE, 5, 3, cell=cell, dtype=dtype, backend="reference")
    reference.load_state_dict(fast.state_dict())
    for a, b in zip(act(reference, x, state), after):
        torch.testing.assert_close(b, a, rtol=0, atol=TOLERANCE[dtype])


def test_acting_leaves_no_mark_on_the_layer() -> None:
    _, fast = pair()
    x = torch.randn(1, 1, INPUT, dtype=torch.float64)

    def saved() -> bytes:
        buffer = io.BytesIO()
        torch.save(fast.state_dict(), buffer)
        return buffer.getvalue()

    before, attributes = saved(), {name: set(vars(part)) for name, part in fast.named_modules()}
    y = act(fast, x, None)[0]
    assert saved() == before
    assert {name: set(vars(part)) for name, part in fast.named_modules()} == attributes
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        in_place(twin)
        assert act(fast, x, None)[0].equal(y)
        assert not act(twin, x, None)[0].equal(y)
