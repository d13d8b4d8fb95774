"""What a call of the compiled passes is told: one structure, declared here alone, in ctypes and, from the
same names, in C.

Shapes: T steps, B batch, K rims, A active_rims, D rim_size, G groups of the input (1, or K with private
inputs), H heads, E key_size, V value_size, C comm_heads, F comm_key_size, W comm_value_size. Rows are ``[T,
B, ...]`` where they are kept for the backward pass, else ``[B, ...]``. A weight is ``[K, in, out]``, in
panels (``matmul.h``) where ``packed``; backwards it is the transposed one."""

from __future__ import annotations

import ctypes

SIZES = (
    *("steps", "batch", "first", "last"),  # of B rows this call computes those from first to last
    *("rims", "active_rims", "rim_size", "gates", "heads", "key_size", "value_size"),
    *("comm_heads", "comm_key_size", "comm_value_size"),
    *("gru", "squash", "attend", "communicate", "private_inputs", "reverse", "keep", "packed"),  # 0 or 1
    "collect",  # rows that are collected before a weight's gradient grows
    "input_size",
)
SCALES = ("input_scale", "comm_scale")
"""Of what dropout keeps."""

POINTERS = (
    # what there is: scaled keys [T, B, G, H * E], values [T, B, G, H * V], states [B, K * D], bytes that are
    # 0 or 1
    *("keys", "values", "h0", "reset", "valid", "disabled", "input_keep", "comm_keep"),
    # or, of a single step, what keys and values are made of: x [B, G, input_size], weights [input_size, ...]
    *("x", "key_weight", "read_weight"),
    # weights, and biases [K, G * D]; an LSTM's two are one
    *("ask_weight", "ih_weight", "hh_weight", "ih_bias", "hh_bias"),
    *("told_weight", "value_weight", "query_weight", "out_weight", "out_bias"),
    # what forward makes: all states [T, B, K * D], and c [B, K * D] in place
    *("states", "c"),
    # and what it leaves for backward: int32 [.., A], attention on the input [.., A, H], asks [.., K, H * E],
    # gates [.., A, gates * D], c before the step or a GRU's part of the new gate from the state [.., A, D],
    # the dynamics' h
    *("active", "attention", "asks", "sums", "aside", "fresh"),
    # keys and values [.., K, C * (F + W)], queries [.., A, C * F], attention [.., A, C, K], what was heard
    # [.., A, C * W], and, with squash, the tanh of its projection [.., A, D]
    *("told", "queries", "weights", "heard", "squashed"),
    # of a trace: attention on the input of all RIMs [.., K, H], and the gradients of a trace's two
    # attentions, dense
    *("all_attention", "attention_grad", "communication_grad"),
    # gradients: of all states, of the state (in place), of keys and values, and of the weights
    *("dy", "dh", "dc", "d_keys", "d_values", "d_ask", "d_ih", "d_hh", "d_ih_bias", "d_hh_bias"),
    *("d_told", "d_query", "d_out", "d_out_bias"),
)


class Sequence(ctypes.Structure):
    """One call. Pointers are addresses, None where there is nothing."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in SIZES),
        *((name, ctypes.c_double) for name in SCALES),
        *((name, ctypes.c_void_p) for name in POINTERS),
    ]


def declaration() -> str:
    """:class:`Sequence` in C."""
    kinds = (("int64_t", SIZES), ("double", SCALES), ("void", tuple(f"*{name}" for name in POINTERS)))
    lines = (f"  {kind} {', '.join(names)};" for kind, names in kinds)
    return "\n".join(["#include <stdint.h>", "typedef struct {", *lines, "} Sequence;", ""])
