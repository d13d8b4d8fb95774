"""Recurrent Independent Mechanisms for PyTorch."""

from rims.nn import RIM, RIMCell, Trace

__version__ = "0.1.0"

__all__ = ["RIM", "RIMCell", "Trace", "__version__"]
