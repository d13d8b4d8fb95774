"""From frames to what a core reads, and back: the encoder and decoder of R-NEM (van Steenkiste et al. 2018),
which the paper takes over (4.2, D.4), and their variants for cores that read slots or private inputs.

Everything here is apart from time: all frames of a sequence go through at once.

Shapes: T time, B batch, N frames (T B), C channels, H height, W width, I input size of the core, K RIMs, S
slots.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from rims.nn.checks import check_positive
from rims.tasks.base import Frames

SHRINK = 8
"""Three strides of 2."""

FRAMES_AT_ONCE = 1024
"""Where no gradient is kept, more frames than this go through in pieces: the maps of a test batch would take
gigabytes."""


FEW = 3
"""Channels of a frame, for which :class:`UpsampledConv` has a form of its own."""


def check_frames(frames: Frames, channels: tuple[int, int, int]) -> None:
    """Raise ValueError unless three strides of 2 divide both sides."""
    check_positive(**{f"channels[{i}]": number for i, number in enumerate(channels)})
    if frames.height < SHRINK or frames.height % SHRINK or frames.width < SHRINK or frames.width % SHRINK:
        raise ValueError(
            f"frames are {frames.height} x {frames.width}; expected multiples of {SHRINK} on both sides"
        )


def norm(channels: int) -> nn.GroupNorm:
    """Layer normalisation of a map as R-NEM has it (TensorFlow's): over channels and positions together, with
    a gain and a shift for each channel."""
    return nn.GroupNorm(1, channels)


def feature_maps(frames: Frames, channels: tuple[int, int, int]) -> nn.Sequential:
    """Three times: convolution 4 x 4 with stride 2, ELU, layer norm. ``[N, C, H, W]`` to
    ``[N, channels[-1], H / 8, W / 8]``."""
    layers: list[nn.Module] = []
    for before, after in zip((frames.channels, *channels), channels):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ELU(), norm(after)]
    return nn.Sequential(*layers)


def in_pieces(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, in pieces of :data:`FRAMES_AT_ONCE` where no gradient is kept."""
    if torch.is_grad_enabled() or len(x) <= FRAMES_AT_ONCE:
        return function(x)
    return torch.cat([function(piece) for piece in x.split(FRAMES_AT_ONCE)])


class Encoder(nn.Module):
    """What the encoders share: bytes become brightness from 0 to 1 in the weights' dtype, and time and batch
    become one dimension."""

    def forward(self, frames: Shaped[Tensor, "T B C H W"]) -> Float[Tensor, "T B ... I"]:
        return in_pieces(self._of_any, frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def _of_any(self, frames: Shaped[Tensor, "N C H W"]) -> Float[Tensor, "N ... I"]:
        dtype = next(self.parameters()).dtype
        return self.of_frames(frames.to(dtype) / 255 if frames.dtype == torch.uint8 else frames.to(dtype))

    def of_frames(self, frames: Float[Tensor, "N C H W"]) -> Float[Tensor, "N ... I"]:
        """The core's input for each frame."""
        raise NotImplementedError


class FrameEncoder(Encoder):
    """One vector for each frame, ``[T, B, I]``: :func:`feature_maps`, and Linear, ELU, layer norm of the
    last of them.

    Raises ValueError unless the sides are multiples of 8.
    """

    def __init__(self, frames: Frames, size: int, channels: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        check_frames(frames, channels)
        positions = frames.height * frames.width // SHRINK**2
        self.maps = feature_maps(frames, channels)
        self.out = nn.Sequential(nn.Linear(channels[-1] * positions, size), nn.ELU(), nn.LayerNorm(size))

    def of_frames(self, frames: Float[Tensor, "N C H W"]) -> Float[Tensor, "N I"]:
        return self.out(self.maps(frames).flatten(1))


class StripEncoder(nn.Module):
    """Private inputs, ``[T, B, K, I]``, of Figure 6: a :class:`FrameEncoder` for each RIM, with its own
    weights. To encoder k all but strip k of a frame is black.

    The strips are horizontal: every row is in one, and their heights differ by one at most.

    Raises ValueError unless the sides are multiples of 8 and there is a row for each strip.
    """

    masks: Tensor

    def __init__(
        self, frames: Frames, size: int, strips: int, channels: tuple[int, int, int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        if not 1 <= strips <= frames.height:
            raise ValueError(f"strips are {strips}; expected 1 to {frames.height}, the rows of a frame")
        self.encoders = nn.ModuleList(FrameEncoder(frames, size, channels) for _ in range(strips))
        strip_of_row = torch.arange(frames.height) * strips // frames.height
        masks = strip_of_row == torch.arange(strips)[:, None]
        self.register_buffer("masks", masks[:, :, None], persistent=False)

    def forward(self, frames: Shaped[Tensor, "T B C H W"]) -> Float[Tensor, "T B K I"]:
        seen = zip(self.encoders, self.masks)
        return torch.stack([encoder(frames * mask) for encoder, mask in seen], dim=2)


class SlotEncoder(Encoder):
    """A slot for each position of the last feature map, ``[T, B, S, I]``: the spatial attention of section
    2.2.

    A learned vector for each position, of the features' own scale at the start, is added: a RIM can attend to
    places as to contents. Layer norm and Linear follow. The paper gives no form; that is ours.

    Raises ValueError unless the sides are multiples of 8.
    """

    def __init__(self, frames: Frames, size: int, channels: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        check_frames(frames, channels)
        self.grid = (frames.height // SHRINK, frames.width // SHRINK)
        self.slots = self.grid[0] * self.grid[1]
        self.maps = feature_maps(frames, channels)
        self.position = nn.Parameter(torch.randn(self.slots, channels[-1]))
        self.out = nn.Sequential(nn.LayerNorm(channels[-1]), nn.Linear(channels[-1], size))

    def of_frames(self, frames: Float[Tensor, "N C H W"]) -> Float[Tensor, "N S I"]:
        return self.out(self.maps(frames).flatten(2).transpose(1, 2) + self.position)


class UpsampledConv(nn.Conv2d):
    """Nearest-neighbour upsampling by 2 and a convolution 4 x 4 of the same size, in one.

    The even kernel is padded as TensorFlow's SAME and torch's "same" pad it: one row and column of zeros
    before, two behind. Upsampling and convolution together are a transposed convolution with stride 2, whose
    kernel 5 x 5 is made of sums of the 4 x 4 weights: the same map (up to rounding) for 25 products a pixel
    of the input instead of 64, and without the upsampled and padded copies; five times as fast on a CPU.

    To one channel, or three, a transposed convolution leaves most of a CPU's vector lanes empty. There each
    of the four pixels that a pixel of the input becomes is a channel of a plain convolution 3 x 3: the same
    map again, for 36 products, twice as fast.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 4)

    def forward(self, input: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D 2*H 2*W"]:
        taps = F.pad(self.weight.flip(-2, -1), (1, 1, 1, 1))
        kernel = taps[..., 1:, 1:] + taps[..., 1:, :-1] + taps[..., :-1, 1:] + taps[..., :-1, :-1]
        if self.out_channels <= FEW:
            assert self.bias is not None
            # Output row 2 i + a sees input row i + o through the kernel's row 2 (1 - o) + a; row 5 is none.
            halves = F.pad(kernel, (0, 1, 0, 1)).unflatten(-1, (3, 2)).unflatten(-3, (3, 2)).flip(-4, -2)
            quarters = halves.permute(0, 3, 5, 1, 2, 4).flatten(0, 2)
            return F.pixel_shuffle(F.conv2d(input, quarters, self.bias.repeat_interleave(4), padding=1), 2)
        return F.conv_transpose2d(
            input, kernel.transpose(0, 1), self.bias, stride=2, padding=2, output_padding=1
        )


class FrameDecoder(nn.Module):
    """The logits of a frame for each vector, ``[T, B, input_size]`` to ``[T, B, C, H, W]``: Linear(size),
    Linear to H / 8 x W / 8 positions, both with ReLU and layer norm, then three times nearest-neighbour
    upsampling by 2 and a convolution, to ``channels[1]``, ``channels[0]`` and C channels, with ReLU and layer
    norm between.

    Raises ValueError unless the sides are multiples of 8.
    """

    def __init__(
        self, input_size: int, frames: Frames, size: int = 512, channels: tuple[int, int, int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        check_frames(frames, channels)
        height, width = frames.height // SHRINK, frames.width // SHRINK
        first, second, third = channels
        positions = third * height * width
        self.layers = nn.Sequential(
            *(nn.Linear(input_size, size), nn.ReLU(), nn.LayerNorm(size)),
            *(nn.Linear(size, positions), nn.ReLU(), nn.LayerNorm(positions)),
            nn.Unflatten(1, (third, height, width)),
            *(UpsampledConv(third, second), nn.ReLU(), norm(second)),
            *(UpsampledConv(second, first), nn.ReLU(), norm(first)),
            UpsampledConv(first, frames.channels),
        )

    def forward(self, x: Float[Tensor, "T B D"]) -> Float[Tensor, "T B C H W"]:
        return in_pieces(self.layers, x.flatten(0, 1)).unflatten(0, x.shape[:2])
