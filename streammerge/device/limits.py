"""What is not usual in a chunk, found out without waiting for the device."""

import numpy as np
import torch
from torch import Tensor

# The largest finite value of each type, in float32; F64 holds what float32 holds.
_FLOAT32 = float(np.finfo(np.float32).max)
LARGEST = {
    "F64": _FLOAT32,
    "F32": _FLOAT32,
    "F16": 65504.0,
    "BF16": float(np.uint32(0x7F7F0000).view(np.float32)),
    "F8_E4M3": 448.0,
    "F8_E5M2": 57344.0,
}


class Limits:
    """Whether a value was not finite, or larger than its type allows."""

    def __init__(self, device: torch.device) -> None:
        self.exceeded = torch.zeros((), dtype=torch.bool, device=device)

    def check(self, values: Tensor, largest: float = _FLOAT32) -> None:
        """Look at float32 values of any shape."""
        low, high = torch.aminmax(values)  # NaN if there is one: then neither comparison holds
        self.exceeded |= ~((low >= -largest) & (high <= largest))
