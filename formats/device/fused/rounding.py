"""``device/rounding.py``, and what all kernels have in common."""

import triton
import triton.language as tl

LANES, WARPS = 128, 4  # sub-blocks of a program, one for each of its threads
STRIDE = tl.constexpr(8)  # elements whose loads may be under way at once; a divisor of all counts
OPTIONS = {"num_warps": WARPS, "enable_fp_fusion": False}

_MAGIC = tl.constexpr(12582912.0)
_MANTISSA = tl.constexpr(0x7FFFFF)
_BIAS = tl.constexpr(0x400000)


def programs(lanes: int) -> tuple[int]:
    """So many are started for this number of sub-blocks."""
    return (triton.cdiv(lanes, LANES),)


@triton.jit
def zeros(like):
    """Not Triton's function of that name, which is no interpreted one where Triton was imported before it was told."""
    return tl.full(like.shape, 0.0, tl.float32)


@triton.jit
def nearest(v):
    """``nearest``: int32."""
    v = tl.where(v == v, v, 0.0)
    return ((v + _MAGIC).to(tl.int32, bitcast=True) & _MANTISSA) - _BIAS


@triton.jit
def nearest_float(v, low: tl.constexpr, high: tl.constexpr):
    """``nearest_float``."""
    code = nearest(v)
    code = tl.where(code < low, low, code)
    return tl.where(code > high, high, code).to(tl.float32)


@triton.jit
def quotient(numerator, divisor):
    """A number by a tensor, correctly rounded."""
    return tl.div_rn(zeros(divisor) + numerator, divisor)
