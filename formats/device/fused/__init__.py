"""The searches as one GPU kernel each, compiled by Triton, which CUDA builds of torch for Linux bring along.

As operations of torch a search reads and writes all elements some hundred times. Here each thread has one sub-block,
and does for it what the Numba code does in a lane, in the same order. Modules and functions are named as their twins in
``formats/device``, which call them where ``find`` finds them.

Same bytes means here: compiled without contraction to fused multiply-add (``OPTIONS``), and ``div_rn`` for a division,
for Triton's own is not correctly rounded. The PTX that comes out has only operations that round to nearest, and keeps
subnormals.
"""

from functools import cache
from types import ModuleType

import torch


@cache
def find(device: torch.device) -> ModuleType | None:
    """The kernels, if this device can run what Triton compiles; it needs a C compiler, too."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    try:
        from . import kernels

        x, one = torch.zeros((16, 1), device=device), torch.ones(1, device=device)
        kernels.symmetric(x, x, one, 4)
    except Exception:  # whatever is missing there: the same is done without
        return None
    return kernels
