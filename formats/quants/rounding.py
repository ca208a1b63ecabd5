"""Float32 to integers and to float16, lane by lane, bit for bit as ggml's scalar code."""

import numpy as np
from numpy import float32, int32

from ..jit import inline
from .lanes import Floats, Ints, bits, from_bits, magnitude, select, to_float, truncate

ZERO = float32(0)
HALF = float32(0.5)
ONE = float32(1)
INFINITY = float32(np.inf)
NAN = float32(np.nan)
MAGIC = float32(12582912)  # 1.5 * 2**23: adding it rounds to an integer, ties to even
EXACT = float32(4194302)  # up to here the sum with MAGIC has a unit in the last place of 1

# Where numbers that become codes may lie: they round to codes; or also to more than the greatest code; or to less as
# well, but none is beyond EXACT; or anywhere.
WITHIN, ABOVE, AROUND, ANYWHERE = range(4)

_BEYOND_INT = float32(2**31)


@inline
def clamp(codes: Ints, low: int | np.int32, high: int | np.int32) -> Ints:
    """Limit integers to ``low .. high``."""
    codes = select(codes < low, low, codes)
    return select(codes > high, high, codes)


@inline
def nearest(v: Floats) -> Ints:
    """``nearest_int``: half to even below 2**22; beyond, and for infinity and NaN, the same garbage as ggml's."""
    return (bits(v + MAGIC) & 0x7FFFFF) - 0x400000


@inline
def nearest_code(v: Floats, low: np.float32, high: np.float32, reach: int) -> Floats:
    """``nearest_int`` clamped to ``low .. high``, as floats; ``reach`` says how much of that is needed."""
    if reach == ANYWHERE:
        return to_float(clamp(nearest(v), int32(low), int32(high)))
    code = (v + MAGIC) - MAGIC
    if reach == AROUND:
        code = select(code > low, code, low)
    if reach >= ABOVE:
        code = select(code < high, code, high)
    return code


@inline
def half(v: Floats) -> tuple[Ints, Floats]:
    """The float16 nearest to v, ties to even, as its 16 bits and as float32."""
    code = bits(v)
    sign = code & -0x80000000
    size = code & 0x7FFFFFFF
    # Round the mantissa to ten bits; a carry into the exponent is right.
    normal = (size + (0xFFF + ((size >> 13) & 1))) & ~0x1FFF
    # The unit in the last place of 0.5 is the least positive float16.
    anchored = from_bits(size) + float32(0.5)
    is_small = size < 0x38800000
    is_infinite = normal > 0x477FE000
    value = select(is_small, bits(anchored - float32(0.5)), select(is_infinite, 0x7F800000, normal))
    short = select(is_small, bits(anchored) - 0x3F000000, select(is_infinite, 0x7C00, (normal - 0x38000000) >> 13))
    is_nan = size > 0x7F800000
    value = select(is_nan, 0x7FC00000, value)
    short = select(is_nan, 0x7E00, short)
    return short | (sign >> 16), from_bits(value | sign)


@inline
def cut(v: Floats) -> Ints:
    """Cut off the fraction; infinity and NaN, which come from an inverse that overflowed, give ggml 0 as a byte."""
    return truncate(select(magnitude(v) < _BEYOND_INT, v, ZERO))


@inline
def inverted(d: Floats) -> Floats:
    """1 / d, but 0 for 0."""
    return select(d == ZERO, ZERO, ONE / d)
