"""Q2_K, Q3_K, Q4_K, Q5_K and Q6_K: blocks of 256 weights with quantized scales, byte for byte those of ggml.

The layouts and the order of every operation are those of ``quantize_row_q*_K_ref``, ``quantize_row_q*_K_impl``
(with an importance matrix) and ``dequantize_row_q*_K`` in ggml-quants.c, as built for x86-64: float32 throughout,
each operation rounded once. Fields, in order; "half" is float16, multi-byte fields are little endian:

==== ========= ===================================================
Q2_K 84 bytes  scales[16], codes[64], half scale, half minimum
Q3_K 110 bytes high bits[32], codes[64], scales[12], half scale
Q4_K 144 bytes half scale, half minimum, scales[12], codes[128]
Q5_K 176 bytes half scale, half minimum, scales[12], high bits[32], codes[128]
Q6_K 210 bytes codes[128], high bits[64], scales[16], half scale
==== ========= ===================================================

``encode_*(values, row, weights, out)``: ``values`` is float32[n] with whole rows of ``row`` elements, a multiple of
256; ``weights`` is the importance of each column, float32[row], or None; ``out`` is uint8[n / 256 * bytes].
``decode_*(raw, out)`` is the way back. Neither checks lengths, and infinite or NaN values are not supported.

An encoder takes sixteen blocks at a time, one in each vector lane (see ``search``). Row r of the scratch array ``x``
holds element r of all sixteen; bytes are put together four to an int32 in the rows of ``words`` and transposed at
the end. The last group repeats its last block in the lanes that are left over.
"""

from typing import NamedTuple

import numpy as np
from numpy import float32, int8, int32, uint8, uint32
from numpy.typing import NDArray

from ..jit import inline, jit
from .search import (
    EPSILON,
    LANES,
    ONE,
    ZERO,
    Floats,
    Ints,
    Rows,
    any_lane,
    asymmetric,
    asymmetric_codes,
    clamp,
    half,
    load,
    magnitude,
    nearest,
    positive,
    refined,
    root,
    select,
    splat,
    store,
    symmetric,
    symmetric_codes,
    to_float,
    transpose,
)

BLOCK = 256
_WORDS = 64  # int32 words of the longest block, 53 in Q6_K, up to a multiple of LANES

Vector = NDArray[np.float32]
Bytes = NDArray[np.uint8]
IntRows = NDArray[np.int32]  # (rows, LANES)

_ENCODE = "void(Array(float32, 1, 'C', True), int64, Array(float32, 1, 'C', True), uint8[::1], int64)"
_DECODE = "void(Array(uint8, 1, 'C', True), float32[::1])"


class _Scratch(NamedTuple):
    """Scratch rows of sixteen blocks; sub-block j of each has row j of the arrays from ``scales`` on."""

    x: Rows  # 256 elements
    importance: Rows  # of the 256 columns
    weights: Rows  # of one sub-block
    codes: Rows  # of one sub-block, or something else for each of its elements, during its search
    kept: Rows  # 256 codes of a search that cannot make them again
    scales: Rows
    minima: Rows
    sums: Rows  # of the weights
    inverses: Rows  # with ``lows``: what makes the search's own codes again
    lows: Rows
    scale_codes: IntRows
    minimum_codes: IntRows
    signed_codes: IntRows  # ``scale_codes`` as the numbers they stand for
    levels: IntRows  # 256 final codes
    joined_codes: IntRows  # of scale and minimum, Q2_K only
    words: IntRows  # the block, four bytes to a row
    lanes: IntRows  # the same transposed: (LANES, words)
    starts: NDArray[np.int64]  # what to transpose


@inline
def _rows(count: int) -> Rows:
    """Rows that begin at multiples of 64 bytes, so that no vector lies across two cache lines."""
    raw = np.empty((count + 1) * LANES, np.float32)
    skip = -raw.ctypes.data % 64 // 4
    return raw[skip : skip + count * LANES].reshape(count, LANES)


@inline
def _int_rows(count: int) -> IntRows:
    return _rows(count).view(np.int32)


@inline
def _new_scratch() -> _Scratch:
    return _Scratch(
        x=_rows(BLOCK),
        importance=_rows(BLOCK),
        weights=_rows(32),
        codes=_rows(32),
        kept=_rows(BLOCK),
        scales=_rows(16),
        minima=_rows(16),
        sums=_rows(16),
        inverses=_rows(16),
        lows=_rows(16),
        scale_codes=_int_rows(16),
        minimum_codes=_int_rows(16),
        signed_codes=_int_rows(16),
        levels=_int_rows(BLOCK),
        joined_codes=_int_rows(16),
        words=_int_rows(_WORDS),
        lanes=_int_rows(_WORDS).reshape(LANES, _WORDS),
        starts=np.empty(LANES, np.int64),
    )


@inline
def _gather(s: _Scratch, values: Vector, first: int, last: int, period: int, out: Rows) -> None:
    """Put block ``min(first + lane, last)``, counted modulo ``period``, into each lane."""
    for lane in range(LANES):
        s.starts[lane] = min(first + lane, last) % period * BLOCK
    for i in range(0, BLOCK, LANES):
        transpose(values, s.starts, i, out, i * LANES, LANES)


@inline
def _scatter(s: _Scratch, out: Bytes, first: int, blocks: int, size: int) -> None:
    """Write the blocks in ``words`` that exist."""
    for i in range(LANES):
        s.starts[i] = i * LANES
    for word in range(0, (size + 3) // 4, LANES):
        transpose(s.words, s.starts, word * LANES, s.lanes, word, _WORDS)
    raw = s.lanes.view(np.uint8)
    for lane in range(min(LANES, blocks - first)):
        start = (first + lane) * size
        for i in range(size):
            out[start + i] = raw[lane, i]


@inline
def _load_group(s: _Scratch, values: Vector, row: int, weights: Vector, first: int) -> None:
    blocks = values.size // BLOCK
    _gather(s, values, first, blocks - 1, blocks, s.x)
    if weights.size > 0:
        _gather(s, weights, first, blocks - 1, row // BLOCK, s.importance)


@inline
def _sum_of_squares(x: Rows, first: int, count: int) -> Floats:
    total = splat(ZERO)
    for i in range(count):
        total = total + load(x, first + i) * load(x, first + i)
    return total


@inline
def _weigh_by_importance(s: _Scratch, sub: int, count: int, variance: Floats) -> None:
    """Weights of one sub-block and their sum, with an importance matrix."""
    total = splat(ZERO)
    for i in range(count):
        value = load(s.x, sub * count + i)
        weight = load(s.importance, sub * count + i) * root(variance + value * value)
        store(s.weights, i, weight)
        total = total + weight
    store(s.sums, sub, total)


@inline
def _weigh_by_size(s: _Scratch, sub: int, count: int) -> None:
    """Weights of one sub-block without importance matrix: magnitude, in Q4_K and Q5_K plus the root mean square."""
    base = splat(ZERO)
    if count == 32:
        base = root(_sum_of_squares(s.x, sub * count, count) / float32(32))
    for i in range(count):
        store(s.weights, i, base + magnitude(load(s.x, sub * count + i)))


@inline
def _fit_minima(s: _Scratch, is_weighted: bool, count: int, top: int) -> None:
    """Scale and minimum of each sub-block."""
    variance = _sum_of_squares(s.x, 0, BLOCK) * float32(1 if count == 16 else 2) / float32(BLOCK)
    for sub in range(BLOCK // count):
        if is_weighted:
            _weigh_by_importance(s, sub, count, variance)
            begin, step, tries = float32(-0.9), float32(0.05), 36
        else:
            _weigh_by_size(s, sub, count)
            step = float32(0.1)
            begin, tries = (float32(-1), 20) if top == 15 else (float32(-0.5), 15)
        is_absolute = count == 16 and not is_weighted
        scale, minimum, inverse, low = asymmetric(
            s.x, s.weights, s.codes, sub * count, count, top, begin, step, tries, is_absolute
        )
        store(s.scales, sub, scale)
        store(s.minima, sub, minimum)
        store(s.inverses, sub, inverse)
        store(s.lows, sub, low)


@inline
def _quantize_scales(x: Rows, weights: Rows, codes: IntRows, is_weighted: bool, subs: int, top: int) -> Floats:
    """Bytes for the scales or minima of the sub-blocks; returns what one unit of them is worth."""
    if is_weighted:
        return positive(x, weights, codes, subs, top)
    greatest = splat(ZERO)
    for sub in range(subs):
        greatest = select(load(x, sub) > greatest, load(x, sub), greatest)
    inverse = select(greatest > ZERO, float32(top) / greatest, ZERO)
    for sub in range(subs):
        store(codes, sub, nearest(inverse * load(x, sub)) & 0xFF)
    return greatest / float32(top)


@inline
def _fit_scales(s: _Scratch, is_weighted: bool, subs: int, top: int) -> tuple[Ints, Floats, Floats]:
    """Quantize scales and minima; returns the two halves as one int32, and their values."""
    scale_bits, scale = half(_quantize_scales(s.scales, s.sums, s.scale_codes, is_weighted, subs, top))
    minimum_bits, minimum = half(_quantize_scales(s.minima, s.sums, s.minimum_codes, is_weighted, subs, top))
    return scale_bits | (minimum_bits << 16), scale, minimum


@inline
def _requantize_minima(s: _Scratch, count: int, top: int, scale: Floats, minimum: Floats) -> None:
    """Final codes, from the scales as they will be read; with a scale of 0 the search's own codes stay."""
    for sub in range(BLOCK // count):
        step = scale * to_float(load(s.scale_codes, sub))
        low = minimum * to_float(load(s.minimum_codes, sub))
        is_zero = step == ZERO
        for i in range(sub * count, sub * count + count):
            store(s.levels, i, clamp(nearest((load(s.x, i) + low) / step), 0, top))
        if any_lane(is_zero):
            inverse, least = load(s.inverses, sub), load(s.lows, sub)
            for i in range(sub * count, sub * count + count):
                code = asymmetric_codes(load(s.x, i), inverse, least, top)
                store(s.levels, i, select(is_zero, code, load(s.levels, i)))


@inline
def _four(rows: IntRows, first: int) -> Ints:
    """Four bytes from four rows, as a little-endian int32."""
    low = load(rows, first) | (load(rows, first + 1) << 8)
    return low | (load(rows, first + 2) << 16) | (load(rows, first + 3) << 24)


@inline
def _limit_scales(codes: IntRows, is_capped: bool) -> None:
    """Make six bits of each of the eight bytes.

    They need more when a scale is negative, which few columns with a weight above 0 bring about. ggml caps them,
    but in Q4_K with an importance matrix it lets the upper two bits of the first four bytes spill into the others.
    """
    for sub in range(4):
        early, late = load(codes, sub), load(codes, sub + 4)
        if is_capped:
            early, late = clamp(early, 0, 63), clamp(late, 0, 63)
        store(codes, sub, early & 63)
        store(codes, sub + 4, (late & 63) | ((early >> 6) << 4))


@inline
def _pack_scales(s: _Scratch, first: int) -> None:
    """Eight scales and eight minima of six bits in twelve bytes (``get_scale_min_k4`` reads them)."""
    late_scales, late_minima = _four(s.scale_codes, 4), _four(s.minimum_codes, 4)
    store(s.words, first, _four(s.scale_codes, 0) | ((late_scales & 0x30303030) << 2))
    store(s.words, first + 1, _four(s.minimum_codes, 0) | ((late_minima & 0x30303030) << 2))
    store(s.words, first + 2, (late_scales & 0x0F0F0F0F) | ((late_minima & 0x0F0F0F0F) << 4))


@inline
def _pack_nibbles(s: _Scratch, first: int) -> None:
    """The low four bits of all codes; of 64 elements the later 32 are the high nibbles."""
    for word in range(32):
        element = word // 8 * 64 + word % 8 * 4
        low, high = _four(s.levels, element), _four(s.levels, element + 32)
        store(s.words, first + word, (low & 0x0F0F0F0F) | ((high & 0x0F0F0F0F) << 4))


@inline
def _pack_bits(s: _Scratch, bit: int, first: int) -> None:
    """Byte l has one bit of each of the elements 32 j + l, at place j."""
    for word in range(8):
        total = load(s.levels, 0) & 0
        for j in range(8):
            total = total | (((_four(s.levels, 32 * j + 4 * word) >> bit) & 0x01010101) << j)
        store(s.words, first + word, total)


@inline
def _pack_pairs(s: _Scratch, first: int) -> None:
    """The low two bits of all codes: byte l of each half has those of its elements l, 32 + l, 64 + l and 96 + l."""
    for word in range(16):
        element = word // 8 * 128 + word % 8 * 4
        total = _four(s.levels, element) & 0x03030303
        for j in range(1, 4):
            total = total | ((_four(s.levels, element + 32 * j) & 0x03030303) << (2 * j))
        store(s.words, first + word, total)


@inline
def _join_scales(s: _Scratch) -> None:
    """Scale and minimum in one byte; one that needs more than four bits spills over, and is then read like that."""
    for sub in range(16):
        joined = (load(s.scale_codes, sub) | (load(s.minimum_codes, sub) << 4)) & 0xFF
        store(s.joined_codes, sub, joined)
        store(s.scale_codes, sub, joined & 15)
        store(s.minimum_codes, sub, joined >> 4)


@inline
def _pack_q2_k(s: _Scratch, halves: Ints) -> int:
    """Put the block together; returns its bytes, as do the others."""
    for word in range(4):
        store(s.words, word, _four(s.joined_codes, 4 * word))
    _pack_pairs(s, 4)
    store(s.words, 20, halves)
    return 84


@inline
def _pack_q45_k(s: _Scratch, halves: Ints, has_fifth: bool) -> int:
    store(s.words, 0, halves)
    _pack_scales(s, 1)
    if not has_fifth:
        _pack_nibbles(s, 4)
        return 144
    _pack_bits(s, 4, 4)
    _pack_nibbles(s, 12)
    return 176


@jit(_ENCODE)
def _encode_minima(values: Vector, row: int, weights: Vector, out: Bytes, width: int) -> None:
    """Q2_K, Q4_K or Q5_K, the types with minima, by the bits of a code."""
    s = _new_scratch()
    is_weighted, blocks = weights.size > 0, values.size // BLOCK
    count, limit = (16, 15) if width == 2 else (32, 63)
    top = (1 << width) - 1
    for first in range(0, blocks, LANES):
        _load_group(s, values, row, weights, first)
        _fit_minima(s, is_weighted, count, top)
        halves, scale, minimum = _fit_scales(s, is_weighted, BLOCK // count, limit)
        if width == 2:
            _join_scales(s)
        else:
            is_capped = width == 5 or not is_weighted
            _limit_scales(s.scale_codes, is_capped)
            _limit_scales(s.minimum_codes, is_capped)
        _requantize_minima(s, count, top, scale, minimum)
        size = _pack_q2_k(s, halves) if width == 2 else _pack_q45_k(s, halves, width == 5)
        _scatter(s, out, first, blocks, size)


@inline
def _greatest_scale(s: _Scratch) -> tuple[Floats, Floats]:
    """The greatest magnitude of the sixteen scales, and the first scale that has it."""
    peak = extreme = splat(ZERO)
    for sub in range(16):
        scale = load(s.scales, sub)
        is_larger = magnitude(scale) > peak
        peak = select(is_larger, magnitude(scale), peak)
        extreme = select(is_larger, scale, extreme)
    return peak, extreme


@inline
def _fit_symmetric(s: _Scratch, sub: int, top: int) -> None:
    """Scale of one sub-block of sixteen, weighted by ``s.weights``."""
    scale, inverse = symmetric(s.x, s.weights, s.codes, 16 * sub, 16, top)
    store(s.scales, sub, scale)
    store(s.inverses, sub, inverse)


@inline
def _requantize_symmetric(s: _Scratch, top: int, scale: Floats, is_kept: bool) -> None:
    """Final codes, from the scales as they will be read; with a scale of 0 the search's own codes stay."""
    for sub in range(16):
        step = scale * to_float(load(s.signed_codes, sub))
        is_zero = step == ZERO
        for i in range(16 * sub, 16 * sub + 16):
            store(s.levels, i, clamp(nearest(load(s.x, i) / step), -top, top - 1) + top)
        if any_lane(is_zero):
            inverse = load(s.inverses, sub)
            for i in range(16 * sub, 16 * sub + 16):
                own = nearest(load(s.kept, i)) if is_kept else symmetric_codes(load(s.x, i), inverse, top)
                store(s.levels, i, select(is_zero, own, load(s.levels, i)))


@inline
def _fit_q6_k(s: _Scratch, is_weighted: bool) -> None:
    for sub in range(16):
        for i in range(16):
            value = load(s.x, 16 * sub + i)
            # Only here the importance is the weight as it is.
            store(s.weights, i, load(s.importance, 16 * sub + i) if is_weighted else value * value)
        _fit_symmetric(s, sub, 32)


@inline
def _fit_scales_q6_k(s: _Scratch) -> tuple[Ints, Floats]:
    """Scales as int8: the half, its value."""
    _, extreme = _greatest_scale(s)
    inverse = float32(-128) / extreme
    for sub in range(16):
        code = nearest(inverse * load(s.scales, sub))
        code = select(code > 127, 127, code) & 0xFF
        store(s.scale_codes, sub, code)
        store(s.signed_codes, sub, select(code > 127, code - 256, code))
    return half(ONE / inverse)


@inline
def _clear_zeros(s: _Scratch) -> None:
    """A Q6_K block whose scales are all 0 has only zero bytes."""
    peak, _ = _greatest_scale(s)
    is_zero = peak < EPSILON
    if any_lane(is_zero):
        for word in range(53):
            store(s.words, word, select(is_zero, 0, load(s.words, word)))


@inline
def _pack_q6_k(s: _Scratch, scale_bits: Ints) -> int:
    """Of each half, elements 32 j + l: low four bits in 64 bytes, nibble j // 2; high two in 32 bytes, pair j."""
    for word in range(16):
        element = word // 8 * 128 + word % 8 * 4
        a, b = _four(s.levels, element), _four(s.levels, element + 32)
        c, d = _four(s.levels, element + 64), _four(s.levels, element + 96)
        place = word // 8 * 16 + word % 8
        store(s.words, place, (a & 0x0F0F0F0F) | ((c & 0x0F0F0F0F) << 4))
        store(s.words, place + 8, (b & 0x0F0F0F0F) | ((d & 0x0F0F0F0F) << 4))
        high = ((a >> 4) & 0x03030303) | (((b >> 4) & 0x03030303) << 2)
        high = high | (((c >> 4) & 0x03030303) << 4) | (((d >> 4) & 0x03030303) << 6)
        store(s.words, 32 + word, high)
    for word in range(4):
        store(s.words, 48 + word, _four(s.scale_codes, 4 * word))
    store(s.words, 52, scale_bits)
    _clear_zeros(s)
    return 210


@inline
def _fit_weighted_q3_k(s: _Scratch) -> Floats:
    """Scales and their codes 0 .. 63 with an importance matrix; returns what one unit of them is worth."""
    variance = _sum_of_squares(s.x, 0, BLOCK) * float32(2) / float32(BLOCK)
    for sub in range(16):
        _weigh_by_importance(s, sub, 16, variance)
        _fit_symmetric(s, sub, 4)
    unit, inverse = symmetric(s.scales, s.sums, s.codes, 0, 16, 32)
    for sub in range(16):
        store(s.scale_codes, sub, symmetric_codes(load(s.scales, sub), inverse, 32))
    return unit


@inline
def _fit_q3_k(s: _Scratch) -> Floats:
    """The same without importance matrix; the codes of the search are kept."""
    for sub in range(0, 16, 8):  # so many that they stay in the first-level cache
        refined(s.x, s.kept, s.codes, s.scales, sub, sub + 8, 16)
    _, extreme = _greatest_scale(s)
    is_zero = extreme == ZERO
    inverse = float32(-32) / extreme
    for sub in range(16):
        code = clamp(nearest(inverse * load(s.scales, sub)), -32, 31) + 32
        store(s.scale_codes, sub, select(is_zero, 0, code))
    return select(is_zero, ZERO, ONE / inverse)


@inline
def _pack_q3_k(s: _Scratch, scale_bits: Ints) -> int:
    """High bits as Q5_K has them, pairs as Q2_K, then sixteen scales of six bits: nibbles in 8 bytes, pairs in 4."""
    _pack_bits(s, 2, 0)
    _pack_pairs(s, 8)
    a, b, c, d = _four(s.scale_codes, 0), _four(s.scale_codes, 4), _four(s.scale_codes, 8), _four(s.scale_codes, 12)
    store(s.words, 24, (a & 0x0F0F0F0F) | ((c & 0x0F0F0F0F) << 4))
    store(s.words, 25, (b & 0x0F0F0F0F) | ((d & 0x0F0F0F0F) << 4))
    high = ((a >> 4) & 0x03030303) | (((b >> 4) & 0x03030303) << 2)
    store(s.words, 26, high | (((c >> 4) & 0x03030303) << 4) | (((d >> 4) & 0x03030303) << 6))
    store(s.words, 27, scale_bits)
    return 110


@jit(_ENCODE)
def _encode_symmetric(values: Vector, row: int, weights: Vector, out: Bytes, width: int) -> None:
    """Q3_K or Q6_K, the types without minima, by the bits of a code."""
    s = _new_scratch()
    is_weighted, blocks = weights.size > 0, values.size // BLOCK
    for first in range(0, blocks, LANES):
        _load_group(s, values, row, weights, first)
        if width == 3:
            scale_bits, scale = half(_fit_weighted_q3_k(s) if is_weighted else _fit_q3_k(s))
            for sub in range(16):
                store(s.signed_codes, sub, load(s.scale_codes, sub) - 32)
        else:
            _fit_q6_k(s, is_weighted)
            scale_bits, scale = _fit_scales_q6_k(s)
        _requantize_symmetric(s, 1 << (width - 1), scale, width == 3 and not is_weighted)
        size = _pack_q3_k(s, scale_bits) if width == 3 else _pack_q6_k(s, scale_bits)
        _scatter(s, out, first, blocks, size)


@inline
def _half_at(raw: Bytes, at: int) -> np.float32:
    """The float16 in two bytes, widened."""
    code = uint32(uint32(raw[at]) | uint32(uint32(raw[at + 1]) << uint32(8)))
    size = uint32(uint32(code & uint32(0x7FFF)) << uint32(13))
    # With the exponent bias of float32 the number is 2**112 too small, a subnormal one too; the product is exact.
    value = float32(size.view(float32) * float32(2.0**112)).view(uint32)
    value = uint32(size | uint32(0x7F800000)) if size >= uint32(0x0F800000) else value
    return uint32(value | uint32(uint32(code & uint32(0x8000)) << uint32(16))).view(float32)


@inline
def _scale_and_minimum(scales: Bytes, sub: int) -> tuple[int, int]:
    """``get_scale_min_k4``."""
    if sub < 4:
        return scales[sub] & 63, scales[sub + 4] & 63
    low = scales[sub + 4]
    return (low & 15) | (scales[sub - 4] >> 6 << 4), (low >> 4) | (scales[sub] >> 6 << 4)


@jit(_DECODE)
def _decode_q4_k(raw: Bytes, out: Vector) -> None:
    for block in range(raw.size // 144):
        at = raw[block * 144 : block * 144 + 144]
        scale, minimum = _half_at(at, 0), _half_at(at, 2)
        for sub in range(8):
            step_code, low_code = _scale_and_minimum(at[4:16], sub)
            step, low = scale * float32(step_code), minimum * float32(low_code)
            codes = at[16 + sub // 2 * 32 : 48 + sub // 2 * 32]
            shift = uint8(sub % 2 * 4)
            start = block * BLOCK + sub * 32
            for i in range(32):
                out[start + i] = step * float32((codes[i] >> shift) & uint8(15)) - low


@jit(_DECODE)
def _decode_q5_k(raw: Bytes, out: Vector) -> None:
    for block in range(raw.size // 176):
        at = raw[block * 176 : block * 176 + 176]
        scale, minimum = _half_at(at, 0), _half_at(at, 2)
        for sub in range(8):
            step_code, low_code = _scale_and_minimum(at[4:16], sub)
            step, low = scale * float32(step_code), minimum * float32(low_code)
            high, codes = at[16:48], at[48 + sub // 2 * 32 : 80 + sub // 2 * 32]
            shift, bit = uint8(sub % 2 * 4), uint8(sub)
            start = block * BLOCK + sub * 32
            for i in range(32):
                code = ((codes[i] >> shift) & uint8(15)) | (((high[i] >> bit) & uint8(1)) << uint8(4))
                out[start + i] = step * float32(code) - low


@jit(_DECODE)
def _decode_q2_k(raw: Bytes, out: Vector) -> None:
    for block in range(raw.size // 84):
        at = raw[block * 84 : block * 84 + 84]
        scale, minimum = _half_at(at, 80), _half_at(at, 82)
        for sub in range(16):
            step, low = scale * float32(at[sub] & 15), minimum * float32(at[sub] >> 4)
            first = 16 + sub // 8 * 32 + sub % 2 * 16
            codes = at[first : first + 16]
            shift = uint8(sub % 8 // 2 * 2)
            start = block * BLOCK + sub * 16
            for i in range(16):
                out[start + i] = step * float32((codes[i] >> shift) & uint8(3)) - low


@jit(_DECODE)
def _decode_q3_k(raw: Bytes, out: Vector) -> None:
    for block in range(raw.size // 110):
        at = raw[block * 110 : block * 110 + 110]
        scale, scales = _half_at(at, 108), at[96:108]
        for sub in range(16):
            low = (scales[sub % 8] >> (sub // 8 * 4)) & 15
            step = scale * float32((low | ((scales[8 + sub % 4] >> (sub // 4 * 2)) & 3) << 4) - 32)
            first = 32 + sub // 8 * 32 + sub % 2 * 16
            high, codes = at[sub % 2 * 16 : sub % 2 * 16 + 16], at[first : first + 16]
            shift, bit = uint8(sub % 8 // 2 * 2), uint8(sub // 2)
            start = block * BLOCK + sub * 16
            for i in range(16):
                code = ((codes[i] >> shift) & uint8(3)) | (((high[i] >> bit) & uint8(1)) << uint8(2))
                out[start + i] = step * float32(int32(code) - 4)


@jit(_DECODE)
def _decode_q6_k(raw: Bytes, out: Vector) -> None:
    for block in range(raw.size // 210):
        at = raw[block * 210 : block * 210 + 210]
        scale = _half_at(at, 208)
        for sub in range(16):
            step = scale * float32(int8(at[192 + sub]))
            place = sub // 8 * 64 + sub % 4 * 16
            codes, high = at[place : place + 16], at[128 + sub // 8 * 32 + sub % 2 * 16 :]
            shift, pair = uint8(sub % 8 // 4 * 4), uint8(sub % 8 // 2 * 2)
            start = block * BLOCK + sub * 16
            for i in range(16):
                code = ((codes[i] >> shift) & uint8(15)) | (((high[i] >> pair) & uint8(3)) << uint8(4))
                out[start + i] = step * float32(int32(code) - 32)


_NONE: Vector = np.empty(0, np.float32)


def _weights(weights: Vector | None) -> Vector:
    return _NONE if weights is None else weights


def encode_q2_k(values: Vector, row: int, weights: Vector | None, out: Bytes) -> None:
    """Encode as Q2_K; see the module."""
    _encode_minima(values, row, _weights(weights), out, 2)


def encode_q3_k(values: Vector, row: int, weights: Vector | None, out: Bytes) -> None:
    """Encode as Q3_K; see the module."""
    _encode_symmetric(values, row, _weights(weights), out, 3)


def encode_q4_k(values: Vector, row: int, weights: Vector | None, out: Bytes) -> None:
    """Encode as Q4_K; see the module."""
    _encode_minima(values, row, _weights(weights), out, 4)


def encode_q5_k(values: Vector, row: int, weights: Vector | None, out: Bytes) -> None:
    """Encode as Q5_K; see the module."""
    _encode_minima(values, row, _weights(weights), out, 5)


def encode_q6_k(values: Vector, row: int, weights: Vector | None, out: Bytes) -> None:
    """Encode as Q6_K; see the module."""
    _encode_symmetric(values, row, _weights(weights), out, 6)


def decode_q2_k(raw: Bytes, out: Vector) -> None:
    """Decode Q2_K; see the module."""
    _decode_q2_k(raw, out)


def decode_q3_k(raw: Bytes, out: Vector) -> None:
    """Decode Q3_K; see the module."""
    _decode_q3_k(raw, out)


def decode_q4_k(raw: Bytes, out: Vector) -> None:
    """Decode Q4_K; see the module."""
    _decode_q4_k(raw, out)


def decode_q5_k(raw: Bytes, out: Vector) -> None:
    """Decode Q5_K; see the module."""
    _decode_q5_k(raw, out)


def decode_q6_k(raw: Bytes, out: Vector) -> None:
    """Decode Q6_K; see the module."""
    _decode_q6_k(raw, out)
