"""The searches as one GPU kernel each, compiled by Triton, which CUDA builds of torch for Linux bring along.

As operations of torch a search reads and writes all elements some hundred times. Here each thread has one sub-block in
its registers, and does for it what the Numba code does in a lane, in the same order. Modules and functions are named as
their twins in ``formats/device``, which call them where ``find`` finds them.

Same bytes means here: compiled without contraction to fused multiply-add (``OPTIONS``), and ``div_rn`` for a division,
for Triton's own is not correctly rounded. The PTX that comes out has only operations that round to nearest, and keeps
subnormals, from Triton 3.6 on.
"""

from functools import cache
from types import ModuleType

import torch


def find(device: torch.device) -> ModuleType | None:
    """The kernels, if this device can run what Triton compiles."""
    return _look(device)[0] if device.type == "cuda" else None


def why_not(device: torch.device) -> str:
    """Why ``find`` does not find them on a CUDA device."""
    return _look(device)[1]


@cache
def _look(device: torch.device) -> tuple[ModuleType | None, str]:
    if torch.version.cuda is None:
        return None, "this build of torch is not for CUDA"
    try:
        from . import kernels

        with torch.cuda.device(device):
            kernels.probe(device)
    except torch.cuda.OutOfMemoryError:
        raise  # another time there may be room
    except Exception as error:  # whatever is missing there: the same is done without
        return None, (str(error).splitlines() or [type(error).__name__])[0]
    return kernels, ""
