"""``device/rounding.py``, and what all kernels have in common."""

import triton
import triton.language as tl

from .. import rounding

LANES = 128  # sub-blocks of a program, one for each of its threads
OPTIONS = {"num_warps": LANES // 32, "enable_fp_fusion": False}

_MAGIC = tl.constexpr(rounding.MAGIC)
_MANTISSA = tl.constexpr(rounding.MANTISSA)
_BIAS = tl.constexpr(rounding.BIAS)


@triton.jit
def zeros(like):
    """Not Triton's function of that name, which is no interpreted one where Triton was imported before it was told."""
    return tl.full(like.shape, 0.0, tl.float32)


@triton.jit
def elements(rows, n, lane, used, count: tl.constexpr):
    """The elements of each lane's sub-block, which stay in registers. Lanes that are not used have zeros."""
    found = ()
    for i in tl.static_range(count):
        found = found + (tl.load(rows + i * n + lane, used, 0.0),)  # type: ignore[assignment]
    return found


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
