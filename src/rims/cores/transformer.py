"""A causal Transformer as a recurrent memory: its state is the cache of keys and values (Vaswani et al. 2017,
arXiv 1706.03762; pre-norm, Xiong et al. 2020, arXiv 2002.04745; rotary positions, Su et al. 2021, arXiv
2104.09864).

Shapes: T time, B batch, I input size, L layers, H heads, F model size, W window, P past steps at hand,
N = P + T, R pairs of numbers of a head, KV = 2 F keys and values side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rims.cores.base import Core, CoreConfig, register
from rims.nn.checks import check_choice, check_positive

BASE = 10_000.0
"""Wavelengths of positions grow geometrically from 2 pi to 2 pi * BASE (Vaswani et al., 3.5)."""


class TransformerState(NamedTuple):
    """What a row carries."""

    cache: Float[Tensor, "B L W KV"]
    """Keys, not yet rotated, and values of the last W steps, the latest last; zero where there are none."""
    age: Float[Tensor, " B"]
    """Steps since the row's episode began: at most that many entries of the cache are its own. In float32 at
    least, where counting is exact up to 2^24."""


class Sight(NamedTuple):
    """What each step of a chunk sees: the keys from ``first`` to its own, counted from the earliest of N."""

    first: Int[Tensor, "#B T"]
    mask: Bool[Tensor, "#B 1 T N"] | None
    """The same as a mask; None where every step sees all before it."""


class TransformerLayer(nn.Module):
    """h <- h + W_o attention(LN(h)), then h <- h + W_2 GELU(W_1 LN(h)).

    Queries, keys and values have no bias: that of a key would cancel in the softmax where positions are not
    rotary.
    """

    def __init__(self, features: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(features)
        self.query = nn.Linear(features, features, bias=False)
        self.key_value = nn.Linear(features, 2 * features, bias=False)
        self.out = nn.Linear(features, features)
        self.mlp_norm = nn.LayerNorm(features)
        self.mlp = nn.Sequential(
            nn.Linear(features, mlp_ratio * features), nn.GELU(), nn.Linear(mlp_ratio * features, features)
        )

    def forward(
        self,
        h: Float[Tensor, "B T F"],
        past: Float[Tensor, "B P KV"],
        sight: Sight,
        angles: Float[Tensor, "N R"] | None,
    ) -> tuple[Float[Tensor, "B T F"], Float[Tensor, "B T KV"]]:
        """The new h, and the keys and values of these steps."""
        normed = self.attention_norm(h)
        new = self.key_value(normed)
        h = h + self.out(self._attend(self.query(normed), torch.cat([past, new], dim=1), sight, angles))
        return h + self.mlp(self.mlp_norm(h)), new

    def _attend(self, query: Tensor, key_value: Tensor, sight: Sight, angles: Tensor | None) -> Tensor:
        # A weight of 0 times NaN is NaN. So NaN and inf are taken out of keys and values, and what sees them
        # is made NaN; what comes before them, or after a reset, is not.
        broken = ~key_value.sum(dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).isfinite()
        key_value = key_value.masked_fill_(broken[..., None], 0.0)  # in place: a fresh tensor, made by cat
        q = query.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = key_value.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if angles is not None:
            q, k = rotate(q, angles[-q.shape[2] :]), rotate(k, angles)
        heard = F.scaled_dot_product_attention(q, k, v, sight.mask, is_causal=sight.mask is None)
        return heard.transpose(1, 2).flatten(2).masked_fill(self._sees(broken, sight)[..., None], torch.nan)

    @staticmethod
    def _sees(broken: Tensor, sight: Sight) -> Tensor:
        """``[B, T]``: whether any of the keys ``[B, N]`` that a step sees is broken."""
        count = F.pad(broken.cumsum(dim=1), (1, 0))
        first = sight.first.expand(len(broken), -1)
        return count[:, -first.shape[1] :] > count.gather(1, first)


def rotate(x: Float[Tensor, "B H N D"], angles: Float[Tensor, "N R"]) -> Float[Tensor, "B H N D"]:
    """Turn each pair of numbers by its angle (Su et al., equation 34). A pair are here numbers i and i + R,
    there neighbours: the same up to the order of the weights' rows."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def angles_of(position: Float[Tensor, "*shape"], pairs: int) -> Float[Tensor, "*shape R"]:
    """position / BASE^(i / pairs) for i < pairs."""
    exponent = torch.arange(pairs, dtype=position.dtype, device=position.device) / pairs
    return position[..., None] * BASE**-exponent


class TransformerCore(Core):
    """Causal Transformer: y = LN(layers(W_in x)); the state is :class:`TransformerState`.

    A step sees itself and the ``window`` steps before it that belong to the row's present episode (through
    L layers it is reached by what is L * window steps back). Once more than ``window`` steps have passed, the
    oldest is dropped at each.

    The state has one size, as the contract asks: keys and values of ``window`` steps for each layer, 2 L W F
    numbers, and a counter. Only the part in use is attended to. A sequence from no state, or from a fresh
    one, attends to nothing but itself: without resets that is plain causal attention. More than ``window``
    steps are run in chunks of ``window``, so that their cost grows linearly. A size that is fixed costs the
    writing of a whole state in each call: little beside training on sequences, but most of an acting step. An
    agent should have a window no longer than it needs.

    ``positions``: "rotary" turns queries and keys by the position in what is at hand, so that distances count
    and nothing else, at any age; "sinusoidal" adds sines and cosines of the steps since the episode began to
    W_in x, and sequences longer than in training have positions never seen; "none" leaves order to the causal
    mask. Results on longer sequences depend on this choice more than on any other: name it beside them.

    Weights start as those of torch's linear layers and norms do.
    """

    def __init__(
        self,
        input_size: int,
        num_layers: int,
        num_heads: int,
        head_pairs: int,
        mlp_ratio: int,
        window: int,
        positions: Literal["rotary", "sinusoidal", "none"],
    ) -> None:
        super().__init__()
        features = 2 * head_pairs * num_heads
        self.head_pairs, self.window, self.positions = head_pairs, window, positions
        self.input_size, self.output_size = input_size, features
        self.input = nn.Linear(input_size, features)
        self.layers = nn.ModuleList(
            TransformerLayer(features, num_heads, mlp_ratio) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(features)

    def initial_state(self, batch_size: int) -> TransformerState:
        weight = self.input.weight
        cache = weight.new_zeros(()).expand(batch_size, len(self.layers), self.window, 2 * self.output_size)
        age = weight.new_zeros(batch_size, dtype=torch.promote_types(weight.dtype, torch.float32))
        return TransformerState(cache, age)

    def forward(
        self,
        x: Float[Tensor, "T B I"],
        state: TransformerState | None = None,
        reset: Bool[Tensor, "T B"] | None = None,
    ) -> tuple[Float[Tensor, "T B O"], TransformerState]:
        self.check_input(x, reset)
        if reset is not None and not reset.any():
            reset = None
        rows, past = x.shape[1], 0
        fresh = state is None
        state = self.start(state, self.initial_state(rows))
        if not fresh:
            age = state.age.detach().nan_to_num(nan=self.window)
            age = age if reset is None else age.masked_fill(reset[0], 0.0)
            past = min(self.window, int(age.max()))
            state = state._replace(age=age)
        outputs = []
        resets = repeat(None) if reset is None else reset.split(self.window)
        for chunk, chunk_reset in zip(x.split(self.window), resets):
            output, state = self._chunk(chunk, state, chunk_reset, past, alike=fresh and reset is None)
            outputs.append(output)
            past = min(self.window, past + len(chunk))
        return torch.cat(outputs), state

    def _chunk(
        self, x: Tensor, state: TransformerState, reset: Tensor | None, past: int, alike: bool
    ) -> tuple[Tensor, TransformerState]:
        """At most ``window`` steps, of which the first may see the last ``past`` of the cache."""
        steps, rows = x.shape[:2]
        # Times count from the chunk's first step; what is in the cache has a negative one.
        age = state.age[:1] if alike else state.age
        now = torch.arange(steps, dtype=age.dtype, device=age.device)
        began = -age[:, None].expand(-1, steps)
        if reset is not None:
            began = torch.where(reset.t(), now, began).cummax(dim=1).values
        sight = self._sight(began, now, past, plain=past == 0 and (reset is None or not reset[1:].any()))

        h = self.input(x.transpose(0, 1))
        angles = None
        if self.positions == "rotary":
            angles = angles_of(
                torch.arange(-past, steps, dtype=age.dtype, device=age.device), self.head_pairs
            )
        elif self.positions == "sinusoidal":
            position = angles_of(now - began, self.output_size // 2)
            h = h + torch.cat([position.sin(), position.cos()], dim=-1).to(h.dtype)
        entries = []
        for layer, cached in zip(self.layers, state.cache[:, :, self.window - past :].unbind(1)):
            h, new = layer(h, cached, sight, angles)
            entries.append(new)

        cache = torch.cat([state.cache[:, :, steps:], torch.stack(entries, dim=1)], dim=2)
        age = (now - began)[:, -1] + 1
        if reset is not None:  # as a fresh row has it: what was before the reset may hold NaN
            place = torch.arange(self.window, 0, -1, device=age.device)
            cache = cache.masked_fill((place > age[:, None])[:, None, :, None], 0.0)
        return self.norm(h).transpose(0, 1), TransformerState(cache, age.expand(rows))

    def _sight(self, began: Tensor, now: Tensor, past: int, plain: bool) -> Sight:
        first = (torch.maximum(began, now - self.window).clamp(min=-past) + past).long()
        if plain:
            return Sight(first, None)
        key = torch.arange(past + len(now), device=now.device)
        mask = (key >= first[..., None]) & (key <= past + now.long()[:, None])
        return Sight(first, mask[:, None])

    def typical_state(self, batch_size: int) -> TransformerState:
        """A full window: the case that ``state_size`` counts too."""
        cache, age = self.initial_state(batch_size)
        return TransformerState(cache, age + self.window)


@register
@dataclass
class TransformerConfig(CoreConfig):
    """A causal Transformer, pre-norm; the paper on RIMs gives no sizes."""

    name: ClassVar[str] = "transformer"
    size: ClassVar[str] = "head_pairs"

    num_layers: int = 4
    """Layers."""

    num_heads: int = 4
    """Heads of the attention."""

    head_pairs: int = 24
    """Half the size of a head; the model has 2 * head_pairs * num_heads numbers a step."""

    mlp_ratio: int = 4
    """Width of the MLP between its layers, in model sizes."""

    window: int = 1024
    """Past steps that a step sees, and that the state holds; 1024 is the longest sequence of the paper."""

    positions: Literal["rotary", "sinusoidal", "none"] = "rotary"
    """How order is told."""

    def build(self, input_size: int) -> TransformerCore:
        sizes = {name: value for name, value in vars(self).items() if name != "positions"}
        check_positive(input_size=input_size, **sizes)
        check_choice("positions", self.positions, ("rotary", "sinusoidal", "none"))
        return TransformerCore(input_size, **vars(self))
