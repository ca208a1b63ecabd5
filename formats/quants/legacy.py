"""The types of 32-element blocks with one scale: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1.

Layouts (little endian)::

    Q8_0   34 bytes: d f16, codes int8[32]                d * code
    Q4_0   18 bytes: d f16, codes[16]                     d * (code - 8)
    Q5_0   22 bytes: d f16, high u32, codes[16]           d * (code - 16)
    Q4_1   20 bytes: d f16, m f16, codes[16]              d * code + m
    Q5_1   24 bytes: d f16, m f16, high u32, codes[16]    d * code + m

Byte j of codes[16] holds elements j and j + 16, four bits each; the fifth bit of element e is bit e of high.

Source: ``quantize_row_*_ref``, ``quantize_q*_impl`` and ``dequantize_row_*`` in ggml's ``ggml-quants.c``. Without an
imatrix the extremes of a block decide: a block lies in two vectors of ``LANES``, and sixteen blocks share the
arithmetic on their scales. With an imatrix (Q8_0 takes none) ``search.py`` fits sixteen blocks side by side.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numpy import float32, int32, uint8, uint32
from numpy.typing import NDArray

from ..codecs import _widen
from ..jit import inline, jit
from .search import (
    _F,
    _I,
    _LLVM,
    LANES,
    Floats,
    Ints,
    _convert,
    _intrinsic,
    asymmetric,
    asymmetric_codes,
    bits,
    from_bits,
    half,
    load,
    magnitude,
    root,
    select,
    store,
    symmetric,
    symmetric_codes,
    to_float,
)

Values = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Rows = NDArray[np.float32]  # (rows, LANES)

WIDTH = 32
SIDE_BY_SIDE = 4  # rows whose squares are added at a time: each sum has to wait for its own last addition

_ZERO = float32(0)
_ONE = float32(1)
_HALF = float32(0.5)
_GREATEST = float32(np.finfo(np.float32).max)
_BEYOND_INT = float32(2**31)
_BELOW_HALF = 0x3EFF_FFFF  # the bits of the last float32 before 0.5
_SIGN = -0x8000_0000
_MAGNITUDE = 0x7FFF_FFFF
_INFINITY_BITS = 0x7F80_0000

_BYTES = ir.VectorType(ir.IntType(8), LANES)
_truncate = _convert(_F, _I, "fptosi")


def _reduce(name: str, vector: Any, flags: tuple[str, ...] = ()) -> Any:
    def define(typing: Any, x: Any) -> Any:
        def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            kind = ir.FunctionType(_LLVM[vector].element, [_LLVM[vector]])
            function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
            return builder.call(function, values, fastmath=flags)

        return (vector.scalar(x), build) if x == vector else None

    return _intrinsic(define)


# The two of floats want vectors without NaN, and may lose the sign of a zero.
_greatest_int = _reduce(f"llvm.vector.reduce.smax.v{LANES}i32", _I)
_least = _reduce(f"llvm.vector.reduce.fmin.v{LANES}f32", _F, ("nnan",))
_greatest = _reduce(f"llvm.vector.reduce.fmax.v{LANES}f32", _F, ("nnan",))


@_intrinsic
def _positions(typing: Any, low: Any, high: Any) -> Any:
    """The set lanes of two masks as the bits of an int64."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        wide = ir.IntType(64)
        parts = [builder.zext(builder.bitcast(mask, ir.IntType(LANES)), wide) for mask in values]
        return builder.or_(parts[0], builder.shl(parts[1], ir.Constant(wide, LANES)))

    return types.int64(low, high), build


@_intrinsic
def _first(typing: Any, positions: Any) -> Any:
    """The number of the lowest bit that is set, 64 if none is."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(positions), build


@_intrinsic
def _lane_numbers(typing: Any) -> Any:
    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        return ir.Constant(_LLVM[_I], list(range(LANES)))

    return _I(), build


@_intrinsic
def _put_bytes(typing: Any, out: Any, at: Any, codes: Any) -> Any:
    """The low byte of each lane, from ``at`` on; the place is not checked."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, values[0]).data
        at = context.cast(builder, values[1], sig.args[1], types.intp)
        place = builder.bitcast(builder.gep(data, [at]), _BYTES.as_pointer())
        builder.store(builder.trunc(values[2], _BYTES), place, align=1)
        return context.get_dummy_value()

    return types.void(out, at, codes), build


@_intrinsic
def _get_bytes(typing: Any, raw: Any, at: Any) -> Any:
    """``LANES`` bytes from ``at`` on as integers 0 .. 255; the place is not checked."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, values[0]).data
        at = context.cast(builder, values[1], sig.args[1], types.intp)
        place = builder.bitcast(builder.gep(data, [at]), _BYTES.as_pointer())
        return builder.zext(builder.load(place, align=1), _LLVM[_I])

    return _I(raw, at), build


@inline
def _to_int(v: Floats) -> Ints:
    """Cut off the fraction; infinity and NaN, which come from an inverse that overflowed, give ggml 0 as a byte."""
    return _truncate(select(magnitude(v) < _BEYOND_INT, v, _ZERO))


@inline
def _inverted(d: Floats) -> Floats:
    return select(d == _ZERO, _ZERO, _ONE / d)


@inline
def _put_u16(code: int, out: Bytes, at: int) -> None:
    out[at] = uint8(code & 0xFF)
    out[at + 1] = uint8((code >> 8) & 0xFF)


@inline
def _get_f16(raw: Bytes, at: int) -> np.float32:
    code = uint32(uint32(raw[at]) | uint32(uint32(raw[at + 1]) << uint32(8)))
    size = _widen(uint32(code & uint32(0x7FFF)), 10, 15, 0x7C00, 2.0**-24)
    return float32(uint32(size | uint32(uint32(code & uint32(0x8000)) << uint32(16))).view(float32))


@inline
def _put_codes(low: Ints, high: Ints, has_fifth: bool, out: Bytes, at: int) -> None:
    """Codes of the first and the second half of a block."""
    if has_fifth:
        fifth = _positions((low & 16) == 16, (high & 16) == 16)
        _put_u16(fifth, out, at)
        _put_u16(fifth >> 16, out, at + 2)
        at += 4
    _put_bytes(out, at, (low & 15) | ((high & 15) << 4))


@inline
def _get_codes(raw: Bytes, at: int, has_fifth: bool) -> tuple[Ints, Ints]:
    low = high = _get_bytes(raw, at + (4 if has_fifth else 0))
    low, high = low & 15, high >> 4
    if has_fifth:
        first = int32(raw[at]) | (int32(raw[at + 1]) << 8)
        second = int32(raw[at + 2]) | (int32(raw[at + 3]) << 8)
        lane = _lane_numbers()
        low = low | ((((lane & 0) | int32(first)) >> lane) & 1) << 4
        high = high | ((((lane & 0) | int32(second)) >> lane) & 1) << 4
    return low, high


@inline
def _half_away(v: Floats) -> Ints:
    """``roundf``: to the nearest integer, halves away from zero."""
    return _to_int(v + from_bits((bits(v) & _SIGN) | _BELOW_HALF))


@inline
def _peak(low: Floats, high: Floats) -> np.int32:
    """The bits of the greatest magnitude in a block."""
    a, b = bits(low) & _MAGNITUDE, bits(high) & _MAGNITUDE
    a, b = select(a > _INFINITY_BITS, 0, a), select(b > _INFINITY_BITS, 0, b)
    return int32(_greatest_int(select(a > b, a, b)))


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
            peaks[i] = _peak(load(values, 2 * block), load(values, 2 * block + 1))
        d = load(scales, 0) / float32(127)
        store(scales, 1, _inverted(d))
        store(shorts, 0, half(d)[0])
        for i in range(count):
            block = first + i
            at = block * 34
            inverse = scales[1, i]
            _put_u16(shorts[0, i], out, at)
            _put_bytes(out, at + 2, _half_away(load(values, 2 * block) * inverse))
            _put_bytes(out, at + 18, _half_away(load(values, 2 * block + 1) * inverse))


@inline
def _signed_peak(values: Values, block: int) -> np.float32:
    """The first element that has the greatest magnitude; 0 in a block of zeros, whatever their signs."""
    low, high = load(values, 2 * block), load(values, 2 * block + 1)
    peak = _peak(low, high)
    first = _first(_positions((bits(low) & _MAGNITUDE) == peak, (bits(high) & _MAGNITUDE) == peak))
    found = float32(values[block * WIDTH + min(first, WIDTH - 1)])
    return found if peak > 0 else _ZERO


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
        store(scales, 1, _inverted(d))
        store(shorts, 0, half(d)[0])
        for i in range(count):
            block = first + i
            inverse = scales[1, i]
            low = _to_int(load(values, 2 * block) * inverse + offset)
            high = _to_int(load(values, 2 * block + 1) * inverse + offset)
            low = select(low > 2 * top - 1, 2 * top - 1, low)
            high = select(high > 2 * top - 1, 2 * top - 1, high)
            _put_u16(shorts[0, i], out, block * nbytes)
            _put_codes(low, high, has_fifth, out, block * nbytes + 2)


@inline
def _range(values: Values, block: int) -> tuple[np.float32, np.float32]:
    """The first least element and the width of the range; NaN counts for nothing."""
    low, high = load(values, 2 * block), load(values, 2 * block + 1)
    a, b = select(low < _GREATEST, low, _GREATEST), select(high < _GREATEST, high, _GREATEST)
    least = float32(_least(select(a < b, a, b)))
    a, b = select(low > -_GREATEST, low, -_GREATEST), select(high > -_GREATEST, high, -_GREATEST)
    width = float32(float32(_greatest(select(a > b, a, b))) - least)
    first = _first(_positions(low == least, high == least))
    found = float32(values[block * WIDTH + min(first, WIDTH - 1)])  # a zero has the sign of the first zero
    least = found if first < WIDTH else least
    return least, width if width != _ZERO else _ZERO


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
        store(scales, 2, _inverted(d))
        store(shorts, 0, half(d)[0])
        store(shorts, 1, half(load(scales, 0))[0])
        for i in range(count):
            block = first + i
            least, inverse = scales[0, i], scales[2, i]
            low = _to_int((load(values, 2 * block) - least) * inverse + _HALF)
            high = _to_int((load(values, 2 * block + 1) - least) * inverse + _HALF)
            _put_u16(shorts[0, i], out, block * nbytes)
            _put_u16(shorts[1, i], out, block * nbytes + 2)
            _put_codes(select(low > top, top, low), select(high > top, top, high), has_fifth, out, block * nbytes + 4)


@inline
def _mean_squares(values: Values, row: int, means: Values) -> None:
    """The mean square of each row, added up in the order of its elements."""
    last = means.size - 1
    for first in range(0, means.size, SIDE_BY_SIDE):
        a, b = first * row, min(first + 1, last) * row
        c, d = min(first + 2, last) * row, min(first + 3, last) * row
        sum_a = sum_b = sum_c = sum_d = _ZERO
        for j in range(row):
            sum_a += values[a + j] * values[a + j]
            sum_b += values[b + j] * values[b + j]
            sum_c += values[c + j] * values[c + j]
            sum_d += values[d + j] * values[d + j]
        sums = (sum_a, sum_b, sum_c, sum_d)
        for i in range(min(SIDE_BY_SIDE, means.size - first)):
            means[first + i] = sums[i] / float32(row)


@inline
def _gather(values: Values, row: int, weights: Values, means: Values, first: int, x: Rows, w: Rows) -> None:
    """Blocks from ``first`` on as columns, with the weight of each element: importance * sqrt(mean + square).

    Lanes beyond the last block repeat it; nobody stores them.
    """
    for lane in range(LANES):
        start = min(first + lane, values.size // WIDTH - 1) * WIDTH
        column = start % row
        x[WIDTH, lane] = means[start // row]
        for e in range(WIDTH):
            x[e, lane] = values[start + e]
            w[e, lane] = weights[column + e]
    mean = load(x, WIDTH)
    for e in range(WIDTH):
        value = load(x, e)
        store(w, e, load(w, e) * root(mean + value * value))


@inline
def _turn(codes: NDArray[np.int32], turned: NDArray[np.int32]) -> None:
    for lane in range(LANES):
        for e in range(WIDTH):
            turned[lane, e] = codes[e, lane]


@jit("void(Array(float32, 1, 'C', True), int64, Array(float32, 1, 'C', True), boolean, uint8[::1])")
def _encode_symmetric_weighted(values: Values, row: int, weights: Values, has_fifth: bool, out: Bytes) -> None:
    top = 16 if has_fifth else 8
    nbytes = 22 if has_fifth else 18
    blocks = values.size // WIDTH
    means = np.empty(values.size // row, np.float32)
    _mean_squares(values, row, means)
    x, w = np.empty((WIDTH + 1, LANES), np.float32), np.empty((WIDTH, LANES), np.float32)
    scratch, shorts = np.empty((WIDTH, LANES), np.float32), np.empty((1, LANES), np.int32)
    codes, turned = np.empty((WIDTH, LANES), np.int32), np.empty((LANES, WIDTH), np.int32)
    for first in range(0, blocks, LANES):
        _gather(values, row, weights, means, first, x, w)
        scale, inverse = symmetric(x, w, scratch, 0, WIDTH, top)
        for e in range(WIDTH):
            store(codes, e, symmetric_codes(load(x, e), inverse, top))
        store(shorts, 0, half(scale)[0])
        _turn(codes, turned)
        for i in range(min(LANES, blocks - first)):
            at = (first + i) * nbytes
            _put_u16(shorts[0, i], out, at)
            _put_codes(load(turned, 2 * i), load(turned, 2 * i + 1), has_fifth, out, at + 2)


@jit("void(Array(float32, 1, 'C', True), int64, Array(float32, 1, 'C', True), boolean, uint8[::1])")
def _encode_asymmetric_weighted(values: Values, row: int, weights: Values, has_fifth: bool, out: Bytes) -> None:
    top = 31 if has_fifth else 15
    nbytes = 24 if has_fifth else 20
    blocks = values.size // WIDTH
    means = np.empty(values.size // row, np.float32)
    _mean_squares(values, row, means)
    x, w = np.empty((WIDTH + 1, LANES), np.float32), np.empty((WIDTH, LANES), np.float32)
    scratch, shorts = np.empty((WIDTH, LANES), np.float32), np.empty((2, LANES), np.int32)
    codes, turned = np.empty((WIDTH, LANES), np.int32), np.empty((LANES, WIDTH), np.int32)
    for first in range(0, blocks, LANES):
        _gather(values, row, weights, means, first, x, w)
        scale, minimum, inverse, low = asymmetric(x, w, scratch, 0, WIDTH, top, float32(-0.9), float32(0.05), 36, False)
        for e in range(WIDTH):
            store(codes, e, asymmetric_codes(load(x, e), inverse, low, top))
        store(shorts, 0, half(scale)[0])
        store(shorts, 1, half(minimum * float32(-1))[0])
        _turn(codes, turned)
        for i in range(min(LANES, blocks - first)):
            at = (first + i) * nbytes
            _put_u16(shorts[0, i], out, at)
            _put_u16(shorts[1, i], out, at + 2)
            _put_codes(load(turned, 2 * i), load(turned, 2 * i + 1), has_fifth, out, at + 4)


@jit("void(Array(uint8, 1, 'C', True), float32[::1])")
def _decode_q8_0(raw: Bytes, out: Values) -> None:
    for block in range(out.size // WIDTH):
        at = block * 34
        d = _get_f16(raw, at)
        for row in range(2):
            code = _get_bytes(raw, at + 2 + row * LANES)
            store(out, 2 * block + row, to_float(code - ((code & 128) << 1)) * d)


@jit("void(Array(uint8, 1, 'C', True), boolean, float32[::1])")
def _decode_symmetric(raw: Bytes, has_fifth: bool, out: Values) -> None:
    top = 16 if has_fifth else 8
    nbytes = 22 if has_fifth else 18
    for block in range(out.size // WIDTH):
        at = block * nbytes
        d = _get_f16(raw, at)
        low, high = _get_codes(raw, at + 2, has_fifth)
        store(out, 2 * block, to_float(low - top) * d)
        store(out, 2 * block + 1, to_float(high - top) * d)


@jit("void(Array(uint8, 1, 'C', True), boolean, float32[::1])")
def _decode_asymmetric(raw: Bytes, has_fifth: bool, out: Values) -> None:
    nbytes = 24 if has_fifth else 20
    for block in range(out.size // WIDTH):
        at = block * nbytes
        d, m = _get_f16(raw, at), _get_f16(raw, at + 2)
        low, high = _get_codes(raw, at + 4, has_fifth)
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
        _encode_symmetric_weighted(values, row, weights, False, out)


def encode_q4_1(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """See ``contract.py``."""
    if weights is None:
        _encode_asymmetric(values, False, out)
    else:
        _encode_asymmetric_weighted(values, row, weights, False, out)


def encode_q5_0(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """See ``contract.py``."""
    if weights is None:
        _encode_symmetric(values, True, out)
    else:
        _encode_symmetric_weighted(values, row, weights, True, out)


def encode_q5_1(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """See ``contract.py``."""
    if weights is None:
        _encode_asymmetric(values, True, out)
    else:
        _encode_asymmetric_weighted(values, row, weights, True, out)


def decode_q8_0(raw: Bytes, out: Values) -> None:
    """See ``contract.py``."""
    _decode_q8_0(raw, out)


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
