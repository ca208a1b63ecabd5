"""The scalar fields of a block, little endian, and the extreme that most of them are made from."""

import numpy as np
from numpy import float32, int32, uint8, uint32

from ..jit import inline
from .contract import Bytes, Values
from .lanes import Floats, Ints, Mask, bits, first_lane, greatest_int_lane, select, splat
from .memory import load
from .rounding import ZERO, half

MAGNITUDE = 0x7FFF_FFFF
INFINITY_BITS = 0x7F80_0000


@inline
def put_u16(code: int, out: Bytes, at: int) -> None:
    """The low two bytes of an integer."""
    out[at] = uint8(code & 0xFF)
    out[at + 1] = uint8((code >> 8) & 0xFF)


@inline
def put_half(value: np.float32, out: Bytes, at: int) -> None:
    """The float16 nearest to a value."""
    put_u16(first_lane(half(splat(float32(value)))[0]), out, at)


@inline
def get_half(raw: Bytes, at: int) -> np.float32:
    """A float16, widened."""
    code = uint32(uint32(raw[at]) | uint32(uint32(raw[at + 1]) << uint32(8)))
    size = uint32(uint32(code & uint32(0x7FFF)) << uint32(13))
    # With the exponent bias of float32 the number is 2**112 too small, a subnormal one too; the product is exact.
    value = float32(size.view(float32) * float32(2.0**112)).view(uint32)
    value = uint32(size | uint32(0x7F800000)) if size >= uint32(0x0F800000) else value
    return uint32(value | uint32(uint32(code & uint32(0x8000)) << uint32(16))).view(float32)


@inline
def peak_bits(values: Values, first: int, rows: int) -> np.int32:
    """The bits of the greatest magnitude in ``rows`` runs of ``LANES`` values; NaN counts for nothing."""
    peak = bits(splat(ZERO))
    for row in range(first, first + rows):
        size = bits(load(values, row)) & MAGNITUDE
        peak = select((size > peak) & (size <= INFINITY_BITS), size, peak)
    return int32(greatest_int_lane(peak))


@inline
def _two(odd: Mask, table: tuple[np.float32, ...], first: int) -> Floats:
    return select(odd, splat(table[first + 1]), table[first])


@inline
def looked_up(codes: Ints, table: tuple[np.float32, ...]) -> Floats:
    """The entries of a table of sixteen. Selecting by one bit after the other beats a gather by far."""
    a, b, c, d = (codes & 1) == 1, (codes & 2) == 2, (codes & 4) == 4, (codes & 8) == 8
    low = select(c, select(b, _two(a, table, 6), _two(a, table, 4)), select(b, _two(a, table, 2), _two(a, table, 0)))
    high = select(
        c, select(b, _two(a, table, 14), _two(a, table, 12)), select(b, _two(a, table, 10), _two(a, table, 8))
    )
    return select(d, high, low)
