"""Floating-point values as the integers of their bits: rounding to bf16, and moving to neighbouring values.

The order key of the bits u of a sign-magnitude float is `~u` if the sign bit is set, else `u | sign`: unsigned integers
that sort as the values do, so that adding 1 to the key moves to the next larger value.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.unsignedinteger[Any]]


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of finite float32 values rounded to bf16, to nearest even."""
    bits = np.ascontiguousarray(values, dtype="<f4").view(np.uint32)
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return rounded


def move(bits: Bits, steps: NDArray[np.signedinteger[Any]]) -> None:
    """Move every value by `steps` representable values, in place; both arrays have items of the same width.

    The caller keeps the result finite: a step beyond the largest value would run into infinity and NaN.
    """
    _flip(bits, positive_has_top_bit=False)
    bits += steps.view(bits.dtype)  # two's complement: unsigned addition wraps to the same bits
    _flip(bits, positive_has_top_bit=True)


def _flip(bits: Bits, positive_has_top_bit: bool) -> None:
    """Bits to order key (False) or back (True): negative values turn all their bits, others only the top one."""
    width = bits.dtype.itemsize * 8
    mask = (bits.view(np.dtype(f"<i{bits.dtype.itemsize}")) >> (width - 1)).view(bits.dtype)
    if positive_has_top_bit:
        np.invert(mask, out=mask)
    mask |= bits.dtype.type(1 << (width - 1))
    bits ^= mask
