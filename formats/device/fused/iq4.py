"""``device/iq4.py``."""

import triton
import triton.language as tl

from .rounding import elements, quotient, zeros


@triton.jit
def _nearest_value(v, limits: tl.constexpr, values: tl.constexpr):
    """The value nearest to a number; the last for NaN."""
    found = zeros(v) + values[0]
    for i in tl.static_range(15):
        found = tl.where(v < limits[i], found, values[i + 1])
    return found


@triton.jit(do_not_specialize=["n", "tries"])
def best_scale(
    x, w, numerators, found, n, tries,
    extremes, limits: tl.constexpr, values: tl.constexpr, count: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """The scale of the try that fits best, the first of equals, (n)."""
    lane = tl.program_id(0) * lanes + tl.arange(0, lanes)
    used = lane < n
    x = elements(x, n, lane, used, count)
    w = elements(w, n, lane, used, count)
    extreme = tl.load(extremes + lane, used, 1.0)
    scale = zeros(extreme)
    best = zeros(extreme)
    for attempt in range(1 + tries):
        if attempt == 0:
            inverse = quotient(1.0, tl.div_rn(-extreme, zeros(extreme) + values[0]))
        else:
            inverse = quotient(tl.load(numerators + attempt - 1), extreme)
        products = zeros(extreme)
        squares = zeros(extreme)
        for i in tl.static_range(count):
            value = x[i]
            weight = w[i]
            q = _nearest_value(inverse * value, limits, values)
            weighted = weight * q
            squares = squares + q * weighted
            products = products + weighted * value
        fitted = quotient(products, squares)
        if attempt == 0:
            scale = tl.where(squares > 0.0, fitted, 0.0)
            best = scale * products
        else:
            is_better = products * products > best * squares
            scale = tl.where(is_better, fitted, scale)
            best = tl.where(is_better, fitted * products, best)
    tl.store(found + lane, scale, used)
