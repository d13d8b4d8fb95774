"""From traces to numbers: who was active when."""

from rims.analysis.usage import (
    Trace,
    activity,
    coactivation,
    switching_rate,
    usage,
    usage_by_kind,
    usage_by_phase,
)

__all__ = [
    "Trace",
    "activity",
    "coactivation",
    "switching_rate",
    "usage",
    "usage_by_kind",
    "usage_by_phase",
]
