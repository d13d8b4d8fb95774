"""The RIM layer; needs torch and jaxtyping alone."""

from rims.nn.cell import RIMCell, StepTrace
from rims.nn.rim import RIM
from rims.nn.trace import Trace

__all__ = ["RIM", "RIMCell", "StepTrace", "Trace"]
