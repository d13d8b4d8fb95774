"""Recurrent systems behind one contract: ``output, state = core(x, state=None, reset=None)``."""

from rims.cores.base import CORES, Core, CoreConfig, register
from rims.cores.gru import GRUConfig, GRUCore
from rims.cores.lstm import LSTMConfig, LSTMCore
from rims.cores.rim import RIMConfig, RIMCore

__all__ = [
    "CORES",
    "Core",
    "CoreConfig",
    "GRUConfig",
    "GRUCore",
    "LSTMConfig",
    "LSTMCore",
    "RIMConfig",
    "RIMCore",
    "register",
]
