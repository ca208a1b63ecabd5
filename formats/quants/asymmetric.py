"""The search of ggml-quants.c for a scale and a minimum.

As in ``search.py`` a vector holds one number of sixteen sub-blocks (of different blocks), and a lane does exactly the
operations of the original in their order. A sum is a chain of additions, each of which waits for the one before. So
several sub-blocks take turns at each step: while one of them waits, the processor works ahead on the next.
"""

from typing import NamedTuple

import numpy as np
from numpy import float32

from ..jit import inline
from .lanes import Floats, Ints, Mask, Rows, all_lanes, any_lane, magnitude, select, splat
from .memory import load, rows, store
from .rounding import (
    ABOVE,
    ANYWHERE,
    AROUND,
    EXACT,
    HALF,
    INFINITY,
    NAN,
    ONE,
    WITHIN,
    ZERO,
    clamp,
    nearest,
    nearest_code,
)

ALMOST_HALF = float32(0.499)  # rounding apart

# The numbers of a sub-block, each a row of its ``facts``: what its elements and weights are,
LEAST, GREATEST, SUM_W, SUM_X = range(4)
# the best trial so far, INVERSE and ORIGIN being what makes its codes again,
SCALE, LOW, ERROR, INVERSE, ORIGIN = range(4, 9)
# and the trial that is under way.
TRIAL_SCALE, TRIAL_LOW, TRIAL_INVERSE = range(9, 12)


class Fits(NamedTuple):
    """Several sub-blocks, one below the other, which have the same rows of all arrays.

    A row lies a multiple of 4 KiB from the same row of the other arrays. A processor that works ahead takes two places
    for one if they are the same within a page, and would wait for facts of one sub-block before it loads the next.
    """

    x: Rows
    weights: Rows
    codes: Rows  # of the trial, as floats
    facts: Rows


@inline
def new_fits(elements: int) -> Fits:
    """For so many rows of elements, a multiple of 64."""
    n, raw = elements, rows(4 * elements)
    return Fits(raw[:n], raw[n : 2 * n], raw[2 * n : 3 * n], raw[3 * n :])


@inline
def asymmetric_codes(x: Floats, f: Fits, first: int, top: int) -> Ints:
    """The codes 0 .. top that ``asymmetric`` chose: a sub-block of equal elements has INVERSE 0."""
    return clamp(nearest(load(f.facts, first + INVERSE) * (x - load(f.facts, first + ORIGIN))), 0, top)


@inline
def _extent(x: Rows, w: Rows, first: int, count: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Least and greatest element, sum of the weights, sum of the weighted elements."""
    low = high = load(x, first)
    sum_w = load(w, first)
    sum_x = sum_w * low
    for i in range(first + 1, first + count):
        value, weight = load(x, i), load(w, i)
        low = select(value < low, value, low)
        high = select(value > high, value, high)
        sum_w = sum_w + weight
        sum_x = sum_x + weight * value
    return low, high, sum_w, sum_x


@inline
def _sums(
    f: Fits, first: int, count: int, inverse: Floats, origin: Floats, top: np.float32, reach: int
) -> tuple[Floats, Floats, Floats]:
    """Choose codes; returns the weighted sums of code, code squared and code times element."""
    sum_l = sum_l2 = sum_xl = splat(ZERO)
    for i in range(first, first + count):
        value = load(f.x, i)
        code = nearest_code(inverse * (value - origin), ZERO, top, reach)
        store(f.codes, i, code)
        weighted = load(f.weights, i) * code
        sum_l = sum_l + weighted
        sum_l2 = sum_l2 + weighted * code
        sum_xl = sum_xl + weighted * value
    return sum_l, sum_l2, sum_xl


@inline
def _reach(f: Fits, first: int, inverse: Floats, origin: Floats, top: np.float32, span: np.float32) -> int:
    """Where the elements lie among the codes: the greatest at ``span``, no other above it, for rounding keeps order."""
    lowest = inverse * (load(f.facts, first + LEAST) - origin)
    is_ordered = inverse > ZERO  # not so where the greatest element is below the origin, or a difference overflowed
    if all_lanes(is_ordered & (lowest >= -HALF)):
        return WITHIN if span < top + ALMOST_HALF else ABOVE
    return AROUND if all_lanes(is_ordered & (lowest >= -EXACT)) else ANYWHERE


@inline
def _error(f: Fits, first: int, count: int, scale: Floats, low: Floats, is_absolute: bool) -> Floats:
    error = splat(ZERO)
    for i in range(first, first + count):
        off = (scale * load(f.codes, i) + low) - load(f.x, i)
        error = error + load(f.weights, i) * (magnitude(off) if is_absolute else off * off)
    return error


@inline
def _start(f: Fits, first: int, count: int, top: np.float32, is_absolute: bool) -> None:
    """The trial before all others, which spreads the codes from the least element to the greatest."""
    least, greatest, sum_w, sum_x = _extent(f.x, f.weights, first, count)
    low = select(least > ZERO, ZERO, least)
    is_flat = greatest == low
    greatest = select(is_flat, low + ONE, greatest)  # keeps the numbers of the unused lane tame
    store(f.facts, first + LEAST, least)
    store(f.facts, first + GREATEST, greatest)
    store(f.facts, first + SUM_W, sum_w)
    store(f.facts, first + SUM_X, sum_x)
    inverse = top / (greatest - low)
    scale = ONE / inverse
    _sums(f, first, count, inverse, low, top, _reach(f, first, inverse, low, top, top))
    error = _error(f, first, count, scale, low, is_absolute)
    store(f.facts, first + ERROR, select(is_flat, -INFINITY, error))
    store(f.facts, first + SCALE, select(is_flat, ZERO, scale))
    store(f.facts, first + LOW, low)
    store(f.facts, first + INVERSE, select(is_flat, ZERO, inverse))
    store(f.facts, first + ORIGIN, low)


@inline
def _try(f: Fits, first: int, count: int, top: np.float32, span: np.float32) -> None:
    """Codes with the greatest element ``span`` steps above the best minimum, then scale and minimum for these codes."""
    origin = load(f.facts, first + LOW)
    inverse = span / (load(f.facts, first + GREATEST) - origin)
    reach = _reach(f, first, inverse, origin, top, span)
    sum_l, sum_l2, sum_xl = _sums(f, first, count, inverse, origin, top, reach)
    sum_w, sum_x = load(f.facts, first + SUM_W), load(f.facts, first + SUM_X)
    determinant = sum_w * sum_l2 - sum_l * sum_l
    scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
    low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
    is_above = low > ZERO
    if any_lane(is_above):
        low = select(is_above, ZERO, low)
        scale = select(is_above, sum_xl / sum_l2, scale)
    # Without a solution the error will be NaN, which is less than no other.
    store(f.facts, first + TRIAL_SCALE, select(determinant > ZERO, scale, NAN))
    store(f.facts, first + TRIAL_LOW, low)
    store(f.facts, first + TRIAL_INVERSE, inverse)


@inline
def _replace(f: Fits, first: int, number: int, is_better: Mask, new: Floats) -> None:
    store(f.facts, first + number, select(is_better, new, load(f.facts, first + number)))


@inline
def _keep_better(f: Fits, first: int, count: int, is_absolute: bool) -> None:
    """Let the trial be the best where its error is less."""
    scale, low = load(f.facts, first + TRIAL_SCALE), load(f.facts, first + TRIAL_LOW)
    error = _error(f, first, count, scale, low, is_absolute)
    is_better = error < load(f.facts, first + ERROR)
    _replace(f, first, ERROR, is_better, error)
    _replace(f, first, SCALE, is_better, scale)
    _replace(f, first, INVERSE, is_better, load(f.facts, first + TRIAL_INVERSE))
    _replace(f, first, ORIGIN, is_better, load(f.facts, first + LOW))
    _replace(f, first, LOW, is_better, low)


@inline
def asymmetric(
    f: Fits,
    begin: int,
    end: int,
    count: int,
    top: int,
    start: np.float32,
    step: np.float32,
    steps: int,
    is_absolute: bool,
) -> None:
    """``make_qkx2_quants`` and ``make_qkx3_quants``: fit ``scale * code + low`` with codes 0 .. top and low <= 0.

    The sub-blocks are ``begin .. end``, of ``count`` rows each. Tries the inverse scales ``(start + step * s + top) /
    range`` for s = 0 .. steps, where the range is that from the best minimum so far to the greatest element, and keeps
    the least weighted error, absolute or squared. Leaves SCALE and LOW, and what ``asymmetric_codes`` needs.
    """
    limit = float32(top)
    for sub in range(begin, end):
        _start(f, sub * count, count, limit, is_absolute)
    for s in range(steps + 1):
        span = (start + step * float32(s)) + limit
        for sub in range(begin, end):
            _try(f, sub * count, count, limit, span)
        for sub in range(begin, end):
            _keep_better(f, sub * count, count, is_absolute)
