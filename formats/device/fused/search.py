"""``device/search.py``."""

import triton
import triton.language as tl

from .rounding import elements, nearest_float, quotient, zeros


@triton.jit
def _affine_error(
    x, w, inverse, origin, scale, low, count: tl.constexpr, top: tl.constexpr, is_absolute: tl.constexpr,
):  # fmt: skip
    error = zeros(scale)
    for i in tl.static_range(count):
        value = x[i]
        weight = w[i]
        off = nearest_float(inverse * (value - origin), 0, top) * scale + low - value
        size = tl.abs(off) if is_absolute else off * off
        error = error + size * weight
    return error


@triton.jit(do_not_specialize=["n", "tries"])
def asymmetric(
    x, w, numerators, found, n, tries,
    count: tl.constexpr, top: tl.constexpr, is_absolute: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """``found``: scale, low, and the inverse and the low that make the codes, (4, n)."""
    lane = tl.program_id(0) * lanes + tl.arange(0, lanes)
    used = lane < n
    x = elements(x, n, lane, used, count)
    w = elements(w, n, lane, used, count)
    least = x[0]
    high = least
    sum_w = zeros(least)
    sum_x = zeros(least)
    for i in tl.static_range(count):
        value = x[i]
        weight = w[i]
        least = tl.where(value < least, value, least)
        high = tl.where(value > high, value, high)
        sum_w = sum_w + weight
        sum_x = sum_x + weight * value
    best_low = tl.where(least > 0.0, 0.0, least)
    is_flat = high == best_low
    high = tl.where(is_flat, best_low + 1.0, high)
    best_inverse = quotient(tl.load(numerators), high - best_low)
    best_origin = best_low
    best_scale = quotient(1.0, best_inverse)
    best_error = _affine_error(x, w, best_inverse, best_origin, best_scale, best_low, count, top, is_absolute)
    best_error = tl.where(is_flat, -float("inf"), best_error)
    best_scale = tl.where(is_flat, 0.0, best_scale)
    best_inverse = tl.where(is_flat, 0.0, best_inverse)
    for attempt in range(1, tries):
        origin = best_low
        inverse = quotient(tl.load(numerators + attempt), high - origin)
        sum_l = zeros(high)
        sum_l2 = zeros(high)
        sum_xl = zeros(high)
        for i in tl.static_range(count):
            value = x[i]
            weight = w[i]
            code = nearest_float(inverse * (value - origin), 0, top)
            weighted = weight * code
            sum_l = sum_l + weighted
            sum_l2 = sum_l2 + weighted * code
            sum_xl = sum_xl + weighted * value
        determinant = sum_w * sum_l2 - sum_l * sum_l
        scale = quotient(sum_w * sum_xl - sum_x * sum_l, determinant)
        low = quotient(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        is_above = low > 0.0
        scale = tl.where(is_above, quotient(sum_xl, sum_l2), scale)
        low = tl.where(is_above, 0.0, low)
        error = _affine_error(x, w, inverse, origin, scale, low, count, top, is_absolute)
        is_better = (error < best_error) & (determinant > 0.0)
        best_error = tl.where(is_better, error, best_error)
        best_scale = tl.where(is_better, scale, best_scale)
        best_low = tl.where(is_better, low, best_low)
        best_inverse = tl.where(is_better, inverse, best_inverse)
        best_origin = tl.where(is_better, origin, best_origin)
    tl.store(found + lane, best_scale, used)
    tl.store(found + n + lane, best_low, used)
    tl.store(found + 2 * n + lane, best_inverse, used)
    tl.store(found + 3 * n + lane, best_origin, used)


@triton.jit
def signed_peak(x, count: tl.constexpr):
    """The first of the elements with the greatest magnitude; NaN counts as 0."""
    extreme = tl.where(x[0] == x[0], x[0], 0.0)
    for i in tl.static_range(count):
        value = x[i]
        extreme = tl.where(tl.abs(value) > tl.abs(extreme), value, extreme)
    return extreme


@triton.jit
def _scaled_sums(x, w, inverse, count: tl.constexpr, top: tl.constexpr):
    sum_lx = zeros(inverse)
    sum_l2 = zeros(inverse)
    for i in tl.static_range(count):
        value = x[i]
        weight = w[i]
        code = nearest_float(inverse * value, -top, top - 1)
        sum_lx = sum_lx + weight * value * code
        sum_l2 = sum_l2 + weight * code * code
    return sum_lx, sum_l2


@triton.jit(do_not_specialize=["n", "tries"])
def symmetric(
    x, w, numerators, found, n, tries, epsilon,
    count: tl.constexpr, top: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """``found``: the scale, and the inverse that makes the codes, (2, n)."""
    lane = tl.program_id(0) * lanes + tl.arange(0, lanes)
    used = lane < n
    x = elements(x, n, lane, used, count)
    w = elements(w, n, lane, used, count)
    extreme = signed_peak(x, count)
    is_zero = tl.abs(extreme) < epsilon
    extreme = tl.where(is_zero, 1.0, extreme)
    best_inverse = quotient(tl.load(numerators), extreme)
    sum_lx, sum_l2 = _scaled_sums(x, w, best_inverse, count, top)
    best_scale = tl.where(sum_l2 == 0.0, 0.0, quotient(sum_lx, sum_l2))
    best = best_scale * sum_lx
    for attempt in range(1, tries):
        inverse = quotient(tl.load(numerators + attempt), extreme)
        sum_lx, sum_l2 = _scaled_sums(x, w, inverse, count, top)
        scale = quotient(sum_lx, sum_l2)
        is_better = (sum_lx * sum_lx > best * sum_l2) & (sum_l2 > 0.0)
        best_scale = tl.where(is_better, scale, best_scale)
        best = tl.where(is_better, scale * sum_lx, best)
        best_inverse = tl.where(is_better, inverse, best_inverse)
    tl.store(found + lane, tl.where(is_zero, 0.0, best_scale), used)
    tl.store(found + n + lane, tl.where(is_zero, float("nan"), best_inverse), used)
