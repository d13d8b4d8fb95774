"""The sequence of one layer and direction, fast: equal to :func:`rims.nn.sequence.run_cell` in values and
gradients."""

from rims.nn.fast.dispatch import Backend, run_sequence, why_not

__all__ = ["Backend", "run_sequence", "why_not"]
