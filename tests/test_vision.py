"""Frames to what a core reads, and back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rims import vision
from rims.tasks import Frames
from rims.vision import FrameDecoder, FrameEncoder, SlotEncoder, StripEncoder, UpsampledConv

FRAMES = Frames(16, 24, channels=2)
CHANNELS = (3, 4, 5)
ENCODERS = {
    "vector": (lambda: FrameEncoder(FRAMES, 7, CHANNELS), (7,)),
    "slots": (lambda: SlotEncoder(FRAMES, 7, CHANNELS), (6, 7)),
    "private": (lambda: StripEncoder(FRAMES, 7, 3, CHANNELS), (3, 7)),
}


def frames(steps: int = 4, batch: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (steps, batch, 2, 16, 24), dtype=torch.uint8)


@pytest.mark.parametrize("kind", ENCODERS)
def test_all_frames_at_once_are_each_frame_by_itself(kind, monkeypatch) -> None:
    make, shape = ENCODERS[kind]
    encoder, x = make().double(), frames()
    found = encoder(x)
    assert found.shape == (4, 3, *shape)
    assert found.dtype == torch.float64
    for t in range(4):
        for b in range(3):
            torch.testing.assert_close(encoder(x[t : t + 1, b : b + 1])[0, 0], found[t, b])
    torch.testing.assert_close(encoder(x.double() / 255), found)
    monkeypatch.setattr(vision, "FRAMES_AT_ONCE", 5)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), found)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_parameter_is_live(kind) -> None:
    make, _ = ENCODERS[kind]
    encoder, decoder = make(), FrameDecoder(7, FRAMES, 6, CHANNELS)
    x = encoder(frames())
    logits = decoder(x if kind == "vector" else x[:, :, 1])
    assert logits.shape == (4, 3, 2, 16, 24)
    (logits.square().sum() + (x * torch.randn_like(x)).sum()).backward()
    for module in (encoder, decoder):
        for name, p in module.named_parameters():
            assert p.grad is not None, name
            assert p.grad.any(), name


def test_layers_are_those_of_rnem() -> None:
    """By hand, and by the sizes of the weights that the published network has at 64 x 64."""
    encoder = FrameEncoder(FRAMES, 7, CHANNELS).double()
    x = frames(1, 1)
    y = x[0].double() / 255
    for conv, norm in zip(encoder.maps[::3], encoder.maps[2::3]):
        y = F.elu(F.conv2d(y, conv.weight, conv.bias, stride=2, padding=1))
        y = (y - y.mean()) / (y.var(correction=0) + 1e-5).sqrt()
        with torch.no_grad():
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
        y = y * norm.weight[:, None, None] + norm.bias[:, None, None]
    y = F.elu(encoder.out[0](y.flatten()))
    torch.testing.assert_close(encoder(x)[0, 0], F.layer_norm(y, (7,)))

    paper = Frames(64, 64)
    sizes = [tuple(p.shape) for p in FrameEncoder(paper, 512).parameters() if p.dim() > 1]
    assert sizes == [(16, 1, 4, 4), (32, 16, 4, 4), (64, 32, 4, 4), (512, 8 * 8 * 64)]
    sizes = [tuple(p.shape) for p in FrameDecoder(250, paper).parameters() if p.dim() > 1]
    assert sizes == [(512, 250), (8 * 8 * 64, 512), (32, 64, 4, 4), (16, 32, 4, 4), (1, 16, 4, 4)]


@pytest.mark.parametrize("channels", [1, 3, 4])  # the first two as a frame has
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)])
def test_an_upsampled_convolution_is_what_it_says(size, channels) -> None:
    layer = UpsampledConv(2, channels).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    big = F.pad(F.interpolate(x, scale_factor=2, mode="nearest"), (1, 2, 1, 2))
    expected = F.conv2d(big, layer.weight, layer.bias)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    weights, start = [x, *layer.parameters()], torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, weights, start), torch.autograd.grad(expected, weights, start)
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("strips", "heights"), [(1, [16]), (3, [6, 5, 5]), (6, [3, 3, 2, 3, 3, 2]), (16, [1] * 16)]
)
def test_an_encoder_of_a_strip_sees_its_rows_alone(strips, heights) -> None:
    encoder = StripEncoder(FRAMES, 4, strips, (1, 2, 2))
    assert encoder.masks.sum((1, 2)).tolist() == heights
    assert (encoder.masks.sum(0) == 1).all()
    x = frames(1, 1)
    before, row = encoder(x)[0, 0], 0
    for strip, height in enumerate(heights):
        changed = x.clone()
        changed[..., row : row + height, :] = 255 - changed[..., row : row + height, :]
        row += height
        same = (encoder(changed)[0, 0] == before).all(-1)
        assert same.tolist() == [other != strip for other in range(strips)]


def test_slots_are_positions_and_know_their_place() -> None:
    encoder = SlotEncoder(FRAMES, 7, CHANNELS)
    assert encoder.slots == 6
    flat = encoder(torch.zeros(1, 1, 2, 16, 24))[0, 0]
    assert torch.pdist(flat).min() > 0.1
    with torch.no_grad():
        encoder.position.zero_()
    x = torch.rand(1, 1, 2, 16, 24)
    maps = encoder.maps(x[0])[0]
    one = encoder.out(maps[:, 1, 2])  # row 1, column 2 of 2 x 3
    torch.testing.assert_close(encoder(x)[0, 0, 5], one)


@pytest.mark.without_shape_checks
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: FrameEncoder(Frames(16, 20), 7),
            "frames are 16 x 20; expected multiples of 8 on both sides",
        ),
        (lambda: SlotEncoder(Frames(4, 16), 7), "frames are 4 x 16; expected multiples of 8"),
        (lambda: FrameDecoder(7, Frames(0, 16)), "frames are 0 x 16; expected multiples of 8"),
        (lambda: FrameEncoder(FRAMES, 7, (3, 0, 5)), r"channels\[1\] is 0; expected at least 1"),
        (lambda: StripEncoder(FRAMES, 7, 17), "strips are 17; expected 1 to 16, the rows of a frame"),
    ],
)
def test_wrong_sizes(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
