"""Recurrent systems behind one contract: ``output, state = core(x, state=None, reset=None)``."""

from rims.cores.base import CORES, Core, CoreConfig, Inputs, register
from rims.cores.dnc import DNCConfig, DNCCore
from rims.cores.entnet import EntNetConfig, EntNetCore
from rims.cores.feedforward import FeedForwardConfig, FeedForwardCore
from rims.cores.gru import GRUConfig, GRUCore
from rims.cores.lstm import LSTMConfig, LSTMCore
from rims.cores.mingru import MinGRUConfig, MinGRUCore
from rims.cores.ntm import NTMConfig, NTMCore
from rims.cores.rim import RIMConfig, RIMCore
from rims.cores.rmc import RMCConfig, RMCCore
from rims.cores.slstm import SLSTMConfig, SLSTMCore
from rims.cores.transformer import TransformerConfig, TransformerCore

__all__ = [
    "CORES",
    "Core",
    "CoreConfig",
    "DNCConfig",
    "DNCCore",
    "EntNetConfig",
    "EntNetCore",
    "FeedForwardConfig",
    "FeedForwardCore",
    "GRUConfig",
    "GRUCore",
    "Inputs",
    "LSTMConfig",
    "LSTMCore",
    "MinGRUConfig",
    "MinGRUCore",
    "NTMConfig",
    "NTMCore",
    "RIMConfig",
    "RIMCore",
    "RMCConfig",
    "RMCCore",
    "SLSTMConfig",
    "SLSTMCore",
    "TransformerConfig",
    "TransformerCore",
    "register",
]
