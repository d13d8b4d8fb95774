"""The compiled passes equal the reference at sizes that fill vectors, tiles and panels and at those that do
not, on any number of threads; where they cannot be built, torch operations do their work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rims import RIM
from rims.nn.fast.native import build, function
from rims.nn.fast.native.layout import declaration

compiled = pytest.mark.skipif(build.load()[0] is None, reason=f"no compiled passes: {build.load()[1]}")


def all_of(rim: RIM, x: Tensor, reset: Tensor | None = None) -> list[Tensor]:
    """Outputs, last states and every gradient of a function of them."""
    x = x.clone().requires_grad_()
    rim.zero_grad()
    y, state = rim(x, reset=reset)
    parts = [y, *([state] if isinstance(state, Tensor) else state)]
    sum(
        (part * torch.linspace(-1, 1, part.numel(), dtype=x.dtype).view_as(part)).sum() for part in parts
    ).backward()  # type: ignore[union-attr]
    return [*parts, x.grad, *(p.grad for p in rim.parameters())]  # type: ignore[list-item]


def error(wanted: list[Tensor], given: list[Tensor]) -> float:
    return max(
        float((a - b).detach().abs().max() / a.detach().abs().max().clamp_min(1e-3))
        for a, b in zip(wanted, given)
    )


@compiled
@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    options=st.fixed_dictionaries(
        {
            "cell": st.sampled_from(["lstm", "gru"]),
            "inputs": st.sampled_from(["vector", "private"]),
            "input_heads": st.integers(1, 2),
            "input_key_size": st.sampled_from([3, 8, 17]),
            "input_value_size": st.sampled_from([5, 16, 33]),
            "communication": st.booleans(),
            "comm_heads": st.integers(1, 3),
            "comm_key_size": st.sampled_from([3, 16, 19]),
            "comm_value_size": st.sampled_from([4, 9]),
            "bias": st.booleans(),
        }
    ),
    num_rims=st.integers(1, 9),
    size=st.sampled_from([1, 7, 16, 37]),
    batch=st.sampled_from([1, 5, 13, 100]),
    data=st.data(),
)
def test_equal_at_any_size(
    options: dict[str, Any], num_rims: int, size: int, batch: int, data: st.DataObject
) -> None:
    num_active = data.draw(st.integers(1, num_rims))
    torch.manual_seed(0)
    reference, fast = (
        RIM(6, num_rims * size, num_rims, num_active, dtype=torch.float64, backend=backend, **options)
        for backend in ("reference", "fast")
    )
    fast.load_state_dict(reference.state_dict())
    x = torch.randn(3, batch, *[num_rims] * (options["inputs"] == "private"), 6, dtype=torch.float64)
    reset = torch.rand(3, batch) < 0.2
    wanted = all_of(reference, x, reset)
    assert error(wanted, all_of(fast, x, reset)) <= 1e-10
    single = all_of(fast.float(), x.float(), reset)
    moved = [(part[0].view(-1, size) != 0).any(-1) for part in (wanted, single)]
    # Of one RIM alone the gradients of queries and keys are zero, and rounding in float32.
    if num_rims > 1 and moved[0].equal(moved[1]):
        assert error(wanted, [part.double() for part in single]) <= 1e-4


@compiled
def test_more_rows_than_wait_for_one_product() -> None:
    reference, fast = (
        RIM(6, 30, 5, 3, dtype=torch.float64, backend=backend) for backend in ("reference", "fast")
    )
    fast.load_state_dict(reference.state_dict())
    x = torch.randn(20, 50, 6, dtype=torch.float64)  # 600 rows a RIM
    assert error(all_of(reference, x), all_of(fast, x)) <= 1e-10


@compiled
@pytest.mark.parametrize("steps", [1, 3])
def test_states_that_lie_otherwise_in_memory(steps: int) -> None:
    rim = RIM(6, 30, 5, 3, backend="fast", dtype=torch.float64)
    x = torch.randn(6, 4, steps, dtype=torch.float64).permute(2, 1, 0)
    turned = tuple(torch.randn(30, 4, 1, dtype=torch.float64).permute(2, 1, 0) for _ in range(2))
    straight = tuple(part.contiguous() for part in turned)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            a, b = rim(x, turned), rim(x.contiguous(), straight)
        assert all(one.equal(other) for one, other in zip((a[0], *a[1]), (b[0], *b[1])))


@compiled
def test_backward_under_autocast_is_in_full_precision() -> None:
    rim, x = RIM(6, 30, 5, 3, backend="fast"), torch.randn(4, 3, 6)
    rim(x)[0].sum().backward()
    plain = [p.grad.clone() for p in rim.parameters()]  # type: ignore[union-attr]
    rim.zero_grad()
    y, _ = rim(x)
    with torch.autocast("cpu", torch.bfloat16):
        y.sum().backward()
    assert all(p.grad is not None and p.grad.equal(wanted) for p, wanted in zip(rim.parameters(), plain))


@compiled
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_threads_give_the_same(cell: str) -> None:
    rim = RIM(6, 30, 5, 3, cell=cell, backend="fast", dtype=torch.float64)
    x, reset = torch.randn(4, 3 * function.THREAD_ROWS + 1, 6, dtype=torch.float64), torch.rand(4, 25) < 0.2
    alone = all_of(rim, x, reset)
    torch.set_num_threads(3)
    together = all_of(rim, x, reset)
    states = 3 if cell == "lstm" else 2
    assert all(a.equal(b) for a, b in zip(alone[: states + 1], together))  # and the gradient of x
    assert error(alone, together) <= 1e-12  # those of weights are summed in another order
    assert all(a.equal(b) for a, b in zip(together, all_of(rim, x, reset)))


@compiled
def test_a_row_is_the_same_to_the_last_bit_whatever_stands_beside_it() -> None:
    rim = RIM(6, 30, 5, 3, backend="fast")
    x = torch.randn(7, 20, 6)
    whole, _ = rim(x)
    for rows in ([3], [0, 19, 7], range(1, 20)):
        assert rim(x[:, [*rows]])[0].equal(whole[:, [*rows]])
    x[2, 5] = torch.nan
    y, _ = rim(x)
    others = [b for b in range(20) if b != 5]
    assert y[:, others].equal(whole[:, others])
    assert y[2:, 5].isnan().any()


@compiled
def test_gates_far_out_stay_finite() -> None:
    reference, fast = (
        RIM(6, 12, 2, 2, backend=backend, dtype=torch.float64) for backend in ("reference", "fast")
    )
    with torch.no_grad():
        for p in reference.parameters():
            p.mul_(1000)
    fast.load_state_dict(reference.state_dict())
    x = torch.randn(4, 8, 6, dtype=torch.float64)
    torch.testing.assert_close(fast(x)[0], reference(x)[0], rtol=1e-10, atol=1e-10)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No library built yet, and a quick build."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        build, "FLAGS", tuple(f for f in build.FLAGS if f != "-ftree-vectorize" and f != "-O2")
    )
    return tmp_path / "rims"


@compiled
def test_built_once_for_a_source_and_kept(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.built("cc")
    assert [*empty_cache.iterdir()] == [first]
    made = first.stat().st_mtime_ns
    assert build.built("cc") == first
    assert first.stat().st_mtime_ns == made
    monkeypatch.setattr(build, "declaration", lambda: declaration() + "/* another */")
    assert build.built("cc") != first


@compiled
@pytest.mark.parametrize(("width", "rows"), [(16, 6), (64, 12)])
def test_as_for_processors_with_other_vectors(
    width: int, rows: int, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, f"-DBYTES={width}", f"-DTILE_ROWS={rows}"))
    loaded = build.load.__wrapped__()
    monkeypatch.setattr(build, "load", lambda: loaded)
    assert loaded[0].panel_columns_f32() == width // 2
    for cell, size, batch in (("lstm", 9, 100), ("gru", 37, 23)):
        reference, fast = (
            RIM(6, 5 * size, 5, 3, cell=cell, dtype=torch.float64, backend=backend)
            for backend in ("reference", "fast")
        )
        fast.load_state_dict(reference.state_dict())
        x, reset = torch.randn(4, batch, 6, dtype=torch.float64), torch.rand(4, batch) < 0.2
        wanted = all_of(reference, x, reset)
        assert error(wanted, all_of(fast, x, reset)) <= 1e-10
        assert error(wanted, [part.double() for part in all_of(fast.float(), x.float(), reset)]) <= 1e-4
        with torch.no_grad():
            torch.testing.assert_close(fast(x[:1].float())[0], wanted[0][:1].float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("broken", ["no compiler", "a compiler that fails", "a cache that cannot be written"])
def test_without_a_library_torch_does_the_work(
    broken: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "cache" in broken:
        empty_cache.write_text("a file where the folder should be")
    else:
        monkeypatch.setenv("CC", "false" if "fails" in broken else "/nowhere/cc")
    monkeypatch.setattr(build, "load", build.load.__wrapped__)
    assert build.library() is None
    y, _ = RIM(4, 12, 3, 2, backend="fast")(torch.randn(5, 2, 4, requires_grad=True))
    y.sum().backward()
    monkeypatch.setenv("RIMS_CPU", "compiled")
    with pytest.raises(RuntimeError, match=r"RIMS_CPU is 'compiled', but there are no compiled passes: ."):
        build.library()


def test_an_unknown_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIMS_CPU", "fastest")
    with pytest.raises(ValueError, match="RIMS_CPU is 'fastest'; expected one of compiled, torch"):
        RIM(4, 12, 3, 2)(torch.randn(5, 2, 4))
