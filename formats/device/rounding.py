"""``quants/rounding.py`` in torch: float32 to integers and to float16, bit for bit as ggml's scalar code.

A NaN that arithmetic makes has the low 22 bits of its mantissa clear on x86-64, so ``nearest_int`` makes it 0. Its bits
are others on other devices, so here it is replaced before its bits count.
"""

import math

import torch
from torch import Tensor

from .fields import table

MAGIC = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer, ties to even
MANTISSA = 0x7FFFFF
BIAS = 0x400000  # the mantissa of MAGIC


def _biased(values: Tensor) -> Tensor:
    """``nearest_int`` plus ``BIAS``, in the memory of ``values``."""
    values.nan_to_num_(0.0, math.inf, -math.inf).add_(MAGIC)
    return values.view(torch.int32).bitwise_and_(MANTISSA)


def nearest(values: Tensor) -> Tensor:
    """``nearest_int``, int32 in the memory of ``values``: half to even below 2**22, beyond that and for infinity the
    same garbage as ggml's."""
    return _biased(values).sub_(BIAS)


def nearest_float(values: Tensor, low: int, high: int) -> Tensor:
    """``nearest_int`` clamped to ``low .. high``, as floats, in place."""
    biased = _biased(values).clamp_(low + BIAS, high + BIAS)
    return torch.sub(biased, table((BIAS,), torch.float32, values.device), out=values)


def nearest_tame(values: Tensor, low: int, high: int) -> Tensor:
    """The same where all are numbers and none is beyond 2**22: two operations for five."""
    return values.round_().clamp_(low, high)


def nearest_byte(values: Tensor, low: int, high: int) -> Tensor:
    """``nearest_int`` clamped to ``low .. high``, minus ``low``, as uint8; uses up ``values``."""
    return _biased(values).clamp_(low + BIAS, high + BIAS).sub_(low + BIAS).to(torch.uint8)
