"""The sequence as a dense computation, for devices where waiting for the host is dear.

All K RIMs are computed at every step and masks keep the inactive ones as they were: no shape depends on data,
nothing is read back by the host, so the whole can be captured in a graph. What does not depend on the state
is hoisted out of the loop over time. The null slot's score is zero, so a RIM's attention on the input is a
sigmoid ``a``, and

    score = h . u       with  u = W_query (W_key^T x) / sqrt(E)
    W_ih^T read = a * P with  P = W_ih^T (W_value^T x)

``u`` and ``P`` of all steps come from a few large products. The loop is replaceable (:class:`Loop`): here in
plain torch, in :mod:`rims.nn.fast.kernel` as GPU kernels. The backward pass is written by hand; each
weight's gradient is one product over all T * B rows at its end.

Covered: the paper variant, null selection, one input vector a step; see :func:`rims.nn.fast.gpu.why_not`.

Shapes: T time, B batch, N = T * B, K RIMs, D units of a RIM, G gates * D, I input, R heads of the input
attention, E and V key and value size of a head, H heads of the communication, Q = H * (2 * E + V).
"""

from rims.nn.fast.dense.function import Eager, Engine, run
from rims.nn.fast.dense.loop import TorchLoop, before, states_before
from rims.nn.fast.dense.tensors import Hoisted, Inputs, Loop, Options, Pieces, Saved

__all__ = [
    "Eager",
    "Engine",
    "Hoisted",
    "Inputs",
    "Loop",
    "Options",
    "Pieces",
    "Saved",
    "TorchLoop",
    "before",
    "run",
    "states_before",
]
