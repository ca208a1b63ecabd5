"""The search procedures of ggml-quants.c, for sixteen sub-blocks at a time.

A procedure here reads like its scalar original, but each variable is a vector of ``LANES`` values, one for each of
sixteen sub-blocks (of sixteen different blocks). A lane does exactly the operations of the original in their order,
each rounded once to float32, so its result has the same bits. Elements lie in scratch arrays ``(rows, LANES)``,
element i of a sub-block in row ``first + i``.

No code is kept during a search, only the numbers that it was made from: whoever needs the search's own codes makes
them again, once, instead of a copy at each improvement.
"""

import numpy as np
from numpy import float32, int32

from ..jit import inline
from .lanes import Floats, IntRows, Ints, Rows, all_lanes, any_lane, joined, magnitude, select, splat, to_float
from .memory import load, load_pair, store, store_pair
from .rounding import HALF, MAGIC, ONE, TAME_BELOW, ZERO, clamp, nearest, nearest_float

MINUS_ONE = float32(-1)
INFINITY = float32(np.inf)
NAN = float32(np.nan)
TENTH = float32(0.1)
EPSILON = float32(1e-15)  # GROUP_MAX_EPS: below it a sub-block counts as zero

# How far the numbers to be rounded reach: no farther than the codes do, no farther than ``nearest_float``, or anywhere.
CODES, TAME, WILD = 0, 1, 2


@inline
def asymmetric_codes(x: Floats, inverse: Floats, low: Floats, top: int) -> Ints:
    """The codes 0 .. top that ``asymmetric`` chose: a sub-block of equal elements has ``inverse`` 0."""
    return clamp(nearest(inverse * (x - low)), 0, top)


@inline
def _lie_within(a: Floats, b: Floats, low: np.float32, high: np.float32) -> bool:
    """Are all numbers between two vectors >= low and < high? Rounding keeps their order, so the two decide."""
    return all_lanes((a >= low) & (a < high) & (b >= low) & (b < high))


@inline
def _extent(x: Rows, w: Rows, first: int, count: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Least and greatest element, sum of the weights, sum of the weighted elements."""
    low = high = load_pair(x, first, count)
    sum_w = load_pair(w, 0, count)
    sum_x = sum_w * low
    for i in range(1, count):
        value, weight = load_pair(x, first + i, count), load_pair(w, i, count)
        low = select(value < low, value, low)
        high = select(value > high, value, high)
        sum_w = sum_w + weight
        sum_x = sum_x + weight * value
    return low, high, sum_w, sum_x


@inline
def _asymmetric_sums(
    x: Rows, w: Rows, codes: Rows, first: int, count: int, inverse: Floats, low: Floats, top: np.float32, reach: int
) -> tuple[Floats, Floats, Floats]:
    """Choose codes; returns the weighted sums of code, code squared and code times element."""
    sum_l = sum_l2 = sum_xl = joined(splat(ZERO), splat(ZERO))
    for i in range(count):
        value, weight = load_pair(x, first + i, count), load_pair(w, i, count)
        scaled = inverse * (value - low)
        if reach == CODES:
            code = (scaled + MAGIC) - MAGIC
        elif reach == TAME:
            code = nearest_float(scaled, ZERO, top)
        else:
            code = to_float(clamp(nearest(scaled), 0, int32(top)))
        store_pair(codes, i, count, code)
        weighted = weight * code
        sum_l = sum_l + weighted
        sum_l2 = sum_l2 + weighted * code
        sum_xl = sum_xl + weighted * value
    return sum_l, sum_l2, sum_xl


@inline
def _asymmetric_error(
    x: Rows, w: Rows, codes: Rows, first: int, count: int, scale: Floats, low: Floats, is_absolute: bool
) -> Floats:
    error = joined(splat(ZERO), splat(ZERO))
    for i in range(count):
        off = (scale * load_pair(codes, i, count) + low) - load_pair(x, first + i, count)
        error = error + load_pair(w, i, count) * (magnitude(off) if is_absolute else off * off)
    return error


@inline
def asymmetric(
    x: Rows,
    w: Rows,
    codes: Rows,
    first: int,
    count: int,
    top: int,
    start: np.float32,
    step: np.float32,
    steps: int,
    is_absolute: bool,
) -> tuple[Floats, Floats, Floats, Floats]:
    """``make_qkx2_quants`` and ``make_qkx3_quants``: fit ``scale * code - minimum`` with codes 0 .. top.

    Two sub-blocks at once, in the two halves of each vector, because one alone would wait for its own sums. Elements
    are rows ``first .. first + 2 * count`` of ``x``, weights rows ``0 .. 2 * count`` of ``w``; ``codes`` is scratch.
    Tries the inverse scales ``(start + step * s + top) / range`` for s = 0 .. steps and keeps the least weighted
    error, absolute or squared. Returns scale and minimum (>= 0), then what ``asymmetric_codes`` needs.
    """
    limit = float32(top)
    least, high, sum_w, sum_x = _extent(x, w, first, count)
    low = select(least > ZERO, ZERO, least)
    is_flat = high == low
    greatest = high
    high = select(is_flat, low + ONE, high)  # keeps the numbers of the unused lane tame
    inverse = limit / (high - low)
    best_inverse, best_low = select(is_flat, ZERO, inverse), low
    scale = ONE / inverse
    _asymmetric_sums(x, w, codes, first, count, inverse, low, limit, WILD)
    error = _asymmetric_error(x, w, codes, first, count, scale, low, is_absolute)
    error = select(is_flat, -INFINITY, error)
    scale = select(is_flat, ZERO, scale)
    for s in range(steps + 1):
        inverse = ((start + step * float32(s)) + limit) / (high - low)
        a, b = inverse * (least - low), inverse * (greatest - low)
        if _lie_within(a, b, -HALF, limit + HALF):
            sum_l, sum_l2, sum_xl = _asymmetric_sums(x, w, codes, first, count, inverse, low, limit, CODES)
        elif _lie_within(a, b, -TAME_BELOW, TAME_BELOW):
            sum_l, sum_l2, sum_xl = _asymmetric_sums(x, w, codes, first, count, inverse, low, limit, TAME)
        else:
            sum_l, sum_l2, sum_xl = _asymmetric_sums(x, w, codes, first, count, inverse, low, limit, WILD)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        is_above = new_low > ZERO
        if any_lane(is_above):
            new_low = select(is_above, ZERO, new_low)
            new_scale = select(is_above, sum_xl / sum_l2, new_scale)
        new_error = _asymmetric_error(x, w, codes, first, count, new_scale, new_low, is_absolute)
        is_better = (determinant > ZERO) & (new_error < error)
        error = select(is_better, new_error, error)
        scale = select(is_better, new_scale, scale)
        best_inverse = select(is_better, inverse, best_inverse)
        best_low = select(is_better, low, best_low)
        low = select(is_better, new_low, low)  # the next steps search from the new minimum, as the original does
    return scale, low * MINUS_ONE, best_inverse, best_low


@inline
def _signed_peak(x: Rows, first: int, count: int) -> tuple[Floats, Floats]:
    """The greatest magnitude and the first element that has it."""
    peak = extreme = splat(ZERO)
    for i in range(count):
        value = load(x, first + i)
        size = magnitude(value)
        is_larger = size > peak
        peak = select(is_larger, size, peak)
        extreme = select(is_larger, value, extreme)
    return peak, extreme


@inline
def symmetric_codes(x: Floats, inverse: Floats, top: int) -> Ints:
    """The codes 0 .. 2 top - 1 that ``symmetric`` chose: all 0 in a sub-block of zeros, which has ``inverse`` NaN."""
    code = clamp(nearest(inverse * x), -top, top - 1) + top
    return select(inverse != inverse, 0, code)


@inline
def _symmetric_sums(
    x: Rows, w: Rows, wx: Rows, first: int, count: int, inverse: Floats, top: np.float32, is_tame: bool
) -> tuple[Floats, Floats]:
    sum_lx = sum_l2 = splat(ZERO)
    for i in range(count):
        scaled = inverse * load(x, first + i)
        if is_tame:
            code = nearest_float(scaled, -top, top - ONE)
        else:
            code = to_float(clamp(nearest(scaled), -int32(top), int32(top) - 1))
        sum_lx = sum_lx + load(wx, i) * code
        sum_l2 = sum_l2 + (load(w, i) * code) * code
    return sum_lx, sum_l2


@inline
def symmetric(x: Rows, w: Rows, wx: Rows, first: int, count: int, top: int) -> tuple[Floats, Floats]:
    """``make_qx_quants`` with rmse_type 1: fit ``scale * code`` with codes -top .. top - 1.

    Elements are rows ``first .. first + count`` of ``x``, weights rows ``0 .. count`` of ``w``; ``wx`` is scratch.
    Returns the scale, which may be negative, and the inverse for ``symmetric_codes``.
    """
    limit = float32(top)
    peak, extreme = _signed_peak(x, first, count)
    is_zero = peak < EPSILON
    extreme = select(is_zero, ONE, extreme)  # keeps the numbers of the unused lane tame
    is_tame = all_lanes(peak < INFINITY)  # not so where these elements are scales that overflowed
    for i in range(count):
        store(wx, i, load(w, i) * load(x, first + i))
    best_inverse = -limit / extreme
    sum_lx, sum_l2 = _symmetric_sums(x, w, wx, first, count, best_inverse, limit, False)
    scale = select(sum_l2 == ZERO, ZERO, sum_lx / sum_l2)
    best = scale * sum_lx
    for s in range(-9, 10):
        if s == 0:
            continue
        inverse = -(limit + TENTH * float32(s)) / extreme
        if is_tame:
            sum_lx, sum_l2 = _symmetric_sums(x, w, wx, first, count, inverse, limit, True)
        else:
            sum_lx, sum_l2 = _symmetric_sums(x, w, wx, first, count, inverse, limit, False)
        is_better = (sum_l2 > ZERO) & (sum_lx * sum_lx > best * sum_l2)
        scale = select(is_better, sum_lx / sum_l2, scale)
        best = select(is_better, scale * sum_lx, best)
        best_inverse = select(is_better, inverse, best_inverse)
    return select(is_zero, ZERO, scale), select(is_zero, NAN, best_inverse)


@inline
def _start_refined(x: Rows, codes: Rows, sums: Rows, first: int, count: int, sub: int) -> None:
    """The codes for the inverse scale that the extreme element gives, and their two sums in two rows of ``sums``."""
    peak, extreme = _signed_peak(x, first, count)
    inverse = float32(-4) / select(peak < EPSILON, ONE, extreme)
    sum_lx = sum_l2 = splat(ZERO)
    for i in range(first, first + count):
        value = load(x, i)
        weight = value * value
        code = nearest_float(inverse * value, float32(-4), float32(3))
        store(codes, i, code)
        sum_lx = sum_lx + (weight * value) * code
        sum_l2 = sum_l2 + (weight * code) * code
    store(sums, 2 * sub, sum_lx)
    store(sums, 2 * sub + 1, sum_l2)


@inline
def _refine_symmetric(x: Rows, codes: Rows, sums: Rows, i: int, sub: int) -> bool:
    """Give one element the code that is best while the others keep theirs; has any lane changed?"""
    value, code = load(x, i), load(codes, i)
    sum_lx, sum_l2 = load(sums, 2 * sub), load(sums, 2 * sub + 1)
    weight = value * value
    weighted = weight * value
    lx = sum_lx - weighted * code
    l2 = sum_l2 - (weight * code) * code
    new = to_float(clamp(nearest((value * l2) / lx), -4, 3))
    is_open = (lx > ZERO) & (new != code)
    lx = lx + weighted * new
    l2 = l2 + (weight * new) * new
    is_better = is_open & (l2 > ZERO) & ((lx * lx) * sum_l2 > (sum_lx * sum_lx) * l2)
    store(codes, i, select(is_better, new, code))
    store(sums, 2 * sub, select(is_better, lx, sum_lx))
    store(sums, 2 * sub + 1, select(is_better, l2, sum_l2))
    return any_lane(is_better)


@inline
def _finish_refined(x: Rows, codes: Rows, sums: Rows, first: int, count: int, sub: int) -> Floats:
    peak, _ = _signed_peak(x, first, count)
    is_zero = peak < EPSILON
    for i in range(first, first + count):
        store(codes, i, select(is_zero, ZERO, load(codes, i) + float32(4)))
    sum_lx, sum_l2 = load(sums, 2 * sub), load(sums, 2 * sub + 1)
    return select((sum_l2 > ZERO) & (peak >= EPSILON), sum_lx / sum_l2, ZERO)


@inline
def refined(x: Rows, codes: Rows, sums: Rows, scales: Rows, begin: int, end: int, count: int) -> None:
    """``make_q3_quants``: fit ``scale * code`` with codes -4 .. 3, weighted by the squares, to several sub-blocks.

    Sub-block s has the rows ``s * count .. (s + 1) * count`` of ``x``. Its codes (as floats, 0 .. 7; in a sub-block
    of zeros all 0) go to the same rows of ``codes``, its scale to row s of ``scales``; ``sums`` is scratch. The
    sub-blocks take turns, because a step needs all results of the step before in the same sub-block.
    """
    for sub in range(begin, end):
        _start_refined(x, codes, sums, sub * count, count, sub)
    for _ in range(5):
        # A lane without a change stays as it is in all later passes, so the lanes may go on together.
        has_changed = False
        for i in range(count):
            for sub in range(begin, end):
                has_changed |= _refine_symmetric(x, codes, sums, sub * count + i, sub)
        if not has_changed:
            break
    for sub in range(begin, end):
        store(scales, sub, _finish_refined(x, codes, sums, sub * count, count, sub))


@inline
def _positive_start(x: Rows, w: Rows, count: int, top: np.float32, greatest: Floats) -> Floats:
    """The inverse scale with the least weighted squared error, of nine around ``top / greatest``."""
    best_inverse = top / greatest
    error = splat(ZERO)
    scale = ONE / best_inverse
    for i in range(count):
        # The first codes are bytes and not limited to top.
        off = load(x, i) - scale * to_float(nearest(best_inverse * load(x, i)) & 0xFF)
        error = error + (load(w, i) * off) * off
    for s in range(-4, 5):
        if s == 0:
            continue
        inverse = (TENTH * float32(s) + top) / greatest
        scale = ONE / inverse
        new_error = splat(ZERO)
        for i in range(count):
            code = nearest(inverse * load(x, i))
            off = load(x, i) - scale * to_float(select(code < int32(top), code, int32(top)))
            new_error = new_error + (load(w, i) * off) * off
        is_better = new_error < error
        error = select(is_better, new_error, error)
        best_inverse = select(is_better, inverse, best_inverse)
    return best_inverse


@inline
def _refine_positive(
    x: Rows, w: Rows, codes: IntRows, count: int, top: int, sum_lx: Floats, sum_l2: Floats
) -> tuple[Floats, Floats, bool]:
    has_changed = False
    for i in range(count):
        value, weight, code = load(x, i), load(w, i), load(codes, i)
        weighted, level = weight * value, to_float(code)
        lx = sum_lx - weighted * level
        l2 = sum_l2 - (weight * level) * level
        new = nearest((value * l2) / lx)
        new = select(new < top, new, top)
        level = to_float(new)
        is_open = (lx > ZERO) & (l2 > ZERO) & (new != code)
        lx = lx + weighted * level
        l2 = l2 + (weight * level) * level
        is_better = is_open & ((lx * lx) * sum_l2 > (sum_lx * sum_lx) * l2)
        store(codes, i, select(is_better, new & 0xFF, code))
        sum_lx = select(is_better, lx, sum_lx)
        sum_l2 = select(is_better, l2, sum_l2)
        has_changed |= any_lane(is_better)
    return sum_lx, sum_l2, has_changed


@inline
def positive(x: Rows, w: Rows, codes: IntRows, count: int, top: int) -> Floats:
    """``make_qp_quants``: fit ``scale * code`` to numbers >= 0 with codes 0 .. top. Returns the scale.

    Numbers are the first ``count`` rows of ``x``, weights those of ``w``; the codes go to those of ``codes``. As in
    the original a code is a byte, and nothing keeps a negative number from becoming a large one.
    """
    greatest = splat(ZERO)
    for i in range(count):
        greatest = select(greatest > load(x, i), greatest, load(x, i))
    is_zero = greatest < EPSILON
    inverse = _positive_start(x, w, count, float32(top), greatest)
    sum_lx = sum_l2 = splat(ZERO)
    for i in range(count):
        value, weight = load(x, i), load(w, i)
        code = nearest(inverse * value)
        code = select(code < top, code, top)
        store(codes, i, select(is_zero, 0, code & 0xFF))
        level = to_float(code)
        sum_lx = sum_lx + (weight * value) * level
        sum_l2 = sum_l2 + (weight * level) * level
    sum_lx, sum_l2 = select(is_zero, ZERO, sum_lx), select(is_zero, ZERO, sum_l2)
    for _ in range(5):
        sum_lx, sum_l2, has_changed = _refine_positive(x, w, codes, count, top, sum_lx, sum_l2)
        if not has_changed:
            break
    return select(sum_l2 > ZERO, sum_lx / sum_l2, ZERO)
