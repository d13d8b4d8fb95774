"""The dense computation's loop over time as Triton kernels."""

from rims.nn.fast.kernel.loop import KernelLoop
from rims.nn.fast.kernel.sizes import why_not

__all__ = ["KernelLoop", "why_not"]
