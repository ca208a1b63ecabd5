"""Q3_K and Q6_K: blocks of 256 weights, each sixteen of them with a quantized scale of either sign.

Source: ``quantize_row_q*_K_ref``, ``quantize_row_q*_K_impl`` (with an importance matrix) and ``dequantize_row_q*_K`` in
ggml's ``ggml-quants.c``. Fields, in order; "half" is float16:

==== ========= ===================================================
Q3_K 110 bytes high bits[32], codes[64], scales[12], half scale
Q6_K 210 bytes codes[128], high bits[64], scales[16], half scale
==== ========= ===================================================

An element is ``scale * sub-scale * code``; codes and, in Q3_K, sub-scales are stored with an offset.
"""

from numpy import float32, int8

from ..jit import inline, jit
from .contract import Bytes, Values
from .fields import get_half
from .k_blocks import (
    BLOCK,
    DECODE,
    ENCODE,
    NO_WEIGHTS,
    Scratch,
    four,
    load_group,
    new_scratch,
    pack_bits,
    pack_pairs,
    scatter,
    sum_of_squares,
    weigh_by_importance,
)
from .lanes import LANES, Floats, Ints, any_lane, magnitude, select, splat, to_float
from .memory import get_bytes, load, store
from .rounding import ONE, ZERO, clamp, half, nearest
from .search import EPSILON, refined, symmetric, symmetric_codes


@inline
def _greatest_scale(s: Scratch) -> tuple[Floats, Floats]:
    """The greatest magnitude of the sixteen scales, and the first scale that has it."""
    peak = extreme = splat(ZERO)
    for sub in range(16):
        scale = load(s.scales, sub)
        is_larger = magnitude(scale) > peak
        peak = select(is_larger, magnitude(scale), peak)
        extreme = select(is_larger, scale, extreme)
    return peak, extreme


@inline
def _fit_symmetric(s: Scratch, sub: int, top: int) -> None:
    """Scale of one sub-block of sixteen, weighted by its rows of ``s.weights``."""
    scale, inverse = symmetric(s.x, s.weights, s.codes, 16 * sub, 16, top)
    store(s.scales, sub, scale)
    store(s.inverses, sub, inverse)


@inline
def _requantize_symmetric(s: Scratch, top: int, scale: Floats, is_kept: bool) -> None:
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
def _fit_q6_k(s: Scratch, is_weighted: bool) -> None:
    for sub in range(16):
        for i in range(16 * sub, 16 * sub + 16):
            value = load(s.x, i)
            # Only here the importance is the weight as it is.
            store(s.weights, i, load(s.importance, i) if is_weighted else value * value)
        _fit_symmetric(s, sub, 32)


@inline
def _fit_scales_q6_k(s: Scratch) -> tuple[Ints, Floats]:
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
def _clear_zeros(s: Scratch) -> None:
    """A Q6_K block whose scales are all 0 has only zero bytes."""
    peak, _ = _greatest_scale(s)
    is_zero = peak < EPSILON
    if any_lane(is_zero):
        for word in range(53):
            store(s.words, word, select(is_zero, 0, load(s.words, word)))


@inline
def _pack_q6_k(s: Scratch, scale_bits: Ints) -> int:
    """Of each half, elements 32 j + l: low four bits in 64 bytes, nibble j // 2; high two in 32 bytes, pair j."""
    for word in range(16):
        element = word // 8 * 128 + word % 8 * 4
        a, b = four(s.levels, element), four(s.levels, element + 32)
        c, d = four(s.levels, element + 64), four(s.levels, element + 96)
        place = word // 8 * 16 + word % 8
        store(s.words, place, (a & 0x0F0F0F0F) | ((c & 0x0F0F0F0F) << 4))
        store(s.words, place + 8, (b & 0x0F0F0F0F) | ((d & 0x0F0F0F0F) << 4))
        high = ((a >> 4) & 0x03030303) | (((b >> 4) & 0x03030303) << 2)
        high = high | (((c >> 4) & 0x03030303) << 4) | (((d >> 4) & 0x03030303) << 6)
        store(s.words, 32 + word, high)
    for word in range(4):
        store(s.words, 48 + word, four(s.scale_codes, 4 * word))
    store(s.words, 52, scale_bits)
    _clear_zeros(s)
    return 210


@inline
def _fit_weighted_q3_k(s: Scratch) -> Floats:
    """Scales and their codes 0 .. 63 with an importance matrix; returns what one unit of them is worth."""
    variance = sum_of_squares(s.x, 0, BLOCK) * float32(2) / float32(BLOCK)
    for sub in range(16):
        weigh_by_importance(s, sub, 16, variance)
        _fit_symmetric(s, sub, 4)
    unit, inverse = symmetric(s.scales, s.sums, s.codes, 0, 16, 32)
    for sub in range(16):
        store(s.scale_codes, sub, symmetric_codes(load(s.scales, sub), inverse, 32))
    return unit


@inline
def _fit_q3_k(s: Scratch) -> Floats:
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
def _pack_q3_k(s: Scratch, scale_bits: Ints) -> int:
    """High bits as Q5_K has them, pairs as Q2_K, then sixteen scales of six bits: nibbles in 8 bytes, pairs in 4."""
    pack_bits(s, 2, 0)
    pack_pairs(s, 8)
    a, b, c, d = four(s.scale_codes, 0), four(s.scale_codes, 4), four(s.scale_codes, 8), four(s.scale_codes, 12)
    store(s.words, 24, (a & 0x0F0F0F0F) | ((c & 0x0F0F0F0F) << 4))
    store(s.words, 25, (b & 0x0F0F0F0F) | ((d & 0x0F0F0F0F) << 4))
    high = ((a >> 4) & 0x03030303) | (((b >> 4) & 0x03030303) << 2)
    store(s.words, 26, high | (((c >> 4) & 0x03030303) << 4) | (((d >> 4) & 0x03030303) << 6))
    store(s.words, 27, scale_bits)
    return 110


@jit(ENCODE)
def _encode_symmetric(values: Values, row: int, weights: Values, out: Bytes, width: int) -> None:
    """Q3_K or Q6_K, the types without minima, by the bits of a code."""
    s = new_scratch()
    is_weighted, blocks = weights.size > 0, values.size // BLOCK
    for first in range(0, blocks, LANES):
        load_group(s, values, row, weights, first)
        if width == 3:
            scale_bits, scale = half(_fit_weighted_q3_k(s) if is_weighted else _fit_q3_k(s))
            for sub in range(16):
                store(s.signed_codes, sub, load(s.scale_codes, sub) - 32)
        else:
            _fit_q6_k(s, is_weighted)
            scale_bits, scale = _fit_scales_q6_k(s)
        _requantize_symmetric(s, 1 << (width - 1), scale, width == 3 and not is_weighted)
        size = _pack_q3_k(s, scale_bits) if width == 3 else _pack_q6_k(s, scale_bits)
        scatter(s, out, first, blocks, size)


@jit(DECODE)
def decode_q3_k(raw: Bytes, out: Values) -> None:
    """Decode Q3_K, see ``contract.py``."""
    for block in range(raw.size // 110):
        row, at = block * (BLOCK // LANES), block * 110
        scale, scales = get_half(raw, at + 108), at + 96
        for run in range(4):
            codes, high = get_bytes(raw, at + 32 + run * LANES), get_bytes(raw, at + run % 2 * LANES)
            for pair in range(4):
                sub = run // 2 * 8 + pair * 2 + run % 2
                low = (raw[scales + sub % 8] >> (sub // 8 * 4)) & 15
                step = scale * float32((low | ((raw[scales + 8 + sub % 4] >> (sub // 4 * 2)) & 3) << 4) - 32)
                code = ((codes >> (2 * pair)) & 3) | (((high >> (sub // 2)) & 1) << 2)
                store(out, row + sub, step * to_float(code - 4))


@jit(DECODE)
def decode_q6_k(raw: Bytes, out: Values) -> None:
    """Decode Q6_K, see ``contract.py``."""
    for block in range(raw.size // 210):
        row, at = block * (BLOCK // LANES), block * 210
        scale = get_half(raw, at + 208)
        for run in range(4):
            high = get_bytes(raw, at + 128 + run * LANES)
            for pair in range(4):
                sub = run // 2 * 8 + pair * 2 + run % 2
                codes = get_bytes(raw, at + run // 2 * 64 + pair % 2 * 32 + run % 2 * LANES) >> (pair // 2 * 4)
                step = scale * float32(int8(raw[at + 192 + sub]))
                code = (codes & 15) | (((high >> (2 * pair)) & 3) << 4)
                store(out, row + sub, step * to_float(code - 32))


def encode_q3_k(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """Encode as Q3_K, see ``contract.py``."""
    _encode_symmetric(values, row, NO_WEIGHTS if weights is None else weights, out, 3)


def encode_q6_k(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """Encode as Q6_K, see ``contract.py``."""
    _encode_symmetric(values, row, NO_WEIGHTS if weights is None else weights, out, 6)
