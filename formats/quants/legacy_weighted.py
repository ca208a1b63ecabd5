"""Q4_0, Q4_1, Q5_0 and Q5_1 with an importance matrix: ``search.py`` fits sixteen blocks side by side.

Source: ``quantize_q*_impl`` in ggml's ``ggml-quants.c``. The weight of an element depends on the whole row.
"""

import numpy as np
from numpy import float32

from ..jit import inline, jit
from .asymmetric import LOW, SCALE, Fits, asymmetric, asymmetric_codes, new_fits
from .contract import Bytes, Values
from .fields import put_u16
from .lanes import LANES, IntRows, Rows, root
from .legacy_codes import WIDTH, put_codes
from .memory import int_rows, load, store
from .rounding import ZERO, half
from .search import symmetric, symmetric_codes

SIDE_BY_SIDE = 4  # rows whose squares are added at a time: each sum has to wait for its own last addition


@inline
def _mean_squares(values: Values, row: int, means: Values) -> None:
    """The mean square of each row, added up in the order of its elements."""
    last = means.size - 1
    for first in range(0, means.size, SIDE_BY_SIDE):
        a, b = first * row, min(first + 1, last) * row
        c, d = min(first + 2, last) * row, min(first + 3, last) * row
        sum_a = sum_b = sum_c = sum_d = ZERO
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
def _turn(codes: IntRows, turned: IntRows) -> None:
    for lane in range(LANES):
        for e in range(WIDTH):
            turned[lane, e] = codes[e, lane]


@inline
def _fit(f: Fits, has_minimum: bool, has_fifth: bool, codes: IntRows, shorts: IntRows) -> None:
    """Codes, and the float16 bits of scale and minimum."""
    if has_minimum:
        top = 31 if has_fifth else 15
        asymmetric(f, 0, 1, WIDTH, top, float32(-0.9), float32(0.05), 36, False)
        for e in range(WIDTH):
            store(codes, e, asymmetric_codes(load(f.x, e), f, 0, top))
        store(shorts, 0, half(load(f.facts, SCALE))[0])
        store(shorts, 1, half(load(f.facts, LOW))[0])
    else:
        top = 16 if has_fifth else 8
        scale, inverse = symmetric(f.x, f.weights, f.codes, 0, WIDTH, top)
        for e in range(WIDTH):
            store(codes, e, symmetric_codes(load(f.x, e), inverse, top))
        store(shorts, 0, half(scale)[0])


@jit("void(Array(float32, 1, 'C', True), int64, Array(float32, 1, 'C', True), boolean, boolean, uint8[::1])")
def encode_weighted(values: Values, row: int, weights: Values, has_minimum: bool, has_fifth: bool, out: Bytes) -> None:
    """Encode as one of the four types: those that end in 1 have a minimum, those that begin with Q5 a fifth bit."""
    fields = 4 if has_minimum else 2
    nbytes = fields + (20 if has_fifth else 16)
    blocks = values.size // WIDTH
    means = np.empty(values.size // row, np.float32)
    _mean_squares(values, row, means)
    f = new_fits(2 * WIDTH)  # one row more for the means
    shorts, codes, turned = int_rows(2), int_rows(WIDTH), np.empty((LANES, WIDTH), np.int32)
    for first in range(0, blocks, LANES):
        _gather(values, row, weights, means, first, f.x, f.weights)
        _fit(f, has_minimum, has_fifth, codes, shorts)
        _turn(codes, turned)
        for i in range(min(LANES, blocks - first)):
            at = (first + i) * nbytes
            put_u16(shorts[0, i], out, at)
            if has_minimum:
                put_u16(shorts[1, i], out, at + 2)
            put_codes(load(turned, 2 * i), load(turned, 2 * i + 1), has_fifth, out, at + fields)
