"""The fast path equals the reference loop: outputs, states, traces, active sets and every gradient."""

from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rims.nn.fast.dispatch as dispatch
import rims.nn.fast.matmul as matmul
from rims import RIM
from rims.cores.rim import RIMConfig
from rims.nn.selection import select_active
from rims.nn.sequence import How, run_cell

INPUT, RIMS, SIZE = 5, 5, 4
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}

pytestmark = pytest.mark.usefixtures("engine")

options = st.fixed_dictionaries(
    {
        "cell": st.sampled_from(["lstm", "gru"]),
        "variant": st.sampled_from(["paper", "official"]),
        "selection": st.sampled_from(["null", "competition"]),
        "inputs": st.sampled_from(["vector", "slots", "private"]),
        "input_attention": st.booleans(),
        "input_heads": st.integers(1, 2),
        "communication": st.booleans(),
        "comm_heads": st.integers(1, 3),
        "comm_tanh": st.booleans(),
        "comm_topk": st.sampled_from([None, 1, 3]),
        "comm_value_size": st.sampled_from([None, 3]),
        "bias": st.booleans(),
        "num_active": st.integers(1, RIMS),
        "num_layers": st.integers(1, 2),
        "bidirectional": st.booleans(),
    }
)
calls = st.fixed_dictionaries(
    {
        "length": st.integers(1, 5),
        "batch": st.integers(1, 4),
        "reset": st.booleans(),
        "mask": st.booleans(),
        "disabled": st.sampled_from([None, [1], [0, 3, 4]]),
        "trace": st.sampled_from(["no", "yes", "with gradient"]),
        "seed": st.integers(0, 10**6),
    }
)


def pair(dtype: torch.dtype, **options: Any) -> tuple[RIM, RIM]:
    """The same weights, run by the reference and by the fast path."""
    num_active = options.pop("num_active", 3)
    reference, fast = (
        RIM(INPUT, RIMS * SIZE, RIMS, num_active, dtype=dtype, backend=backend, **options)
        for backend in ("reference", "fast")
    )
    fast.load_state_dict(reference.state_dict())
    return reference, fast


def sample(dtype: torch.dtype, inputs: str = "vector", length: int = 4, batch: int = 3) -> Tensor:
    between = {"vector": [], "slots": [3], "private": [RIMS]}[inputs]
    return torch.randn(length, batch, *between, INPUT, dtype=dtype)


def everything(
    rim: RIM, x: Tensor, state: list[Tensor], loss_on: str = "trace", **call: Any
) -> dict[str, Tensor]:
    """All that a call gives, and all gradients of a random function of it, by name."""
    x, state = x.clone().requires_grad_(), [part.clone().requires_grad_() for part in state]
    rim.zero_grad()
    y, last, *traces = rim(x, tuple(state) if rim.mode == "LSTM" else state[0], **call)
    found = {"y": y, "h": last} if isinstance(last, Tensor) else {"y": y, "h": last[0], "c": last[1]}
    for i, trace in enumerate(traces[0] if traces else []):
        found |= {f"trace {i} {name}": part for name, part in trace._asdict().items() if part is not None}
    generator = torch.Generator().manual_seed(0)
    loss = x.new_zeros(())
    for name, part in found.items():
        weight = torch.randn(part.shape, generator=generator, dtype=torch.float64).to(x.dtype)
        if part.requires_grad and (loss_on == "trace" or "trace" not in name):
            loss = loss + (part * weight).sum()
    loss.backward()
    found |= {f"d {name}": p.grad for name, p in rim.named_parameters() if p.grad is not None}
    found |= {"dx": x.grad, "dh0": state[0].grad}
    if rim.mode == "LSTM":
        found["dc0"] = state[1].grad
    return {name: part.detach() for name, part in found.items()}


def assert_equal(wanted: dict[str, Tensor], given: dict[str, Tensor], tolerance: float) -> None:
    for name in wanted.keys() | given.keys():
        if name not in wanted or name not in given:  # a gradient that is zero may be left out
            assert not (wanted | given)[name].any(), name
            continue
        a, b = wanted[name].double(), given[name].double()
        assert a.shape == b.shape, name
        # The floor is for gradients that are zero but for rounding: a competition's only winner gets all.
        error = (a - b).abs().max() / a.abs().max().clamp_min(1e-3)
        assert error <= tolerance, f"{name}: {error:.1e}"


def build(dtype: torch.dtype, options: dict[str, Any]) -> tuple[RIM, RIM]:
    options = dict(options)
    if not options["input_attention"]:
        assume(options["inputs"] != "slots")
        options["num_active"] = RIMS
    return pair(dtype, **options)


def arguments(
    dtype: torch.dtype, rim: RIM, call: dict[str, Any]
) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
    x = sample(dtype, rim.first.inputs, call["length"], call["batch"])
    copies = rim.num_layers * rim.num_directions
    state = [torch.randn(copies, call["batch"], RIMS * SIZE, dtype=dtype) for _ in range(2)]
    return (
        x,
        state,
        {
            "reset": torch.rand(x.shape[:2]) < 0.3 if call["reset"] else None,
            "mask": torch.rand(x.shape[:-1]) < 0.7 if call["mask"] and rim.first.inputs != "vector" else None,
            "disabled": call["disabled"],
            "return_trace": call["trace"] != "no",
        },
    )


@pytest.mark.without_shape_checks
@settings(max_examples=200, deadline=None, derandomize=True, phases=[Phase.generate])
@given(options, calls)
def test_equal_in_float64(options: dict[str, Any], call: dict[str, Any]) -> None:
    torch.manual_seed(call["seed"])
    reference, fast = build(torch.float64, options)
    x, state, given = arguments(torch.float64, reference, call)
    loss_on = "trace" if call["trace"] == "with gradient" else "output"
    wanted = everything(reference, x, state, loss_on, **given)
    assert_equal(wanted, everything(fast, x, state, loss_on, **given), 1e-10)
    with torch.no_grad():  # other buffers, same numbers
        y, *_ = fast(x, tuple(state) if fast.mode == "LSTM" else state[0], **given)
    assert_equal({"y": wanted["y"]}, {"y": y}, 1e-10)


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("selection", ["null", "competition"])
@pytest.mark.parametrize("inputs", ["vector", "slots", "private"])
@pytest.mark.parametrize("disabled", [None, [1]])
def test_all_active(variant: str, selection: str, inputs: str, disabled: list[int] | None) -> None:
    """No RIM rests, or none that is not removed: the official variant has no candidates to compute."""
    torch.manual_seed(0)
    options = {"num_active": RIMS, "variant": variant, "selection": selection, "inputs": inputs}
    reference, fast = pair(torch.float64, **options)
    x, state = sample(torch.float64, inputs), [torch.randn(1, 3, RIMS * SIZE).double() for _ in range(2)]
    wanted, found = (everything(rim, x, state, disabled=disabled) for rim in (reference, fast))
    assert_equal(wanted, found, 1e-10)


class Ranking:
    """Records by how little each choice of the reference was decided."""

    def __init__(self) -> None:
        self.gap = float("inf")

    def __call__(self, penalty: Tensor, num_active: int, disabled: Tensor | None = None) -> Tensor:
        ranked = penalty if disabled is None else penalty.masked_fill(disabled, torch.inf)
        ranked = ranked.detach().sort(dim=-1).values
        if num_active < ranked.shape[-1]:
            gaps = ranked[..., num_active] - ranked[..., num_active - 1]
            gaps = gaps[gaps > 0]  # exact ties go to the lower index on both paths
            if gaps.numel():
                self.gap = min(self.gap, gaps.min().item())
        return select_active(penalty, num_active, disabled)


@settings(max_examples=20, deadline=None, derandomize=True, phases=[Phase.generate])
@given(options, calls)
def test_equal_in_float32(options: dict[str, Any], call: dict[str, Any]) -> None:
    """Where float32 can decide a ranking at all: penalties nearer than 1e-6 may be ranked either way."""
    removed = len(call["disabled"] or ())
    # A competition's only winner gets all: what float32 says of the gradient of its scores is rounding alone.
    assume(options["selection"] == "null" or min(options["num_active"], RIMS - removed) > 1)
    torch.manual_seed(call["seed"])
    reference, fast = build(torch.float32, options)
    x, state, given = arguments(torch.float32, reference, call)
    ranking = Ranking()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rims.nn.cell.select_active", ranking)
        patch.setattr("rims.nn.attention.select_active", ranking)
        wanted = everything(reference, x, state, **given)
    assume(ranking.gap > 1e-6)
    assert_equal(wanted, everything(fast, x, state, **given), 1e-4)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"comm_topk": 2}, {"input_heads": 2}])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_single_step_without_gradients(cell: str, options: dict[str, Any]) -> None:
    reference, fast = pair(torch.float64, cell=cell, num_layers=2, **options)
    x, h = sample(torch.float64, length=1), torch.randn(2, 3, RIMS * SIZE, dtype=torch.float64)
    with torch.no_grad():
        for call in ({}, {"disabled": [0, 3]}, {"reset": torch.tensor([[True, False, True]])}):
            a, b = (rim(x, (h, h.sin()) if cell == "lstm" else h, **call) for rim in (reference, fast))
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("inputs", ["vector", "slots", "private"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_padded_rows_stand_still(cell: str, inputs: str, variant: str) -> None:
    reference, fast = pair(torch.float64, cell=cell, inputs=inputs, variant=variant)
    torch.manual_seed(3)
    x = sample(torch.float64, inputs)
    valid = torch.arange(4)[:, None] < torch.tensor([4, 1, 3])
    for reverse in (False, True):
        results = []
        for run, rim in ((run_cell, reference), (dispatch.run_sequence, fast)):
            rim.zero_grad()
            h0, c0 = (torch.ones(3, RIMS * SIZE, dtype=torch.float64, requires_grad=True) for _ in range(2))
            inp = x.clone().requires_grad_()
            y, h, c, trace = run(rim.first, inp, h0, c0, How(valid=valid, reverse=reverse, return_trace=True))
            loss = y.square().sum() + h.sin().sum() + (c.cos().sum() if cell == "lstm" else 0)
            loss.backward()
            result = {"y": y, "h": h, "active": trace.active, "dx": inp.grad, "dh0": h0.grad}
            result |= {f"d {n}": p.grad for n, p in rim.first.named_parameters()}
            results.append(result | ({"c": c, "dc0": c0.grad} if cell == "lstm" else {}))
        assert_equal(*results, 1e-10)


def test_packed_sequences() -> None:
    reference, fast = pair(torch.float64, bidirectional=True, num_layers=2)
    x = sample(torch.float64)
    packed = pack_padded_sequence(x, torch.tensor([2, 4, 1]), enforce_sorted=False)
    for rim in (reference, fast):
        rim.result = [pad_packed_sequence(rim(packed)[0])[0], *rim(packed)[1]]
    for a, b in zip(reference.result, fast.result):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_equal_under_the_same_dropout(cell: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, fast = pair(torch.float64, cell=cell, variant=variant, input_dropout=0.4, comm_dropout=0.3)
    x, state = sample(torch.float64), [torch.randn(1, 3, RIMS * SIZE, dtype=torch.float64) for _ in range(2)]
    drawn = {p: torch.rand(len(x), 3 * RIMS, 16 if p == 0.4 else SIZE) >= p for p in (0.4, 0.3)}
    monkeypatch.setattr(dispatch, "dropout_mask", lambda p, *shape: (drawn[p].view(shape), 1 / (1 - p)))

    steps = dict.fromkeys(drawn, 0)

    def same_mask(module: nn.Dropout, u: Tensor) -> Tensor:
        t = steps[module.p]
        steps[module.p] = (t + 1) % len(x)
        return u * drawn[module.p][t].view(u.shape) / (1 - module.p)

    monkeypatch.setattr(nn.Dropout, "forward", same_mask)
    assert_equal(everything(reference, x, state), everything(fast, x, state), 1e-10)


def test_dropout_masks_are_drawn_at_the_right_rate() -> None:
    keep, scale = dispatch.dropout_mask(0.25, 100, 100)
    assert keep.double().mean().item() == pytest.approx(0.75, abs=0.02)
    assert scale == pytest.approx(4 / 3)
    _, fast = pair(torch.float32, input_dropout=0.5)
    x = sample(torch.float32)
    assert not fast(x)[0].equal(fast(x)[0])
    fast.eval()
    assert fast(x)[0].equal(fast(x)[0])


def test_bfloat16_autocast_is_as_near_to_float32_as_the_reference_is() -> None:
    torch.manual_seed(0)
    reference, fast = pair(torch.float32, num_active=RIMS)  # all active: half precision cannot rank
    x, state = sample(torch.float32), [torch.randn(1, 3, RIMS * SIZE) for _ in range(2)]
    exact = everything(reference, x, state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = {rim.backend: everything(rim, x, state) for rim in (reference, fast)}
    for name, wanted in exact.items():
        assert rough["fast"][name].dtype == rough["reference"][name].dtype
        errors = {
            k: (v[name].float() - wanted.float()).abs().max() / wanted.abs().max() for k, v in rough.items()
        }
        assert errors["fast"] <= max(2 * errors["reference"], 0.03), name


def test_nan_in_one_row_leaves_the_others() -> None:
    _, fast = pair(torch.float64)
    x = sample(torch.float64)
    clean = fast(x)[0]
    x[1, 1] = torch.nan
    y = fast(x)[0]
    assert y[1:, 1].isnan().any()
    assert y[:, [0, 2]].equal(clean[:, [0, 2]])


@pytest.mark.parametrize("wanted", ["x", "h", "one weight"])
def test_gradients_for_some_inputs_only(wanted: str) -> None:
    reference, fast = pair(torch.float64)
    grads = []
    for rim in (reference, fast):
        rim.requires_grad_(False)
        torch.manual_seed(1)
        x, h, c = sample(torch.float64), *(torch.ones(2, 1, 3, RIMS * SIZE, dtype=torch.float64).unbind(0))
        leaf = {"x": x, "h": h, "one weight": rim.first.communication.key}[wanted].requires_grad_()
        rim(x, (h, c))[0].square().sum().backward()
        grads.append({"leaf": leaf.grad})
    assert_equal(*grads, 1e-10)


def test_backward_twice_over_a_kept_graph() -> None:
    _, fast = pair(torch.float64)
    y, _ = fast(sample(torch.float64))
    first = torch.autograd.grad(y.sum(), fast.first.dynamics.weight_ih, retain_graph=True)[0]
    assert first.equal(torch.autograd.grad(y.sum(), fast.first.dynamics.weight_ih)[0])
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_a_changed_input_is_noticed() -> None:
    _, fast = pair(torch.float64)
    x = sample(torch.float64).requires_grad_()
    doubled = x * 2
    y, _ = fast(doubled)
    with torch.no_grad():
        doubled.zero_()
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


def test_auto_falls_back_and_fast_says_why() -> None:
    rims = {
        backend: RIM(INPUT, RIMS * SIZE, RIMS, 3, backend=backend, dtype=torch.bfloat16)
        for backend in ("auto", "fast")
    }
    x = sample(torch.bfloat16)
    rims["auto"](x)
    with pytest.raises(ValueError, match="bfloat16"):
        rims["fast"](x)
    _, fast = pair(torch.float32)
    fast.first.communication.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="a hook on a Communication"):
        fast(sample(torch.float32))
    with pytest.raises((ValueError, TypeError), match="quick"):
        RIM(INPUT, RIMS * SIZE, RIMS, backend="quick")  # type: ignore[arg-type]
    assert RIMConfig(backend="reference").build(INPUT).rim.backend == "reference"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_equal_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "onednn_wins", lambda: True)
    monkeypatch.setattr(matmul, "MANY_ROWS", 1)
    torch.manual_seed(2)
    reference, fast = pair(torch.float32, num_active=RIMS)
    x, state = sample(torch.float32, batch=20), [torch.randn(1, 20, RIMS * SIZE) for _ in range(2)]
    assert_equal(everything(reference, x, state), everything(fast, x, state), 1e-4)


def test_the_matmul_library_follows_from_the_machine_alone() -> None:
    """A resumed run repeats a run bit for bit, so no stop watch may choose."""
    first = matmul.onednn_wins()
    matmul.onednn_wins.cache_clear()
    assert matmul.onednn_wins() is first
