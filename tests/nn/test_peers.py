"""What other implementations get wrong: one test for each fault that was seen."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from rims import RIM

CELLS = ["lstm", "gru"]
VARIANTS = ["paper", "official"]
SELECTIONS = ["null", "competition"]
every_kind = pytest.mark.parametrize(
    ("cell", "variant", "selection"), list(itertools.product(CELLS, VARIANTS, SELECTIONS))
)


def small(cell: str = "lstm", variant: str = "paper", selection: str = "null", **options) -> RIM:
    return RIM(
        5,
        24,
        6,
        3,
        cell=cell,
        variant=variant,
        selection=selection,
        comm_key_size=4,
        input_key_size=8,
        **options,
    )


def state_of(rim: RIM, batch: int, scale: float = 1.0):
    h, c = (scale * torch.randn(1, batch, rim.hidden_size) for _ in range(2))
    return (h, c) if rim.mode == "LSTM" else h


@every_kind
def test_peers_inactive_rims_keep_h_and_c_bit_for_bit(cell, variant, selection) -> None:
    module = small(cell, variant, selection).first
    h, c = torch.randn(64, 24), torch.randn(64, 24)
    new_h, new_c, step = module.step(torch.randn(64, 5), h, c)
    asleep = ~step.active.repeat_interleave(4, dim=1)
    assert torch.equal(new_h[asleep], h[asleep])
    assert not torch.equal(new_h[~asleep], h[~asleep])
    assert torch.equal(new_c[asleep], c[asleep])
    if cell == "lstm":
        assert not torch.equal(new_c[~asleep], c[~asleep])


@pytest.mark.parametrize("variant", VARIANTS)
def test_peers_gradient_reaches_the_start_through_a_rim_dormant_for_50_steps(variant) -> None:
    rim = small(variant=variant)
    h0, c0 = (torch.randn(1, 2, 24).requires_grad_() for _ in range(2))
    _, (_, c) = rim(torch.randn(50, 2, 5), (h0, c0), disabled=[5])
    (gradient,) = torch.autograd.grad(c[..., 20:].sum(), c0)
    assert torch.equal(gradient[..., 20:], torch.ones(1, 2, 4))


@every_kind
def test_peers_exactly_num_active_also_at_ties(cell, variant, selection) -> None:
    rim = small(cell, variant, selection)
    for hx in (None, state_of(rim, 7)):  # from the zero state all RIMs tie
        _, _, (trace,) = rim(torch.randn(20, 7, 5), hx, return_trace=True)
        assert (trace.active.sum(-1) == 3).all()
    _, _, (trace,) = rim(torch.zeros(3, 7, 5), return_trace=True)
    assert trace.active[0].tolist() == [[True] * 3 + [False] * 3] * 7


def test_peers_null_score_and_value_are_exactly_zero() -> None:
    module = small().first
    h = torch.randn(9, 6, 4)
    read = module.input_attention(torch.zeros(9, 1, 5), h)  # an input of zeros looks just like null
    assert torch.equal(read.attention, torch.full((9, 1, 6, 2), 0.5))
    assert not read.values.any()


def test_peers_active_are_those_that_attend_least_to_null() -> None:
    rim = small(input_heads=2)
    _, _, (trace,) = rim(torch.randn(20, 7, 5), state_of(rim, 7), return_trace=True)
    null = trace.input_attention[..., 0].mean(2)  # heads are averaged after the softmax
    chosen = null.masked_fill(~trace.active, -torch.inf).max(-1).values
    left = null.masked_fill(trace.active, torch.inf).min(-1).values
    assert (chosen <= left).all()


@every_kind
def test_peers_evaluation_is_deterministic_from_a_zero_state(cell, variant, selection) -> None:
    rim = small(cell, variant, selection, input_dropout=0.5, comm_dropout=0.5)
    x = torch.randn(6, 3, 5)
    rim.train()
    assert not torch.equal(rim(x)[0], rim(x)[0])
    rim.eval()
    zeros = torch.zeros(1, 3, 24)
    first, again, given = rim(x)[0], rim(x)[0], rim(x, (zeros, zeros) if cell == "lstm" else zeros)[0]
    assert torch.equal(first, again)
    assert torch.equal(first, given)


@pytest.mark.parametrize("cell", CELLS)
def test_peers_without_communication_no_rim_influences_another(cell) -> None:
    rim = RIM(5, 24, 6, 6, cell=cell, communication=False)
    x = torch.randn(8, 3, 5)
    h = torch.randn(1, 3, 24)
    c = torch.randn(1, 3, 24)
    moved = h.clone()
    moved[..., 8:12] += 1  # RIM 2
    run = lambda h: rim(x, (h, c) if cell == "lstm" else h)[0]  # noqa: E731
    difference = (run(moved) - run(h)).abs().amax((0, 1)).view(6, 4).amax(-1)
    assert difference[2] > 0
    assert not difference[[0, 1, 3, 4, 5]].any()


def test_peers_rims_differ_at_initialisation() -> None:
    for p in small(variant="official").first.parameters():
        if p.dim() == 3:
            assert all(not torch.equal(p[i], p[j]) for i, j in itertools.combinations(range(6), 2))


@every_kind
def test_peers_every_parameter_gets_a_gradient_and_none_is_unused(cell, variant, selection) -> None:
    rim = small(cell, variant, selection)
    y, _ = rim(torch.randn(12, 8, 5))
    y.square().sum().backward()
    for name, p in rim.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


@every_kind
def test_peers_step_mode_equals_sequence_mode_resets_included(cell, variant, selection) -> None:
    rim = small(cell, variant, selection).double()
    x = torch.randn(9, 4, 5, dtype=torch.float64)
    reset = torch.rand(9, 4) < 0.3
    whole, last = rim(x, reset=reset)
    h = c = torch.zeros(4, 24, dtype=torch.float64)
    for t in range(9):
        h, c = (s.masked_fill(reset[t, :, None], 0.0) for s in (h, c))
        state = rim.first(x[t], (h, c) if cell == "lstm" else h)
        h, c = state if cell == "lstm" else (state, state)
        torch.testing.assert_close(h, whole[t], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(h, (last[0] if cell == "lstm" else last)[0], rtol=1e-12, atol=1e-12)


def test_peers_padded_equals_unpadded() -> None:
    rim = small(bidirectional=True, num_layers=2).double()
    sequences = [torch.randn(n, 5, dtype=torch.float64) for n in (3, 7, 1, 5)]
    packed, (h, c) = rim(nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False))
    padded, lengths = nn.utils.rnn.pad_packed_sequence(packed)
    assert lengths.tolist() == [3, 7, 1, 5]
    for b, sequence in enumerate(sequences):
        y, (h_alone, c_alone) = rim(sequence)
        torch.testing.assert_close(padded[: len(sequence), b], y, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(h[:, b], h_alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(c[:, b], c_alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_peers_to_moves_everything(variant) -> None:
    rim = small(variant=variant).to(torch.float64)
    y, (h, c) = rim(torch.randn(3, 2, 5, dtype=torch.float64), disabled=[1])
    assert {y.dtype, h.dtype, c.dtype} == {torch.float64}
    on_meta = small(variant=variant).to("meta")
    assert all(t.device.type == "meta" for t in (*on_meta.parameters(), *on_meta.buffers()))


@pytest.mark.parametrize("cell", CELLS)
def test_peers_parameter_count_is_the_sum_of_the_blocks(cell) -> None:
    inputs, K, D, E, V, H, C = 7, 6, 5, 64, 20, 4, 32
    gates = {"lstm": 4, "gru": 3}[cell]
    rim = RIM(inputs, K * D, K, 4, cell=cell)
    reading = inputs * E + inputs * V + K * D * E
    moving = K * gates * D * (V + D + 2)
    talking = 3 * K * D * H * C + H * C * D + D
    assert sum(p.numel() for p in rim.parameters()) == reading + moving + talking


def test_peers_official_parameter_count_is_the_live_count_of_the_released_code() -> None:
    """1,673,820 of its 8,113,620 with copying's embedding (20 x 600) and decoder (600 x 20 + 20)."""
    rim = RIM(600, 600, 6, 4, variant="official")
    assert sum(p.numel() for p in rim.parameters()) + 20 * 600 + 600 * 20 + 20 == 1_673_820


@every_kind
def test_peers_state_dict_round_trip(cell, variant, selection, tmp_path) -> None:
    rim, other = small(cell, variant, selection), small(cell, variant, selection)
    torch.save(rim.state_dict(), tmp_path / "rim.pt")
    other.load_state_dict(torch.load(tmp_path / "rim.pt", weights_only=True))
    x = torch.randn(4, 2, 5)
    assert torch.equal(rim(x)[0], other(x)[0])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_peers_all_active_without_communication_are_independent_torch_networks(cell, bias) -> None:
    rim = RIM(5, 24, 6, 6, cell=cell, bias=bias, communication=False, input_attention=False).double()
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    y, _ = rim(x)
    dynamics = rim.first.dynamics
    for k in range(6):
        alone = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](5, 4, bias=bias).double()
        with torch.no_grad():
            alone.weight_ih_l0.copy_(dynamics.weight_ih[k].T)
            alone.weight_hh_l0.copy_(dynamics.weight_hh[k].T)
            if bias:
                alone.bias_ih_l0.copy_(dynamics.bias_ih[k])
                alone.bias_hh_l0.copy_(dynamics.bias_hh[k])
        torch.testing.assert_close(y[..., 4 * k : 4 * k + 4], alone(x)[0], rtol=1e-12, atol=1e-12)


def test_peers_each_dropout_acts_where_its_name_says() -> None:
    """In a re-implementation the two are swapped."""
    x = torch.randn(6, 3, 5)

    def random(**options) -> bool:
        rim = small(**options)
        return not torch.equal(rim(x)[0], rim(x)[0])

    assert random(input_dropout=0.5, communication=False)
    assert not random(comm_dropout=0.5, communication=False)
    assert random(comm_dropout=0.5)


def test_peers_clipping_sees_live_weights_only() -> None:
    """83 % of the released code's squared gradient norm sits on weights that are zeroed before each use."""
    rim = small()
    rim(torch.randn(5, 3, 5))[0].sum().backward()
    total = nn.utils.clip_grad_norm_(rim.parameters(), 1e9)
    before = [p.detach().clone() for p in rim.parameters()]
    torch.optim.SGD(rim.parameters(), lr=0.1).step()
    moved = sum((p - q).square().sum() for p, q in zip(rim.parameters(), before)).sqrt() / 0.1
    torch.testing.assert_close(moved, total, rtol=1e-3, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_peers_what_an_inactive_rim_is_heard_with(variant) -> None:
    """Paper: with the state it keeps. Released code: with a candidate that has read the input."""
    module = small(variant=variant).first
    h, c, x = torch.randn(1, 24), torch.randn(1, 24), torch.randn(1, 5)
    *_, step = module.step(x, h, c)
    asleep = int((~step.active[0]).nonzero()[0])
    before = module.step(x, h, c)[0]
    with torch.no_grad():
        module.dynamics.weight_ih[asleep] += 1.0  # changes that RIM's candidate alone
    changed = not torch.equal(module.step(x, h, c)[0], before)
    assert changed == (variant == "official")


def test_peers_no_gradient_reaches_an_inactive_candidate_in_the_official_variant() -> None:
    module = small(variant="official").first
    h, c, _ = module.step(
        torch.randn(16, 5), torch.randn(16, 24), torch.randn(16, 24), None, torch.tensor([False] * 5 + [True])
    )
    (h.sum() + c.sum()).backward()
    assert not module.dynamics.weight_ih.grad[5].any()
    assert module.dynamics.weight_ih.grad[:5].any()


@every_kind
@pytest.mark.parametrize("backend", ["reference", "fast"])
def test_peers_one_row_never_touches_another_nan_included(cell, variant, selection, backend) -> None:
    """The fast path multiplies rows together, and rounds by how many they are: 1e-12 in float64."""
    rim = small(cell, variant, selection, backend=backend).double()
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    clean, _ = rim(x)
    x[2, 1] = torch.nan
    y, _ = rim(x)
    bound = {"rtol": 0, "atol": 0 if backend == "reference" else 1e-12}
    torch.testing.assert_close(y[:, [0, 2, 3]], clean[:, [0, 2, 3]], **bound)
    torch.testing.assert_close(y[:2, 1], clean[:2, 1], **bound)
    assert y[2:, 1].isnan().any(-1).all()
    reset = torch.zeros(6, 4, dtype=torch.bool)
    reset[3, 1] = True
    assert rim(x, reset=reset)[0][3:].isfinite().all()  # a reset clears NaN as well


COMPILE = """
import torch
from rims import RIMCell

for variant in ("paper", "official"):
    cell = RIMCell(5, 24, 6, 3, variant=variant, comm_key_size=4)
    x, h, c = torch.randn(3, 5), torch.randn(3, 24), torch.randn(3, 24)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(x, (h, c)), cell(x, (h, c))):
        torch.testing.assert_close(got, expected)
"""


def test_peers_the_step_compiles_in_one_graph() -> None:
    """In a process of its own: the tests' run-time shape checks cannot be compiled."""
    subprocess.run([sys.executable, "-c", COMPILE], check=True)
