"""Random RIM options that fit together."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


@st.composite
def rim_options(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of RIMCell, small sizes, every option."""
    num_rims = draw(st.integers(1, 5))
    inputs = draw(st.sampled_from(["vector", "slots", "private"]))
    attention = inputs == "slots" or draw(st.booleans())
    return {
        "input_size": draw(st.integers(1, 5)),
        "hidden_size": num_rims * draw(st.integers(1, 4)),
        "num_rims": num_rims,
        "num_active": draw(st.integers(1, num_rims)) if attention else num_rims,
        "cell": draw(st.sampled_from(["lstm", "gru"])),
        "variant": draw(st.sampled_from(["paper", "official"])),
        "selection": draw(st.sampled_from(["null", "competition"])),
        "inputs": inputs,
        "bias": draw(st.booleans()),
        "input_attention": attention,
        "input_heads": draw(st.sampled_from([1, 2, 4])),
        "input_key_size": draw(st.integers(1, 4)),
        "communication": draw(st.booleans()),
        "comm_heads": draw(st.integers(1, 3)),
        "comm_key_size": draw(st.integers(1, 4)),
        "comm_value_size": draw(st.integers(1, 4)),
        "comm_tanh": draw(st.booleans()),
        "comm_topk": draw(st.none() | st.integers(1, num_rims)),
    }
