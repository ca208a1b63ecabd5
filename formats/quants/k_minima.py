"""Q2_K, Q4_K and Q5_K: blocks of 256 weights, each sub-block with a quantized scale and a quantized minimum.

Source: ``quantize_row_q*_K_ref``, ``quantize_row_q*_K_impl`` (with an importance matrix) and ``dequantize_row_q*_K`` in
ggml's ``ggml-quants.c``. Fields, in order; "half" is float16:

==== ========= ===================================================
Q2_K 84 bytes  scales[16], codes[64], half scale, half minimum
Q4_K 144 bytes half scale, half minimum, scales[12], codes[128]
Q5_K 176 bytes half scale, half minimum, scales[12], high bits[32], codes[128]
==== ========= ===================================================

An element is ``scale * sub-scale * code - minimum * sub-minimum``. Sub-blocks have 16 elements in Q2_K, else 32.
"""

from numpy import float32

from ..jit import inline, jit
from .asymmetric import LOW, SCALE, asymmetric, asymmetric_codes
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
from .lanes import LANES, Floats, IntRows, Ints, Rows, any_lane, magnitude, root, select, splat, to_float
from .memory import get_bytes, load, store
from .rounding import ZERO, clamp, half, nearest
from .search import positive


@inline
def _weigh_by_size(s: Scratch, sub: int, count: int) -> None:
    """Weights of one sub-block without importance matrix: magnitude, in Q4_K and Q5_K plus the root mean square."""
    base = splat(ZERO)
    if count == 32:
        base = root(sum_of_squares(s.x, sub * count, count) / float32(32))
    for i in range(sub * count, sub * count + count):
        store(s.weights, i, base + magnitude(load(s.x, i)))


@inline
def _fit_minima(s: Scratch, is_weighted: bool, count: int, top: int) -> None:
    """Scale and minimum of each sub-block."""
    begin, step, tries = float32(-0.5), float32(0.1), 15
    if is_weighted:
        begin, step, tries = float32(-0.9), float32(0.05), 36
        variance = sum_of_squares(s.x, 0, BLOCK) * float32(1 if count == 16 else 2) / float32(BLOCK)
        for sub in range(BLOCK // count):
            weigh_by_importance(s, sub, count, variance)
    else:
        if top == 15:
            begin, tries = float32(-1), 20
        for sub in range(BLOCK // count):
            _weigh_by_size(s, sub, count)
    is_absolute = count == 16 and not is_weighted
    turns = 128 // count  # so many that all they need stays in the first-level cache
    for sub in range(0, BLOCK // count, turns):
        asymmetric(s.fits, sub, sub + turns, count, top, begin, step, tries, is_absolute)
    for sub in range(BLOCK // count):
        store(s.scales, sub, load(s.fits.facts, sub * count + SCALE))
        store(s.minima, sub, load(s.fits.facts, sub * count + LOW) * float32(-1))


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
def _fit_scales(s: Scratch, is_weighted: bool, subs: int, top: int) -> tuple[Ints, Floats, Floats]:
    """Quantize scales and minima; returns the two halves as one int32, and their values."""
    scale_bits, scale = half(_quantize_scales(s.scales, s.sums, s.scale_codes, is_weighted, subs, top))
    minimum_bits, minimum = half(_quantize_scales(s.minima, s.sums, s.minimum_codes, is_weighted, subs, top))
    return scale_bits | (minimum_bits << 16), scale, minimum


@inline
def _requantize_minima(s: Scratch, count: int, top: int, scale: Floats, minimum: Floats) -> None:
    """Final codes, from the scales as they will be read; with a scale of 0 the search's own codes stay."""
    for sub in range(BLOCK // count):
        step = scale * to_float(load(s.scale_codes, sub))
        low = minimum * to_float(load(s.minimum_codes, sub))
        is_zero = step == ZERO
        for i in range(sub * count, sub * count + count):
            store(s.levels, i, clamp(nearest((load(s.x, i) + low) / step), 0, top))
        if any_lane(is_zero):
            for i in range(sub * count, sub * count + count):
                code = asymmetric_codes(load(s.x, i), s.fits, sub * count, top)
                store(s.levels, i, select(is_zero, code, load(s.levels, i)))


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
def _pack_scales(s: Scratch, first: int) -> None:
    """Eight scales and eight minima of six bits in twelve bytes (``get_scale_min_k4`` reads them)."""
    late_scales, late_minima = four(s.scale_codes, 4), four(s.minimum_codes, 4)
    store(s.words, first, four(s.scale_codes, 0) | ((late_scales & 0x30303030) << 2))
    store(s.words, first + 1, four(s.minimum_codes, 0) | ((late_minima & 0x30303030) << 2))
    store(s.words, first + 2, (late_scales & 0x0F0F0F0F) | ((late_minima & 0x0F0F0F0F) << 4))


@inline
def _pack_nibbles(s: Scratch, first: int) -> None:
    """The low four bits of all codes; of 64 elements the later 32 are the high nibbles."""
    for word in range(32):
        element = word // 8 * 64 + word % 8 * 4
        low, high = four(s.levels, element), four(s.levels, element + 32)
        store(s.words, first + word, (low & 0x0F0F0F0F) | ((high & 0x0F0F0F0F) << 4))


@inline
def _join_scales(s: Scratch) -> None:
    """Scale and minimum in one byte; one that needs more than four bits spills over, and is then read like that."""
    for sub in range(16):
        joined = (load(s.scale_codes, sub) | (load(s.minimum_codes, sub) << 4)) & 0xFF
        store(s.joined_codes, sub, joined)
        store(s.scale_codes, sub, joined & 15)
        store(s.minimum_codes, sub, joined >> 4)


@inline
def _pack_q2_k(s: Scratch, halves: Ints) -> int:
    """Put the block together; returns its bytes, as do the others."""
    for word in range(4):
        store(s.words, word, four(s.joined_codes, 4 * word))
    pack_pairs(s, 4)
    store(s.words, 20, halves)
    return 84


@inline
def _pack_q45_k(s: Scratch, halves: Ints, has_fifth: bool) -> int:
    store(s.words, 0, halves)
    _pack_scales(s, 1)
    if not has_fifth:
        _pack_nibbles(s, 4)
        return 144
    pack_bits(s, 4, 4)
    _pack_nibbles(s, 12)
    return 176


@jit(ENCODE)
def _encode_minima(values: Values, row: int, weights: Values, out: Bytes, width: int) -> None:
    """Q2_K, Q4_K or Q5_K, the types with minima, by the bits of a code."""
    s = new_scratch()
    is_weighted, blocks = weights.size > 0, values.size // BLOCK
    count, limit = (16, 15) if width == 2 else (32, 63)
    top = (1 << width) - 1
    for first in range(0, blocks, LANES):
        load_group(s, values, row, weights, first)
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
        scatter(s, out, first, blocks, size)


@jit(DECODE)
def decode_q2_k(raw: Bytes, out: Values) -> None:
    """Decode Q2_K, see ``contract.py``."""
    for block in range(raw.size // 84):
        row, at = block * (BLOCK // LANES), block * 84
        scale, minimum = get_half(raw, at + 80), get_half(raw, at + 82)
        for run in range(4):
            codes = get_bytes(raw, at + 16 + run * LANES)
            for pair in range(4):
                sub = run // 2 * 8 + pair * 2 + run % 2
                step, low = scale * float32(raw[at + sub] & 15), minimum * float32(raw[at + sub] >> 4)
                store(out, row + sub, step * to_float((codes >> (2 * pair)) & 3) - low)


@inline
def _step_and_low(raw: Bytes, at: int, sub: int, scale: float32, minimum: float32) -> tuple[float32, float32]:
    """Scale and minimum of a sub-block, from the twelve bytes at ``at`` (``get_scale_min_k4``)."""
    early, late, joined = raw[at + (sub & 3)], raw[at + (sub & 3) + 4], raw[at + (sub & 3) + 8]
    step = early & 63 if sub < 4 else (joined & 15) | (early >> 6 << 4)
    low = late & 63 if sub < 4 else (joined >> 4) | (late >> 6 << 4)
    return scale * float32(step), minimum * float32(low)


@jit(DECODE)
def decode_q4_k(raw: Bytes, out: Values) -> None:
    """Decode Q4_K, see ``contract.py``."""
    for block in range(raw.size // 144):
        row, at = block * (BLOCK // LANES), block * 144
        scale, minimum = get_half(raw, at), get_half(raw, at + 2)
        for pair in range(4):
            early, early_low = _step_and_low(raw, at + 4, 2 * pair, scale, minimum)
            late, late_low = _step_and_low(raw, at + 4, 2 * pair + 1, scale, minimum)
            for run in range(2):
                codes = get_bytes(raw, at + 16 + (2 * pair + run) * LANES)
                store(out, row + 4 * pair + run, early * to_float(codes & 15) - early_low)
                store(out, row + 4 * pair + 2 + run, late * to_float(codes >> 4) - late_low)


@jit(DECODE)
def decode_q5_k(raw: Bytes, out: Values) -> None:
    """Decode Q5_K, see ``contract.py``."""
    for block in range(raw.size // 176):
        row, at = block * (BLOCK // LANES), block * 176
        scale, minimum = get_half(raw, at), get_half(raw, at + 2)
        fifths = get_bytes(raw, at + 16), get_bytes(raw, at + 16 + LANES)
        for pair in range(4):
            early, early_low = _step_and_low(raw, at + 4, 2 * pair, scale, minimum)
            late, late_low = _step_and_low(raw, at + 4, 2 * pair + 1, scale, minimum)
            for run in range(2):
                fifth = fifths[run] >> (2 * pair)
                codes = get_bytes(raw, at + 48 + (2 * pair + run) * LANES)
                first, second = (codes & 15) | ((fifth & 1) << 4), (codes >> 4) | ((fifth & 2) << 3)
                store(out, row + 4 * pair + run, early * to_float(first) - early_low)
                store(out, row + 4 * pair + 2 + run, late * to_float(second) - late_low)


def encode_q2_k(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """Encode as Q2_K, see ``contract.py``."""
    _encode_minima(values, row, NO_WEIGHTS if weights is None else weights, out, 2)


def encode_q4_k(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """Encode as Q4_K, see ``contract.py``."""
    _encode_minima(values, row, NO_WEIGHTS if weights is None else weights, out, 4)


def encode_q5_k(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """Encode as Q5_K, see ``contract.py``."""
    _encode_minima(values, row, NO_WEIGHTS if weights is None else weights, out, 5)
