"""The search procedures of ggml-quants.c, for sixteen sub-blocks at a time; ``asymmetric.py`` has one more.

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
from .lanes import Floats, IntRows, Ints, Rows, all_lanes, any_lane, magnitude, select, splat, to_float
from .memory import load, store
from .rounding import ABOVE, ANYWHERE, AROUND, INFINITY, NAN, ONE, WITHIN, ZERO, clamp, nearest, nearest_code

TENTH = float32(0.1)
EPSILON = float32(1e-15)  # GROUP_MAX_EPS: below it a sub-block counts as zero


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
    x: Rows, w: Rows, wx: Rows, first: int, count: int, a: Floats, b: Floats, top: np.float32, reach: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Choose codes by two inverses; returns for each the weighted sums of code times element and of code squared.

    Two, because a sum has to wait for its own last addition: so there are others to be done meanwhile.
    """
    a_lx = a_l2 = b_lx = b_l2 = splat(ZERO)
    for i in range(count):
        value, weight, weighted = load(x, first + i), load(w, first + i), load(wx, i)
        a_code = nearest_code(a * value, -top, top - ONE, reach)
        b_code = nearest_code(b * value, -top, top - ONE, reach)
        a_lx = a_lx + weighted * a_code
        b_lx = b_lx + weighted * b_code
        a_l2 = a_l2 + (weight * a_code) * a_code
        b_l2 = b_l2 + (weight * b_code) * b_code
    return a_lx, a_l2, b_lx, b_l2


@inline
def _trial_inverse(top: np.float32, extreme: Floats, trial: int) -> Floats:
    """What puts the extreme element some tenths from ``-top``: nearer to 0 in trials 0 .. 8, farther in 9 .. 17."""
    tenths = trial - 9 if trial < 9 else trial - 8
    return -(top + TENTH * float32(tenths)) / extreme


@inline
def _trial_reach(trial: int) -> int:
    """Elements reach to top - 0.6, then to top + 0.3, then farther; -top is a code, top is none."""
    if trial < 4:
        return WITHIN
    return ABOVE if trial < 12 else AROUND


@inline
def _better_symmetric(
    sum_lx: Floats, sum_l2: Floats, inverse: Floats, scale: Floats, best: Floats, best_inverse: Floats
) -> tuple[Floats, Floats, Floats]:
    """Scale, what it is good for, and inverse: the best so far or those of a trial."""
    is_better = (sum_l2 > ZERO) & (sum_lx * sum_lx > best * sum_l2)
    scale = select(is_better, sum_lx / sum_l2, scale)
    best = select(is_better, scale * sum_lx, best)
    return scale, best, select(is_better, inverse, best_inverse)


@inline
def symmetric(x: Rows, w: Rows, wx: Rows, first: int, count: int, top: int) -> tuple[Floats, Floats]:
    """``make_qx_quants`` with rmse_type 1: fit ``scale * code`` with codes -top .. top - 1.

    Elements are rows ``first .. first + count`` of ``x``, weights the same rows of ``w``; ``wx`` is scratch. Returns
    the scale, which may be negative, and the inverse for ``symmetric_codes``.
    """
    limit = float32(top)
    peak, extreme = _signed_peak(x, first, count)
    is_zero = peak < EPSILON
    extreme = select(is_zero, ONE, extreme)  # keeps the numbers of the unused lane tame
    is_tame = all_lanes(peak < INFINITY)  # not so where these elements are scales that overflowed
    for i in range(count):
        store(wx, i, load(w, first + i) * load(x, first + i))
    inverse = -limit / extreme
    sum_lx, sum_l2, _, _ = _symmetric_sums(x, w, wx, first, count, inverse, inverse, limit, ANYWHERE)
    scale = select(sum_l2 == ZERO, ZERO, sum_lx / sum_l2)
    best = scale * sum_lx
    next_a, next_b = _trial_inverse(limit, extreme, 0), _trial_inverse(limit, extreme, 1)
    for trial in range(0, 18, 2):
        a, b = next_a, next_b
        next_a, next_b = _trial_inverse(limit, extreme, trial + 2), _trial_inverse(limit, extreme, trial + 3)
        reach = _trial_reach(trial) if is_tame else ANYWHERE
        a_lx, a_l2, b_lx, b_l2 = _symmetric_sums(x, w, wx, first, count, a, b, limit, reach)
        scale, best, inverse = _better_symmetric(a_lx, a_l2, a, scale, best, inverse)
        scale, best, inverse = _better_symmetric(b_lx, b_l2, b, scale, best, inverse)
    return select(is_zero, ZERO, scale), select(is_zero, NAN, inverse)


@inline
def _start_refined(x: Rows, codes: Rows, sums: Rows, first: int, count: int, sub: int) -> None:
    """The codes for the inverse scale that the extreme element gives, and their two sums in two rows of ``sums``."""
    peak, extreme = _signed_peak(x, first, count)
    inverse = float32(-4) / select(peak < EPSILON, ONE, extreme)
    sum_lx = sum_l2 = splat(ZERO)
    for i in range(first, first + count):
        value = load(x, i)
        weight = value * value
        code = nearest_code(inverse * value, float32(-4), float32(3), AROUND)
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
