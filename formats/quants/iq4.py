"""IQ4_NL and IQ4_XS: four bits an element, an index into 16 unevenly spaced values.

Layouts (little endian; sub-blocks have 32 elements; byte j of a sub-block's 16 holds elements j and j + 16)::

    IQ4_NL    32 elements    18 bytes: d f16, codes[16]
    IQ4_XS   256 elements   136 bytes: d f16, scales_h u16, scales_l[4], codes[128]

An element is ``scale * VALUES[code]``. In IQ4_NL the scale is d; in IQ4_XS each of the 8 sub-blocks has
``d * (s - 32)`` with a six-bit s, low four bits in nibble i of scales_l, high two in bits 2i and 2i + 1 of scales_h.

Source: ``quantize_row_iq4_nl_impl`` and ``dequantize_row_iq4_*`` in ggml's ``ggml-quants.c``, with ``ntry`` 7 as
``llama-quantize`` calls it. For each sub-block it tries 16 scales and keeps the one whose weighted least-squares fit
is best.

``LANES`` sub-blocks are searched side by side, in the vectors of ``lanes.py``: a lane does what ggml does, in ggml's
order. The value nearest to a number takes 15 comparisons, which vectorize, where a binary search does not.
"""

import numpy as np
from numpy import float32, int32, uint8, uint16

from ..jit import inline, jit
from .codebooks import IQ4_LIMITS as LIMITS
from .codebooks import IQ4_VALUES as VALUES
from .contract import Bytes, Values
from .fields import get_half, looked_up, put_half
from .lanes import LANES, Floats, IntRows, Ints, Rows, bits, magnitude, root, select, splat
from .memory import get_bytes, load, store
from .rounding import MAGIC, ONE, ZERO
from .search import EPSILON

WIDTH = 32
SUPER = 8  # sub-blocks of an IQ4_XS block
TRIES = 7

_NO_WEIGHTS = np.empty(0, np.float32)

_ENCODE = "void(Array(float32, 1, 'C', True), int64, Array(float32, 1, 'C', True), uint8[::1])"
_DECODE = "void(Array(uint8, 1, 'C', True), float32[::1])"


@inline
def _nearest_integer(value: np.float32) -> np.int32:
    """ggml's: half to even within 2**22, beyond it whatever the bits say."""
    code = float32(value + MAGIC).view(int32)
    return int32((code & int32(0x007F_FFFF)) - int32(0x0040_0000))


@inline
def _nearest_value(v: Floats) -> Floats:
    nearest = splat(VALUES[15])
    for i in range(14, -1, -1):
        nearest = select(v < LIMITS[i], VALUES[i], nearest)
    return nearest


@inline
def _nearest_code(v: Floats) -> Ints:
    """15 for NaN, as ggml's binary search."""
    nearest = bits(splat(ZERO)) + 15
    for i in range(14, -1, -1):
        nearest = select(v < LIMITS[i], i, nearest)
    return nearest


@inline
def _gather(values: Values, first: int, period: int, x: Rows) -> None:
    """Sub-blocks from ``first`` on as columns. After ``period`` sub-blocks they start again: a row of weights does,
    and so do the lanes beyond the last values, which nobody stores."""
    for lane in range(LANES):
        start = (first + lane) % period * WIDTH
        for e in range(WIDTH):
            x[e, lane] = values[start + e]


@inline
def _spread(x: Rows, group: int) -> Floats:
    """Twice the mean square of the block of ``group`` sub-blocks that a lane belongs to."""
    for lead in range(0, LANES, group):
        total = ZERO
        for lane in range(lead, lead + group):
            for e in range(WIDTH):
                total += x[e, lane] * x[e, lane]
        for lane in range(lead, lead + group):
            x[WIDTH, lane] = total * (float32(2) / float32(group * WIDTH))
    return load(x, WIDTH)


@inline
def _weigh(weights: Values, first: int, row: int, group: int, x: Rows, w: Rows) -> None:
    """The weight of each element: its square, or its importance times sqrt(spread + square)."""
    if weights.size == 0:
        for e in range(WIDTH):
            store(w, e, load(x, e) * load(x, e))
        return
    _gather(weights, first, row // WIDTH, w)
    spread = _spread(x, group)
    for e in range(WIDTH):
        store(w, e, load(w, e) * root(spread + load(x, e) * load(x, e)))


@inline
def _extreme(x: Rows) -> tuple[Floats, Floats]:
    """The greatest magnitude, and the first element that has it."""
    greatest = extreme = splat(ZERO)
    for e in range(WIDTH):
        value = load(x, e)
        size = magnitude(value)
        extreme = select(size > greatest, value, extreme)
        greatest = select(size > greatest, size, greatest)
    return greatest, extreme


@inline
def _fit(x: Rows, w: Rows, inverse: Floats) -> tuple[Floats, Floats]:
    """Sums of w q x and w q q, where q is the value nearest to inverse * x."""
    products = squares = splat(ZERO)
    for e in range(WIDTH):
        value = load(x, e)
        q = _nearest_value(inverse * value)
        weighted = load(w, e) * q
        products = products + weighted * value
        squares = squares + weighted * q
    return products, squares


@inline
def _search(x: Rows, w: Rows) -> Floats:
    """The best scale of each sub-block; 0 where all elements are below 1e-15."""
    greatest, extreme = _extreme(x)
    products, squares = _fit(x, w, ONE / (extreme * float32(-1) / VALUES[0]))
    scale = select(squares > ZERO, products / squares, ZERO)
    best = scale * products
    for attempt in range(-TRIES, TRIES + 1):
        products, squares = _fit(x, w, (float32(attempt) + VALUES[0]) / extreme)
        is_better = (squares > ZERO) & (products * products > best * squares)
        scale = select(is_better, products / squares, scale)
        best = select(is_better, scale * products, best)
    return select(greatest < EPSILON, ZERO, scale)


@inline
def _pack(x: Rows, scale: Floats, packed: IntRows) -> None:
    """Row j: the codes of elements j and j + 16 for the scale of each lane."""
    inverse = select(scale == ZERO, ZERO, ONE / scale)
    for j in range(WIDTH // 2):
        low, high = _nearest_code(inverse * load(x, j)), _nearest_code(inverse * load(x, j + WIDTH // 2))
        store(packed, j, low | (high << 4))


@jit(_ENCODE)
def _encode_nl(values: Values, row: int, weights: Values, out: Bytes) -> None:
    blocks = values.size // WIDTH
    x, w = np.empty((WIDTH + 1, LANES), np.float32), np.empty((WIDTH, LANES), np.float32)
    scales, packed = np.empty((1, LANES), np.float32), np.empty((WIDTH // 2, LANES), np.int32)
    for first in range(0, blocks, LANES):
        _gather(values, first, blocks, x)
        _weigh(weights, first, row, 1, x, w)
        scale = _search(x, w)
        _pack(x, scale, packed)
        store(scales, 0, scale)
        for lane in range(min(LANES, blocks - first)):
            at = (first + lane) * 18
            put_half(scales[0, lane], out, at)
            for j in range(WIDTH // 2):
                out[at + 2 + j] = uint8(packed[j, lane])


@inline
def _quantize_scales(scales: Rows, lead: int, out: Bytes, at: int) -> None:
    """Write d and the six-bit scales of the super-block whose lanes start at ``lead``; leave what they stand for.

    The codes are made for the float32 product, not for what d is rounded to.
    """
    greatest = extreme = ZERO
    for lane in range(lead, lead + SUPER):
        size = np.abs(scales[0, lane])
        if size > greatest:
            greatest, extreme = size, scales[0, lane]
    d = -extreme / float32(32)
    inverse = ONE / d if d != ZERO else ZERO
    put_half(d, out, at)
    high = int32(0)
    for i in range(SUPER):
        level = max(int32(-32), min(int32(31), _nearest_integer(inverse * scales[0, lead + i])))
        scales[0, lead + i] = d * float32(level)
        code = int32(level + int32(32))
        low = uint8(code & int32(15))
        out[at + 4 + i // 2] = low if i % 2 == 0 else uint8(out[at + 4 + i // 2] | uint8(low << uint8(4)))
        high |= int32(int32(code >> int32(4)) << int32(2 * i))
    out[at + 2] = uint8(high & int32(0xFF))
    out[at + 3] = uint8(high >> int32(8))


@jit(_ENCODE)
def _encode_xs(values: Values, row: int, weights: Values, out: Bytes) -> None:
    blocks = values.size // WIDTH
    x, w = np.empty((WIDTH + 1, LANES), np.float32), np.empty((WIDTH, LANES), np.float32)
    scales, packed = np.empty((1, LANES), np.float32), np.empty((WIDTH // 2, LANES), np.int32)
    for first in range(0, blocks, LANES):
        _gather(values, first, blocks, x)
        _weigh(weights, first, row, SUPER, x, w)
        store(scales, 0, _search(x, w))
        count = min(LANES, blocks - first)
        for lead in range(0, count, SUPER):
            _quantize_scales(scales, lead, out, (first + lead) // SUPER * 136)
        _pack(x, load(scales, 0), packed)
        for lane in range(count):
            at = (first + lane) // SUPER * 136 + 8 + lane % SUPER * 16
            for j in range(WIDTH // 2):
                out[at + j] = uint8(packed[j, lane])


@inline
def _unpack(raw: Bytes, at: int, scale: np.float32, out: Values, row: int) -> None:
    codes = get_bytes(raw, at)
    store(out, row, looked_up(codes & 15, VALUES) * scale)
    store(out, row + 1, looked_up(codes >> 4, VALUES) * scale)


@jit(_DECODE)
def decode_iq4_nl(raw: Bytes, out: Values) -> None:
    """See ``contract.py``."""
    for block in range(out.size // WIDTH):
        _unpack(raw, block * 18 + 2, get_half(raw, block * 18), out, 2 * block)


@jit(_DECODE)
def decode_iq4_xs(raw: Bytes, out: Values) -> None:
    """See ``contract.py``."""
    for block in range(out.size // (SUPER * WIDTH)):
        at = block * 136
        d = get_half(raw, at)
        high = int32(uint16(raw[at + 2]) | uint16(uint16(raw[at + 3]) << uint16(8)))
        for i in range(SUPER):
            low = int32(raw[at + 4 + i // 2] >> uint8(4 * (i % 2))) & int32(15)
            level = int32(low | int32(int32(int32(high >> int32(2 * i)) & int32(3)) << int32(4))) - int32(32)
            _unpack(raw, at + 8 + 16 * i, d * float32(level), out, 2 * (block * SUPER + i))


def encode_iq4_nl(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """See ``contract.py``."""
    _encode_nl(values, row, _NO_WEIGHTS if weights is None else weights, out)


def encode_iq4_xs(values: Values, row: int, weights: Values | None, out: Bytes) -> None:
    """See ``contract.py``."""
    _encode_xs(values, row, _NO_WEIGHTS if weights is None else weights, out)
