"""The types of 32-element blocks with one scale: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1.

Layouts (little endian)::

    Q8_0   34 bytes: d f16, codes int8[32]                d * code
    Q4_0   18 bytes: d f16, codes[16]                     d * (code - 8)
    Q5_0   22 bytes: d f16, high u32, codes[16]           d * (code - 16)
    Q4_1   20 bytes: d f16, m f16, codes[16]              d * code + m
    Q5_1   24 bytes: d f16, m f16, high u32, codes[16]    d * code + m

Byte j of codes[16] holds elements j and j + 16, four bits each; the fifth bit of element e is bit e of high.

Source: ``quantize_row_*_ref`` and ``dequantize_row_*`` in ggml's ``ggml-quants.c``. Without an imatrix the extremes of
a block decide: a block lies in two vectors of ``LANES``, and sixteen blocks share the arithmetic on their scales. What
an imatrix changes (Q8_0 takes none) is in ``legacy_weighted.py``.
"""

import numpy as np
from numpy import float32

from ..jit import inline, jit
from .contract import Bytes, Values
from .fields import MAGNITUDE, get_half, peak_bits, put_u16
from .lanes import (
    LANES,
    Floats,
    Ints,
    bits,
    first_position,
    from_bits,
    greatest_lane,
    least_lane,
    positions,
    select,
    to_float,
)
from .legacy_codes import WIDTH, get_codes, put_codes
from .legacy_weighted import encode_weighted
from .memory import get_bytes, load, put_bytes, store
from .rounding import ZERO, cut, half, inverted

_HALF = float32(0.5)
_GREATEST = float32(np.finfo(np.float32).max)
_BELOW_HALF = 0x3EFF_FFFF  # the bits of the last float32 before 0.5
_SIGN = -0x8000_0000


@inline
def _half_away(v: Floats) -> Ints:
    """``roundf``: to the nearest integer, halves away from zero."""
    return cut(v + from_bits((bits(v) & _SIGN) | _BELOW_HALF))


@jit("void(Array(float32, 1, 'C', True), uint8[::1])")
def _encode_q8_0(values: Values, out: Bytes) -> None:
    blocks = values.size // WIDTH
    scales = np.zeros((2, LANES), np.float32)
    shorts = np.zeros((1, LANES), np.int32)
    peaks = scales[0].view(np.int32)
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        for i in range(count):
            block = first + i
            peaks[i] = peak_bits(values, 2 * block, 2)
        d = load(scales, 0) / float32(127)
        store(scales, 1, inverted(d))
        store(shorts, 0, half(d)[0])
        for i in range(count):
            block = first + i
            at = block * 34
            inverse = scales[1, i]
            put_u16(shorts[0, i], out, at)
            put_bytes(out, at + 2, _half_away(load(values, 2 * block) * inverse))
            put_bytes(out, at + 18, _half_away(load(values, 2 * block + 1) * inverse))


@inline
def _signed_peak(values: Values, block: int) -> np.float32:
    """The first element that has the greatest magnitude; 0 in a block of zeros, whatever their signs."""
    low, high = load(values, 2 * block), load(values, 2 * block + 1)
    peak = peak_bits(values, 2 * block, 2)
    first = first_position(positions((bits(low) & MAGNITUDE) == peak, (bits(high) & MAGNITUDE) == peak))
    found = float32(values[block * WIDTH + min(first, WIDTH - 1)])
    return found if peak > 0 else ZERO


@jit("void(Array(float32, 1, 'C', True), boolean, uint8[::1])")
def _encode_symmetric(values: Values, has_fifth: bool, out: Bytes) -> None:
    top = 16 if has_fifth else 8
    nbytes = 22 if has_fifth else 18
    offset = float32(top) + _HALF
    blocks = values.size // WIDTH
    scales = np.zeros((2, LANES), np.float32)
    shorts = np.zeros((1, LANES), np.int32)
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        for i in range(count):
            scales[0, i] = _signed_peak(values, first + i)
        d = load(scales, 0) / float32(-top)
        store(scales, 1, inverted(d))
        store(shorts, 0, half(d)[0])
        for i in range(count):
            block = first + i
            inverse = scales[1, i]
            low = cut(load(values, 2 * block) * inverse + offset)
            high = cut(load(values, 2 * block + 1) * inverse + offset)
            low = select(low > 2 * top - 1, 2 * top - 1, low)
            high = select(high > 2 * top - 1, 2 * top - 1, high)
            put_u16(shorts[0, i], out, block * nbytes)
            put_codes(low, high, has_fifth, out, block * nbytes + 2)


@inline
def _range(values: Values, block: int) -> tuple[np.float32, np.float32]:
    """The first least element and the width of the range; NaN counts for nothing."""
    low, high = load(values, 2 * block), load(values, 2 * block + 1)
    a, b = select(low < _GREATEST, low, _GREATEST), select(high < _GREATEST, high, _GREATEST)
    least = float32(least_lane(select(a < b, a, b)))
    a, b = select(low > -_GREATEST, low, -_GREATEST), select(high > -_GREATEST, high, -_GREATEST)
    width = float32(float32(greatest_lane(select(a > b, a, b))) - least)
    first = first_position(positions(low == least, high == least))
    found = float32(values[block * WIDTH + min(first, WIDTH - 1)])  # a zero has the sign of the first zero
    least = found if first < WIDTH else least
    return least, width if width != ZERO else ZERO


@jit("void(Array(float32, 1, 'C', True), boolean, uint8[::1])")
def _encode_asymmetric(values: Values, has_fifth: bool, out: Bytes) -> None:
    top = 31 if has_fifth else 15
    nbytes = 24 if has_fifth else 20
    blocks = values.size // WIDTH
    scales = np.zeros((3, LANES), np.float32)
    shorts = np.zeros((2, LANES), np.int32)
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        for i in range(count):
            scales[0, i], scales[1, i] = _range(values, first + i)
        d = load(scales, 1) / float32(top)
        store(scales, 2, inverted(d))
        store(shorts, 0, half(d)[0])
        store(shorts, 1, half(load(scales, 0))[0])
        for i in range(count):
            block = first + i
            least, inverse = scales[0, i], scales[2, i]
            low = cut((load(values, 2 * block) - least) * inverse + _HALF)
            high = cut((load(values, 2 * block + 1) - least) * inverse + _HALF)
            put_u16(shorts[0, i], out, block * nbytes)
            put_u16(shorts[1, i], out, block * nbytes + 2)
            put_codes(select(low > top, top, low), select(high > top, top, high), has_fifth, out, block * nbytes + 4)


@jit("void(Array(uint8, 1, 'C', True), float32[::1])")
def decode_q8_0(raw: Bytes, out: Values) -> None:
    """See ``contract.py``."""
    for block in range(out.size // WIDTH):
        at = block * 34
        d = get_half(raw, at)
        for row in range(2):
            code = get_bytes(raw, at + 2 + row * LANES)
            store(out, 2 * block + row, to_float(code - ((code & 128) << 1)) * d)


@jit("void(Array(uint8, 1, 'C', True), boolean, float32[::1])")
def _decode_symmetric(raw: Bytes, has_fifth: bool, out: Values) -> None:
    top = 16 if has_fifth else 8
    nbytes = 22 if has_fifth else 18
    for block in range(out.size // WIDTH):
        at = block * nbytes
        d = get_half(raw, at)
        low, high = get_codes(raw, at + 2, has_fifth)
        store(out, 2 * block, to_float(low - top) * d)
        store(out, 2 * block + 1, to_float(high - top) * d)


@jit("void(Array(uint8, 1, 'C', True), boolean, float32[::1])")
def _decode_asymmetric(raw: Bytes, has_fifth: bool, out: Values) -> None:
    nbytes = 24 if has_fifth else 20
    for block in range(out.size // WIDTH):
        at = block * nbytes
        d, m = get_half(raw, at), get_half(raw, at + 2)
        low, high = get_codes(raw, at + 4, has_fifth)
        store(out, 2 * block, to_float(low) * d + m)
        store(out, 2 * block + 1, to_float(high) * d + m)


def encode_q8_0(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """See ``contract.py``."""
    _encode_q8_0(values, out)


def encode_q4_0(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """See ``contract.py``."""
    if weights is None:
        _encode_symmetric(values, False, out)
    else:
        encode_weighted(values, row, weights, False, False, out)


def encode_q4_1(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """See ``contract.py``."""
    if weights is None:
        _encode_asymmetric(values, False, out)
    else:
        encode_weighted(values, row, weights, True, False, out)


def encode_q5_0(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """See ``contract.py``."""
    if weights is None:
        _encode_symmetric(values, True, out)
    else:
        encode_weighted(values, row, weights, False, True, out)


def encode_q5_1(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """See ``contract.py``."""
    if weights is None:
        _encode_asymmetric(values, True, out)
    else:
        encode_weighted(values, row, weights, True, True, out)


def decode_q4_0(raw: Bytes, out: Values) -> None:
    """See ``contract.py``."""
    _decode_symmetric(raw, False, out)


def decode_q4_1(raw: Bytes, out: Values) -> None:
    """See ``contract.py``."""
    _decode_asymmetric(raw, False, out)


def decode_q5_0(raw: Bytes, out: Values) -> None:
    """See ``contract.py``."""
    _decode_symmetric(raw, True, out)


def decode_q5_1(raw: Bytes, out: Values) -> None:
    """See ``contract.py``."""
    _decode_asymmetric(raw, True, out)
