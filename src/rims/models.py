"""Encoder -> core -> head: what a task and a core become together."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rims.cores.base import Core, CoreConfig, State
from rims.nn.checks import check_positive
from rims.tasks.base import Frames, Task, Tokens
from rims.vision import FrameDecoder, FrameEncoder, SlotEncoder, StripEncoder


class ChannelEmbedding(nn.Module):
    """An embedding for each channel of a token, side by side; their widths sum to ``size``, and differ by one
    where it is not a multiple of ``channels``."""

    def __init__(self, vocabulary: int, channels: int, size: int) -> None:
        super().__init__()
        if size < channels:
            raise ValueError(
                f"input_size is {size}; expected at least {channels}, one number for each channel of a token"
            )
        widths = [(size + channel) // channels for channel in reversed(range(channels))]
        self.channels = nn.ModuleList(nn.Embedding(vocabulary, width) for width in widths)

    def forward(self, tokens: Int[Tensor, "T B C"]) -> Float[Tensor, "T B I"]:
        return torch.cat([embed(tokens[..., i]) for i, embed in enumerate(self.channels)], dim=-1)


def frame_encoder(frames: Frames, core: Core, channels: tuple[int, int, int]) -> nn.Module:
    """What makes of frames what the core reads. A core of slots is told how many there are."""
    if core.inputs == "private":
        return StripEncoder(frames, core.input_size, core.num_inputs, channels)
    if core.inputs == "slots":
        encoder = SlotEncoder(frames, core.input_size, channels)
        core.num_inputs = encoder.slots
        return encoder
    return FrameEncoder(frames, core.input_size, channels)


class SequenceModel(nn.Module):
    """Embeds or projects each step's input, runs a core over time, and reads its output with one linear
    layer; where the task's input is frames, encoder and head are those of :mod:`rims.vision`, by what the
    core reads, with maps of ``channels`` and a decoder's first layer of ``hidden``.

    The released code drops out the embedding and the core's output with one probability, ``dropout`` (0.5 on
    copying); the paper does not mention it. Embedding and head start as torch has them, or with
    ``init="released"`` as in that code: weights from U(-0.1, 0.1), which slows learning (docs/log.md).
    What does not concern a task's kind of input is ignored: ``init`` with frames, ``channels`` and ``hidden``
    without.

    Raises ValueError for options out of range, and for cores that read slots or private inputs where the
    task's input is not frames.
    """

    def __init__(
        self,
        task: Task,
        core: CoreConfig,
        input_size: int,
        dropout: float = 0.0,
        init: Literal["torch", "released"] = "torch",
        channels: tuple[int, int, int] = (16, 32, 64),
        hidden: int = 512,
    ) -> None:
        super().__init__()
        if input_size < 1:
            raise ValueError(f"input_size is {input_size}; expected at least 1")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout is {dropout}; expected 0 <= dropout < 1")
        if init not in ("torch", "released"):
            raise ValueError(f"init is {init!r}; expected 'torch' or 'released'")
        check_positive(hidden=hidden)
        self.dropout = nn.Dropout(dropout)
        self.encoder: nn.Module
        self.head: nn.Module
        if isinstance(task.input, Frames):
            self.core = core.build(input_size)
            self.encoder = frame_encoder(task.input, self.core, channels)
            self.head = FrameDecoder(self.core.output_size, task.input, hidden, channels)
            return
        if core.inputs != "vector":
            raise ValueError(
                f"core {core.name} has inputs={core.inputs!r}; expected 'vector': the input of {task.name} "
                "is not frames"
            )
        if not isinstance(task.input, Tokens):
            self.encoder = nn.Linear(task.input.size, input_size)
        elif task.input.channels > 1:
            self.encoder = ChannelEmbedding(task.input.vocabulary, task.input.channels, input_size)
        else:
            self.encoder = nn.Embedding(task.input.vocabulary, input_size)
        self.core = core.build(input_size)
        self.head = nn.Linear(self.core.output_size, task.output_size)
        if init == "released":
            for name, weight in [*self.encoder.named_parameters(), *self.head.named_parameters()]:
                if not name.endswith("bias"):
                    nn.init.uniform_(weight, -0.1, 0.1)
            nn.init.zeros_(self.head.bias)

    def encode(self, inputs: Tensor) -> Float[Tensor, "T B *S I"]:
        """The core's input, for ``inputs`` as the task gives them."""
        if isinstance(self.encoder, nn.Linear):
            inputs = inputs.to(self.encoder.weight.dtype)
        return self.dropout(self.encoder(inputs))

    def forward(
        self, inputs: Tensor, state: State | None = None, reset: Bool[Tensor, "T B"] | None = None
    ) -> tuple[Float[Tensor, "T B *O"], State]:
        """``outputs [T, B, output_size]``, or the logits ``[T, B, C, H, W]`` of frames, and the core's state
        after the last step."""
        output, state = self.core(self.encode(inputs), state, reset)
        return self.head(self.dropout(output)), state
