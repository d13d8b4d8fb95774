"""RIM behaves as torch.nn.LSTM does: calls, shapes, packing, directions, layers, dropout, states."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from rims import RIM

SIZES = {"input_size": 5, "hidden_size": 24}
KINDS = [("lstm", nn.LSTM), ("gru", nn.GRU)]
per_kind = pytest.mark.parametrize(("cell", "torch_layer"), KINDS)


def shapes(result) -> list[torch.Size]:
    """Shapes of everything in a (nested) result."""
    if isinstance(result, nn.utils.rnn.PackedSequence):
        return [result.data.shape, result.batch_sizes.tolist(), result.sorted_indices.tolist()]
    if isinstance(result, torch.Tensor):
        return [result.shape]
    return [shape for part in result for shape in shapes(part)]


@per_kind
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batched", [True, False])
def test_same_shapes_as_torch(cell, torch_layer, num_layers, bidirectional, batch_first, batched) -> None:
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "batch_first": batch_first}
    rim, layer = RIM(**SIZES, **options, cell=cell), torch_layer(**SIZES, **options)
    x = torch.randn(7, 3, 5) if batched else torch.randn(7, 5)
    assert shapes(rim(x)) == shapes(layer(x))
    state = layer(x)[1]
    assert shapes(rim(x, state)) == shapes(layer(x, state))


@per_kind
def test_packed_sequences_keep_order_and_indices_as_torch_does(cell, torch_layer) -> None:
    packed = nn.utils.rnn.pack_sequence([torch.randn(n, 5) for n in (2, 6, 4)], enforce_sorted=False)
    rim, layer = RIM(**SIZES, cell=cell), torch_layer(**SIZES)
    assert shapes(rim(packed)) == shapes(layer(packed))
    state = rim(packed)[1]
    assert shapes(rim(packed, state)) == shapes(layer(packed, state))
    sorted_already = nn.utils.rnn.pack_sequence([torch.randn(n, 5) for n in (6, 4, 2)])
    y, _ = rim(sorted_already)
    assert y.sorted_indices is None
    assert torch.equal(y.batch_sizes, sorted_already.batch_sizes)


def test_packed_rows_get_their_own_state_in_the_order_given() -> None:
    rim = RIM(**SIZES).double()
    sequences = [torch.randn(n, 5, dtype=torch.float64) for n in (2, 6, 4)]
    h0, c0 = (torch.randn(1, 3, 24, dtype=torch.float64) for _ in range(2))
    _, (h, _) = rim(nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False), (h0, c0))
    for b, sequence in enumerate(sequences):
        torch.testing.assert_close(h[:, b], rim(sequence, (h0[:, b], c0[:, b]))[1][0])


def test_batch_first_and_unbatched_are_the_same_numbers() -> None:
    rim = RIM(**SIZES, num_layers=2)
    other = copy.deepcopy(rim)
    other.batch_first = True
    x, reset = torch.randn(7, 3, 5), torch.rand(7, 3) < 0.3
    y, _ = rim(x, reset=reset)
    torch.testing.assert_close(other(x.transpose(0, 1), reset=reset.T)[0].transpose(0, 1), y)
    for b in range(3):
        torch.testing.assert_close(rim(x[:, b], reset=reset[:, b])[0], y[:, b])
        torch.testing.assert_close(other(x[:, b], reset=reset[:, b])[0], y[:, b])


def test_the_backward_direction_is_the_forward_one_on_the_reversed_sequence() -> None:
    rim = RIM(**SIZES, bidirectional=True)
    ahead = RIM(**SIZES)
    ahead.cells[0].load_state_dict(rim.cells[1].state_dict())
    x = torch.randn(7, 3, 5)
    y, (h, _) = rim(x)
    backwards, (h_ahead, _) = ahead(x.flip(0))
    torch.testing.assert_close(y[..., 24:], backwards.flip(0))
    torch.testing.assert_close(h[1], h_ahead[0])


def test_a_reset_separates_two_sequences_in_both_directions() -> None:
    rim = RIM(**SIZES, bidirectional=True, num_layers=2)
    first, second = torch.randn(4, 3, 5), torch.randn(5, 3, 5)
    reset = torch.zeros(9, 3, dtype=torch.bool)
    reset[4] = True
    joined, _ = rim(torch.cat([first, second]), reset=reset)
    torch.testing.assert_close(joined, torch.cat([rim(first)[0], rim(second)[0]]))


def test_a_reset_before_step_0_discards_the_given_state() -> None:
    rim = RIM(**SIZES)
    x, state = torch.randn(4, 2, 5), (torch.randn(1, 2, 24), torch.randn(1, 2, 24))
    reset = torch.zeros(4, 2, dtype=torch.bool)
    reset[0, 0] = True
    y, _ = rim(x, state, reset=reset)
    torch.testing.assert_close(y[:, 0], rim(x)[0][:, 0])
    torch.testing.assert_close(y[:, 1], rim(x, state)[0][:, 1])


def test_chunks_of_time_join_to_the_whole() -> None:
    rim = RIM(**SIZES, num_layers=2, cell="gru")
    x = torch.randn(9, 2, 5)
    whole, last = rim(x)
    start, state = rim(x[:4])
    end, state = rim(x[4:], state)
    torch.testing.assert_close(torch.cat([start, end]), whole)
    torch.testing.assert_close(state, last)


def test_dropout_between_layers_only_and_only_in_training() -> None:
    with pytest.warns(UserWarning, match="no effect"):
        single = RIM(**SIZES, dropout=0.5)
    x = torch.randn(6, 2, 5)
    assert torch.equal(single(x)[0], single(x)[0])
    rim = RIM(**SIZES, num_layers=2, dropout=0.5)
    assert not torch.equal(rim(x)[0], rim(x)[0])
    assert (rim(x)[0] != 0).any()
    rim.eval()
    assert torch.equal(rim(x)[0], rim(x)[0])


def test_drop_in_for_a_model_written_for_nn_lstm() -> None:
    class Tagger(nn.Module):
        def __init__(self, layer: type[nn.Module]) -> None:
            super().__init__()
            self.rnn = layer(5, 24, num_layers=2, batch_first=True, dropout=0.1, bidirectional=True)
            self.head = nn.Linear(48, 3)

        def forward(self, x, lengths):
            self.rnn.flatten_parameters()
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            y, (_h, _c) = self.rnn(packed)
            return self.head(nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0])

    x, lengths = torch.randn(3, 6, 5), torch.tensor([4, 6, 2])
    for layer in (nn.LSTM, RIM):
        model = Tagger(layer)
        model(x, lengths).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_constructor_words_are_those_of_nn_lstm() -> None:
    ours = inspect.signature(RIM).parameters
    theirs = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
    assert {name: ours[name].default for name in theirs} == theirs
    assert {"device", "dtype"} <= set(ours)


def test_slots_and_masks() -> None:
    rim = RIM(**SIZES, inputs="slots", num_layers=2)
    x = torch.randn(4, 3, 7, 5)
    mask = torch.rand(4, 3, 7) < 0.5
    y, _, traces = rim(x, mask=mask, return_trace=True)
    assert traces[0].input_attention.shape == (4, 3, 1, 6, 8)
    assert traces[1].input_attention.shape == (4, 3, 1, 6, 2)
    assert not traces[0].input_attention[..., 1:].masked_select(~mask[:, :, None, None]).any()
    x[~mask] = torch.nan  # what is absent does not matter
    assert torch.equal(rim(x, mask=mask)[0], y)
    # the order of the slots does not matter either
    order = torch.randperm(7)
    torch.testing.assert_close(rim(x[:, :, order], mask=mask[:, :, order])[0], y)
    # and a RIM that sees nothing attends to null alone
    _, _, (trace, _) = rim(x, mask=torch.zeros_like(mask), return_trace=True)
    assert (trace.input_attention[..., 0] == 1).all()


def test_private_inputs_reach_their_own_rim_alone() -> None:
    rim = RIM(**SIZES, num_active=6, inputs="private", communication=False)
    x = torch.randn(4, 2, 6, 5)
    y, _ = rim(x)
    x[:, :, 3] += 1.0
    difference = (rim(x)[0] - y).abs().amax((0, 1)).view(6, 4).amax(-1)
    assert difference[3] > 0
    assert not difference[[0, 1, 2, 4, 5]].any()


def test_lesioned_rims_are_never_active_nor_heard() -> None:
    rim = RIM(**SIZES, num_layers=2)
    x = torch.randn(5, 3, 5)
    y, _, traces = rim(x, disabled=[0, 4], return_trace=True)
    for trace in traces:
        assert not trace.active[..., [0, 4]].any()
        assert (trace.active.sum(-1) == 4).all()
        assert not trace.communication[..., [0, 4]].any()
    assert not y.view(5, 3, 6, 4)[..., [0, 4], :].any()
    # their weights are of no account any more
    with torch.no_grad():
        for cell in rim.cells:
            cell.communication.value[[0, 4]] += 1.0
            cell.dynamics.weight_hh[[0, 4]] += 1.0
    assert torch.equal(rim(x, disabled=[0, 4])[0], y)
    assert torch.equal(rim(x, disabled=[])[1][0], rim(x)[1][0])


def test_fewer_rims_left_than_num_active() -> None:
    _, _, (trace,) = RIM(**SIZES)(torch.randn(5, 3, 5), disabled=[0, 1, 2], return_trace=True)
    assert (trace.active == torch.tensor([False] * 3 + [True] * 3)).all()


def test_the_trace_says_what_happened() -> None:
    rim = RIM(**SIZES, input_heads=2, comm_heads=3, comm_topk=2)
    _, _, (trace,) = rim(torch.randn(5, 3, 5), return_trace=True)
    assert trace.active.shape == (5, 3, 6)
    assert trace.input_attention.shape == (5, 3, 2, 6, 2)
    assert trace.communication.shape == (5, 3, 3, 6, 6)
    torch.testing.assert_close(trace.input_attention.sum(-1), torch.ones(5, 3, 2, 6))
    heard = trace.communication.sum(-1)
    torch.testing.assert_close(heard, trace.active[:, :, None].expand_as(heard).float())
    assert ((trace.communication > 0).sum(-1) <= 2).all()
    silent = RIM(**SIZES, num_active=6, input_attention=False, communication=False)
    _, _, (trace,) = silent(torch.randn(5, 3, 5), return_trace=True)
    assert trace.input_attention is None
    assert trace.communication is None


def test_a_trace_prints_its_shapes() -> None:
    deaf = RIM(**SIZES, num_active=6, input_attention=False)
    _, _, (trace,) = deaf(torch.randn(5, 3, 5), return_trace=True)
    fields = "active=bool[5, 3, 6], input_attention=None, communication=float32[5, 3, 4, 6, 6]"
    assert repr(trace) == f"Trace({fields})"


def test_a_printed_layer_says_its_sizes() -> None:
    printed = repr(RIM(8, 24, input_heads=2, comm_topk=3))
    assert "InputAttention(8, 4, num_rims=6, heads=2, key_size=64, value_size=8)" in printed
    assert "LSTMDynamics(16, 4, num_rims=6)" in printed
    assert "4, num_rims=6, heads=4, key_size=32, value_size=32, topk=3\n" in printed


def test_padding_leaves_no_trace_of_activity() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.randn(n, 5) for n in (6, 2)])
    _, _, (trace,) = RIM(**SIZES)(packed, return_trace=True)
    assert trace.active[:, 1].any(-1).tolist() == [True] * 2 + [False] * 4


def test_autocast_keeps_a_float32_state() -> None:
    rim = RIM(**SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        y, (h, c) = rim(torch.randn(5, 3, 5))
    assert {h.dtype, c.dtype, y.dtype} == {torch.float32}
    y.sum().backward()
    torch.testing.assert_close(y, rim(torch.randn(5, 3, 5))[0], rtol=0, atol=2.0)


def test_bfloat16_weights_and_copies() -> None:
    rim = RIM(**SIZES).to(torch.bfloat16)
    y, _ = rim(torch.randn(5, 3, 5, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    again = pickle.loads(pickle.dumps(rim))
    assert torch.equal(again.first.dynamics.weight_ih, rim.first.dynamics.weight_ih)


def test_repr_names_what_is_not_default() -> None:
    text = repr(RIM(**SIZES, cell="gru", variant="official", bidirectional=True))
    assert "5, 24, num_rims=6, num_active=4, cell='gru', variant='official', bidirectional=True" in text


@pytest.mark.parametrize("selection", ["null", "competition"])
@pytest.mark.parametrize("inputs", ["slots", "private"])
def test_rows_that_see_nothing_have_finite_gradients(selection, inputs) -> None:
    rim = RIM(**SIZES, inputs=inputs, selection=selection)
    mask = torch.rand(4, 3, 6) < 0.5
    mask[:, 1] = False
    y, _ = rim(torch.randn(4, 3, 6, 5), mask=mask, disabled=[2])
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in rim.parameters())
