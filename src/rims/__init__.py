"""Recurrent Independent Mechanisms for PyTorch."""

__version__ = "0.1.0"
