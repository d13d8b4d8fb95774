"""The Transformer core against loops over its equations, one step at a time, and finite differences; its
cache over windows, resets and NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from rims.cores import TransformerConfig, TransformerCore
from rims.cores.transformer import TransformerState

POSITIONS = ["rotary", "sinusoidal", "none"]


def small(**options) -> TransformerCore:
    return TransformerConfig(
        **{"num_layers": 2, "num_heads": 2, "head_pairs": 2, "window": 16, **options}
    ).build(3)


# --- loops over the equations, in NumPy: an episode is a list of what was seen ---


def layer_norm(v, weight, bias):
    return (v - v.mean()) / np.sqrt(v.var() + 1e-5) * weight + bias


def gelu(v):
    return np.array([a / 2 * (1 + math.erf(a / math.sqrt(2))) for a in v])


def turned(v, position):
    """Pair i of the head ``v`` turned by position / 10000^(i / pairs)."""
    pairs = len(v) // 2
    out = np.empty_like(v)
    for i in range(pairs):
        angle = position / 10_000 ** (i / pairs)
        a, b = v[i], v[i + pairs]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + pairs] = b * math.cos(angle) + a * math.sin(angle)
    return out


def numpy_step(config, w, x, episode):
    """One row: the output after the input ``x [I]``. ``episode`` holds a list of (key, value) for each layer,
    from the episode's first step on, and is extended."""
    H, D = config.num_heads, 2 * config.head_pairs
    position = len(episode[0])
    h = w["input.weight"] @ x + w["input.bias"]
    if config.positions == "sinusoidal":
        waves = [position / 10_000 ** (i / (H * D // 2)) for i in range(H * D // 2)]
        h = h + np.array([math.sin(a) for a in waves] + [math.cos(a) for a in waves])
    for n, seen in enumerate(episode):
        p = f"layers.{n}."
        normed = layer_norm(h, w[p + "attention_norm.weight"], w[p + "attention_norm.bias"])
        query = w[p + "query.weight"] @ normed
        key_value = w[p + "key_value.weight"] @ normed
        seen.append((key_value[: H * D], key_value[H * D :]))
        earliest = max(0, position - config.window)
        heard = []
        for a in range(H):
            part = slice(a * D, (a + 1) * D)
            scores, values = [], []
            for at in range(earliest, position + 1):
                q, k = query[part], seen[at][0][part]
                if config.positions == "rotary":
                    q, k = turned(q, position), turned(k, at)
                scores.append(q @ k / math.sqrt(D))
                values.append(seen[at][1][part])
            weights = np.exp(np.array(scores) - max(scores))
            heard.append(weights / weights.sum() @ np.array(values))
        h = h + w[p + "out.weight"] @ np.concatenate(heard) + w[p + "out.bias"]
        normed = layer_norm(h, w[p + "mlp_norm.weight"], w[p + "mlp_norm.bias"])
        inner = gelu(w[p + "mlp.0.weight"] @ normed + w[p + "mlp.0.bias"])
        h = h + w[p + "mlp.2.weight"] @ inner + w[p + "mlp.2.bias"]
    return layer_norm(h, w["norm.weight"], w["norm.bias"])


@settings(max_examples=60, deadline=None)
@given(
    config=st.builds(
        TransformerConfig,
        num_layers=st.integers(1, 3),
        num_heads=st.integers(1, 3),
        head_pairs=st.integers(1, 3),
        mlp_ratio=st.integers(1, 2),
        window=st.integers(1, 7),
        positions=st.sampled_from(POSITIONS),
    ),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    rate=st.sampled_from([None, 0.0, 0.1, 0.4]),
    seed=st.integers(0, 999),
)
def test_equals_loops_over_the_equations(config, chunks, rate, seed) -> None:
    """Chunks of any lengths, windows shorter and longer than they are, resets anywhere."""
    torch.manual_seed(seed)
    core = config.build(3).double()
    with torch.no_grad():
        for p in core.parameters():
            p.copy_(torch.randn_like(p))
    w = {name: p.detach().numpy() for name, p in core.named_parameters()}
    steps = sum(chunks)
    x = torch.randn(steps, 2, 3, dtype=torch.float64)
    reset = None if rate is None else torch.rand(steps, 2) < rate
    state, outputs = None, []
    for start, length in zip(np.cumsum([0, *chunks]), chunks):
        part = slice(start, start + length)
        output, state = core(x[part], state, None if reset is None else reset[part])
        outputs.append(output)
    outputs = torch.cat(outputs).detach().numpy()
    for b in range(2):
        episode = [[] for _ in core.layers]
        for t in range(steps):
            if reset is not None and reset[t, b]:
                episode = [[] for _ in core.layers]
            expected = numpy_step(config, w, x[t, b].numpy(), episode)
            np.testing.assert_allclose(outputs[t, b], expected, rtol=0, atol=1e-10)
        assert state.age[b] == len(episode[0])
        for n, seen in enumerate(episode):
            entries = np.array([np.concatenate(entry) for entry in seen[-config.window :]])
            cache = state.cache[b, n].detach().numpy()
            np.testing.assert_allclose(cache[-len(entries) :], entries, rtol=0, atol=1e-10)
            assert not cache[: -len(entries)].any()


@pytest.mark.parametrize("positions", POSITIONS)
def test_gradcheck(positions: str) -> None:
    """In the input, the cache and every parameter, with a reset and more steps than the window."""
    core = small(positions=positions, window=2, head_pairs=1).double()
    names = [name for name, _ in core.named_parameters()]
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    cache = torch.randn(2, 2, 2, 8, dtype=torch.float64, requires_grad=True)
    age = torch.tensor([1.0, 5.0], dtype=torch.float64)
    reset = torch.tensor([[False, False], [False, True], [False, False]])

    def run(x, cache, *values):
        call = (x, TransformerState(cache, age), reset)
        output, state = torch.func.functional_call(core, dict(zip(names, values)), call)
        return output, state.cache

    assert torch.autograd.gradcheck(run, (x, cache, *core.parameters()), fast_mode=True)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("window", [5, 64])
def test_acting_equals_the_sequence_in_float32(positions: str, window: int) -> None:
    core = TransformerConfig(num_layers=3, head_pairs=4, window=window, positions=positions).build(7)
    x, reset = torch.randn(40, 4, 7), torch.rand(40, 4) < 0.05
    whole, _ = core(x, reset=reset)
    state = core.initial_state(4)
    for t in range(40):
        output, state = core(x[t : t + 1], state, reset[t : t + 1])
        torch.testing.assert_close(output[0], whole[t], rtol=0, atol=1e-5)


# --- what is seen ---


def reach(core: TransformerCore, steps: int, chunk: int) -> list[int]:
    """The steps whose input has a gradient from the last output."""
    x = torch.randn(steps, 1, 3, dtype=torch.float64, requires_grad=True)
    state = None
    for part in x.split(chunk):
        output, state = core(part, state)
    (gradient,) = torch.autograd.grad(output[-1].square().sum() + output[-1, 0, 0], x)
    return gradient.abs().sum(dim=(1, 2)).nonzero().flatten().tolist()


@pytest.mark.parametrize("chunk", [1, 4, 30])
@pytest.mark.parametrize(("layers", "window"), [(1, 1), (1, 4), (2, 3)])
def test_the_window_is_what_is_seen_and_no_more(layers: int, window: int, chunk: int) -> None:
    core = small(num_layers=layers, window=window).double()
    assert reach(core, 30, chunk) == list(range(30 - layers * window - 1, 30))


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_future_is_not_seen(positions: str) -> None:
    core = small(positions=positions).double()
    x = torch.randn(8, 1, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(core(x)[0][4].square().sum(), x)
    assert gradient[:5].flatten(1).any(dim=1).all()
    assert not gradient[5:].any()


@pytest.mark.parametrize(
    ("positions", "order_matters", "age_matters"),
    [("rotary", True, False), ("sinusoidal", True, True), ("none", False, False)],
)
def test_what_positions_tell(positions: str, order_matters: bool, age_matters: bool) -> None:
    """One layer: past steps swapped; and steps beyond the window in front, which only make the episode
    older."""
    core = small(num_layers=1, window=5, positions=positions).double()
    x = torch.randn(6, 1, 3, dtype=torch.float64)

    def same(output: torch.Tensor) -> bool:
        return torch.allclose(output[-1], core(x)[0][-1], rtol=0, atol=1e-12)

    swapped, _ = core(x[[2, 0, 1, 4, 3, 5]])
    assert same(swapped) != order_matters
    older, _ = core(torch.cat([torch.randn(30, 1, 3, dtype=torch.float64), x]))
    assert same(older) != age_matters


def test_training_is_plain_causal_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without state, or from a fresh one, and without resets after the first step; otherwise masks."""
    seen = []
    plain = functional.scaled_dot_product_attention

    def watch(q, k, v, mask=None, *, is_causal=False):
        seen.append((is_causal, tuple(q.shape[2:3] + k.shape[2:3])))
        return plain(q, k, v, mask, is_causal=is_causal)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watch)
    core = small(num_layers=1)
    x, reset = torch.randn(10, 2, 3), torch.zeros(10, 2, dtype=torch.bool)
    fresh = core.initial_state(2)
    _, used = core(x)
    core(x, fresh)
    core(x, reset=reset)
    reset[0] = True
    core(x, used, reset)
    assert seen == [(True, (10, 10))] * 4
    seen.clear()
    core(x[:1], used)  # the part of the cache that is in use
    core(x[:1], core(x, used)[1])
    assert [s[1] for s in seen] == [(1, 11), (10, 20), (1, 17)]
    assert not any(is_causal for is_causal, _ in seen)


def test_the_first_state_takes_no_memory() -> None:
    core = small(window=1024)
    assert core.initial_state(8).cache.untyped_storage().nbytes() <= 8
    assert core(torch.randn(1, 8, 3))[1].cache.shape == core.initial_state(8).cache.shape


# --- NaN, resets, ages ---


def test_nan_does_not_reach_back_nor_over_a_reset_nor_beyond_the_window() -> None:
    core = small(num_layers=1, window=4).double()
    x = torch.randn(14, 3, 3, dtype=torch.float64)
    clean, _ = core(x)
    for value in (torch.nan, torch.inf):
        broken = x.clone()
        broken[3, 1] = value
        output, _ = core(broken)
        assert output[3:8, 1].isnan().all()
        untouched = torch.ones(14, 3, dtype=torch.bool)
        untouched[3:8, 1] = False
        torch.testing.assert_close(output[untouched], clean[untouched], rtol=0, atol=1e-12)

    reset = torch.zeros(14, 3, dtype=torch.bool)
    reset[5, 1] = True
    expected, fresh = core(x, reset=reset)
    output, state = core(broken, reset=reset)
    assert output[3:5, 1].isnan().all()
    torch.testing.assert_close(output[5:], expected[5:], rtol=0, atol=1e-12)
    _, at_once = core(broken[:6], reset=reset[:6])
    assert at_once.cache.isfinite().all()
    torch.testing.assert_close(state.cache, fresh.cache, rtol=0, atol=1e-12)


def test_after_a_reset_the_state_is_that_of_a_fresh_row() -> None:
    for positions in POSITIONS:
        core = small(positions=positions).double()
        x = torch.randn(9, 2, 3, dtype=torch.float64)
        reset = torch.zeros(9, 2, dtype=torch.bool)
        reset[6, 0] = True
        _, state = core(x, core(x)[1], reset)
        _, fresh = core(x[6:, :1])
        assert state.age.tolist() == [3.0, 18.0]
        torch.testing.assert_close(state.cache[:1], fresh.cache, rtol=0, atol=1e-12)


def test_a_row_of_unknown_age_breaks_itself_alone() -> None:
    core = small().double()
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    cache, age = core(x)[1]
    cache, age = cache.clone(), age.clone()
    cache[0], age[0] = torch.nan, torch.nan
    output, _ = core(x, TransformerState(cache, age))
    assert output[:, 0].isnan().all()
    torch.testing.assert_close(output[:, 1:], core(x[:, 1:], core(x[:, 1:])[1])[0])


@pytest.mark.parametrize("positions", POSITIONS)
def test_half_precision_counts_steps_exactly(positions: str) -> None:
    """bfloat16 itself counts to 256."""
    core = small(positions=positions, window=8).bfloat16()
    _, state = core(torch.randn(300, 1, 3).bfloat16())
    output, state = core(torch.randn(1, 1, 3).bfloat16(), state)
    assert output.dtype == state.cache.dtype == torch.bfloat16
    assert output.isfinite().all()
    assert state.age.item() == 301


# --- sizes and errors ---


def test_parameters_state_and_flops_by_hand() -> None:
    inputs, L, H, pairs, R, W = 7, 3, 2, 5, 3, 20
    core = TransformerConfig(L, H, pairs, R, W).build(inputs)
    F = 2 * H * pairs
    layer = 3 * F * F + F * F + F + 2 * F * R * F + R * F + F + 4 * F
    assert core.num_parameters == inputs * F + F + L * layer + 2 * F
    assert core.output_size == F
    assert core.state_size == L * W * 2 * F + 1
    assert core.flops_per_step == 2 * (inputs * F + L * (4 * F * F + 2 * R * F * F + 2 * F * (W + 1)))


@pytest.mark.parametrize("option", ["num_layers", "num_heads", "head_pairs", "mlp_ratio", "window"])
def test_sizes_below_one_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"^{option} is 0; expected at least 1$"):
        small(**{option: 0})


@pytest.mark.without_shape_checks
def test_wrong_options_and_states_are_refused() -> None:
    message = r"^positions is 'learned'; expected one of 'rotary', 'sinusoidal', 'none'$"
    with pytest.raises(ValueError, match=message):
        small(positions="learned")
    message = r"^state.cache has shape \(2, 2, 8, 16\); expected \(2, 2, 16, 16\)$"
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(1, 2, 3), small(window=8).initial_state(2))
