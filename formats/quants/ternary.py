"""TQ1_0 and TQ2_0, three values an element, and MXFP4, a sign and three bits.

Layouts (little endian; d is the greatest magnitude of the block)::

    TQ1_0   256 elements   54 bytes: five[48], four[4], d f16     d * (trit - 1)
    TQ2_0   256 elements   66 bytes: codes[64], d f16             d * (code - 1)
    MXFP4    32 elements   17 bytes: e u8, codes[16]              2**(e - 128) * VALUES[code]

A byte of TQ1_0 holds five trits, the first the most significant of a base-3 number n, as ceil(n * 256 / 243):
multiplied by 3, its overflow is the first trit. Byte j of five[0:32] holds elements j + 32 n, n = 0 .. 4; byte j of
five[32:48] elements 160 + j + 16 n; byte j of four elements 240 + j + 4 n, n = 0 .. 3, and no fifth. Byte j of either
half of the codes of TQ2_0 holds elements j + 32 n of that half in bits 2 n and 2 n + 1. Byte j of MXFP4 holds elements
j and j + 16, four bits each.

Source: ``quantize_row_*_ref`` and ``dequantize_row_*`` in ggml's ``ggml-quants.c``; the OCP Microscaling Formats (MX)
specification 1.0 for MXFP4. None of them uses an imatrix.
"""

import numpy as np
from numpy import float32, int32, uint8, uint32

from ..jit import inline, jit
from .contract import Bytes, Values
from .fields import INFINITY_BITS, MAGNITUDE, get_half, looked_up, peak_bits, put_half
from .lanes import LANES, Floats, IntRows, Ints, bits, magnitude, select, splat, to_float
from .memory import get_bytes, load, put_bytes, store
from .rounding import ONE, ZERO, clamp

TERNARY = 256
WIDTH = 32  # elements of an MXFP4 block

_BELOW_HALF = np.nextafter(float32(0.5), ZERO)  # what is greater rounds to 1
_INFINITY = float32(np.inf)

# The magnitudes of MXFP4's codes 0 .. 7, doubled as in ggml; bit 3 is the sign, but there is no negative zero.
_DOUBLED = tuple(float32(v) for v in (0, 1, 2, 3, 4, 6, 8, 12))
_SIGNED = (*_DOUBLED, ZERO, *(-v for v in _DOUBLED[1:]))


@inline
def _peak(values: Values, first: int, rows: int) -> np.float32:
    return float32(int32(peak_bits(values, first, rows)).view(float32))


@inline
def _inverted(d: np.float32) -> np.float32:
    """0 where ggml's inverse overflows: it converts the infinities that follow into 0 as well."""
    inverse = ONE / d if d != ZERO else ZERO
    return inverse if inverse < _INFINITY else ZERO


@inline
def _trits(scaled: Floats) -> Ints:
    """``1 + roundf(scaled)``."""
    zero = bits(splat(ZERO))
    return select(scaled > _BELOW_HALF, zero + 2, select(scaled < -_BELOW_HALF, zero, 1))


@inline
def _base_3(values: Values, first: int, step: int, inverse: np.float32) -> Ints:
    """Five trits from rows ``first``, ``first + step``, ... in a byte; the product and shift divide by 243."""
    number = _trits(load(values, first) * inverse)
    for n in range(1, 5):
        number = number * 3 + _trits(load(values, first + step * n) * inverse)
    return ((number * 256 + 242) * 17261) >> 22


@inline
def _put_last_trits(values: Values, row: int, inverse: np.float32, scratch: IntRows, out: Bytes, at: int) -> None:
    store(scratch, 0, _trits(load(values, row) * inverse))
    for j in range(4):
        number = int32(0)
        for n in range(4):
            number = int32(number * int32(3) + scratch[0, j + 4 * n])
        out[at + j] = uint8((number * 3 * 256 + 242) // 243)


@jit("void(Array(float32, 1, 'C', True), uint8[::1])")
def _encode_tq1_0(values: Values, out: Bytes) -> None:
    scratch = np.empty((1, LANES), np.int32)
    rows = TERNARY // LANES
    for block in range(values.size // TERNARY):
        first, at = block * rows, block * 54
        d = _peak(values, first, rows)
        inverse = _inverted(d)
        put_bytes(out, at, _base_3(values, first, 2, inverse))
        put_bytes(out, at + 16, _base_3(values, first + 1, 2, inverse))
        put_bytes(out, at + 32, _base_3(values, first + 10, 1, inverse))
        _put_last_trits(values, first + 15, inverse, scratch, out, at + 48)
        put_half(d, out, at + 52)


@jit("void(Array(float32, 1, 'C', True), uint8[::1])")
def _encode_tq2_0(values: Values, out: Bytes) -> None:
    rows = TERNARY // LANES
    for block in range(values.size // TERNARY):
        first, at = block * rows, block * 66
        d = _peak(values, first, rows)
        inverse = _inverted(d)
        for quarter in range(4):
            row = first + quarter // 2 * 8 + quarter % 2
            codes = _trits(load(values, row) * inverse)
            for n in range(1, 4):
                codes = codes | (_trits(load(values, row + 2 * n) * inverse) << (2 * n))
            put_bytes(out, at + quarter * LANES, codes)
        put_half(d, out, at + 64)


@inline
def _first_trit(number: Ints, power: np.int32) -> Floats:
    """Minus one to one: the first trit of a byte that was shifted by a power of 3."""
    return to_float(((((number * power) & 255) * 3) >> 8) - 1)


@jit("void(Array(uint8, 1, 'C', True), float32[::1])")
def decode_tq1_0(raw: Bytes, out: Values) -> None:
    """See ``contract.py``."""
    scratch = np.empty((1, LANES), np.int32)
    for block in range(out.size // TERNARY):
        first, at = block * (TERNARY // LANES), block * 54
        d = get_half(raw, at + 52)
        a, b, c = get_bytes(raw, at), get_bytes(raw, at + 16), get_bytes(raw, at + 32)
        power = int32(1)
        for n in range(5):
            store(out, first + 2 * n, _first_trit(a, power) * d)
            store(out, first + 2 * n + 1, _first_trit(b, power) * d)
            store(out, first + 10 + n, _first_trit(c, power) * d)
            if n < 4:
                for j in range(4):
                    scratch[0, 4 * n + j] = int32(raw[at + 48 + j]) * power
            power = int32(power * int32(3))
        store(out, first + 15, _first_trit(load(scratch, 0), int32(1)) * d)


@jit("void(Array(uint8, 1, 'C', True), float32[::1])")
def decode_tq2_0(raw: Bytes, out: Values) -> None:
    """See ``contract.py``."""
    for block in range(out.size // TERNARY):
        first, at = block * (TERNARY // LANES), block * 66
        d = get_half(raw, at + 64)
        for quarter in range(4):
            row = first + quarter // 2 * 8 + quarter % 2
            codes = get_bytes(raw, at + quarter * LANES)
            for n in range(4):
                store(out, row + 2 * n, to_float(((codes >> (2 * n)) & 3) - 1) * d)


@inline
def _exponent(peak: np.float32) -> np.uint8:
    """``floorf(log2f(peak)) - 2 + 127`` as a byte, cut off below 0; 0 for zero and infinity.

    It matters that the logarithm is rounded to float32: just below a power of two (of 44 numbers at most) that makes it
    an integer. Everywhere else it is the exponent of the float, subnormal numbers apart.
    """
    code = uint32(float32(peak).view(uint32))
    if code >= uint32(INFINITY_BITS) or code == uint32(0):
        return uint8(0)
    if code >= uint32(0x0080_0000) and uint32(code & uint32(0x007F_FFFF)) < uint32(0x007F_FF00):
        return uint8(int32(int32(code >> uint32(23)) - int32(2)) & int32(0xFF))
    logarithm = float32(np.log2(np.float64(peak)))
    return uint8(int32(int32(np.floor(logarithm)) + int32(125)) & int32(0xFF))


@inline
def _half_scale(e: np.uint8) -> np.float32:
    """Half of 2 ** (e - 127): the scale of the doubled values."""
    code = uint32(e)
    small = uint32(uint32(0x0020_0000) << code)
    return float32(uint32(small if code < uint32(2) else uint32(uint32(code - uint32(1)) << uint32(23))).view(float32))


@inline
def _rounded(values: Floats, e: np.uint8) -> Ints:
    """The codes with the least error, the first of equals, for scales far from the ends of float32.

    From 2 on the doubled values of MXFP4 are the floats with one bit of mantissa: to round to these, halves towards
    zero, is to round the bits. Below lie 0 and 1. NaN gets code 0, as in ggml.
    """
    size = bits(values) & MAGNITUDE
    scaled = size - ((int32(e) - 128) << 23)  # the bits of the number in units of the doubled values
    codes = ((scaled + 0x1F_FFFF) >> 22) - 0xFE
    codes = select(scaled > 0x3FC0_0000, clamp(codes, 2, 7), select(scaled > 0x3F00_0000, bits(splat(ZERO)) + 1, 0))
    codes = select(size > INFINITY_BITS, 0, codes)
    return select((codes > 0) & (values < ZERO), codes | 8, codes)


@inline
def _searched(values: Floats, scale: np.float32) -> Ints:
    """The same for any scale, as ggml does it: products may be subnormal or infinite."""
    size = magnitude(values)
    least = size
    codes = bits(splat(ZERO))
    for i in range(1, 8):
        error = magnitude(_DOUBLED[i] * scale - size)
        is_less = error < least
        codes = select(is_less, i, codes)
        least = select(is_less, error, least)
    return select((codes > 0) & (values < ZERO), codes | 8, codes)  # with the wrong sign none is better than code 0


@jit("void(Array(float32, 1, 'C', True), uint8[::1])")
def _encode_mxfp4(values: Values, out: Bytes) -> None:
    exponents = np.empty(LANES, np.uint8)
    blocks = values.size // WIDTH
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        for i in range(count):  # all at first: that brings the values from memory at its full speed
            exponents[i] = _exponent(_peak(values, 2 * (first + i), 2))
        for i in range(count):
            block, e = first + i, exponents[i]
            low, high = load(values, 2 * block), load(values, 2 * block + 1)
            if 3 <= e <= 252:
                codes = _rounded(low, e) | (_rounded(high, e) << 4)
            else:
                codes = _searched(low, _half_scale(e)) | (_searched(high, _half_scale(e)) << 4)
            out[block * 17] = e
            put_bytes(out, block * 17 + 1, codes)


@jit("void(Array(uint8, 1, 'C', True), float32[::1])")
def decode_mxfp4(raw: Bytes, out: Values) -> None:
    """See ``contract.py``."""
    for block in range(out.size // WIDTH):
        scale, codes = _half_scale(raw[block * 17]), get_bytes(raw, block * 17 + 1)
        store(out, 2 * block, looked_up(codes & 15, _SIGNED) * scale)
        store(out, 2 * block + 1, looked_up(codes >> 4, _SIGNED) * scale)


def encode_tq1_0(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """See ``contract.py``."""
    _encode_tq1_0(values, out)


def encode_tq2_0(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """See ``contract.py``."""
    _encode_tq2_0(values, out)


def encode_mxfp4(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """See ``contract.py``."""
    _encode_mxfp4(values, out)
