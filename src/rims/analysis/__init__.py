"""From traces to numbers: who was active when, and what breaks without it."""

from rims.analysis.lesions import lesions, removed
from rims.analysis.location import location_correlation
from rims.analysis.usage import (
    Trace,
    activity,
    activity_by_kind,
    coactivation,
    switching_rate,
    usage,
    usage_by_phase,
)

__all__ = [
    "Trace",
    "activity",
    "activity_by_kind",
    "coactivation",
    "lesions",
    "location_correlation",
    "removed",
    "switching_rate",
    "usage",
    "usage_by_phase",
]
