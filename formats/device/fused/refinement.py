"""``device/refinement.py``. The codes lie in memory, where each thread finds its own again."""

import triton
import triton.language as tl

from .rounding import elements, nearest, nearest_float, quotient, zeros
from .search import signed_peak


@triton.jit(do_not_specialize=["n"])
def refined(x, codes, found, n, epsilon, passes: tl.constexpr, count: tl.constexpr, lanes: tl.constexpr):
    """``codes``, (count, n), and ``found``, the scale, (n)."""
    lane = tl.program_id(0) * lanes + tl.arange(0, lanes)
    used = lane < n
    extreme = signed_peak(elements(x, n, lane, used, count), count)
    is_zero = tl.abs(extreme) < epsilon
    inverse = quotient(-4.0, tl.where(is_zero, 1.0, extreme))
    sum_lx = zeros(inverse)
    sum_l2 = zeros(inverse)
    for i in range(count):
        value = tl.load(x + i * n + lane, used, 0.0)
        code = nearest_float(value * inverse, -4, 3)
        sum_lx = sum_lx + value * value * value * code
        sum_l2 = sum_l2 + value * value * code * code
        tl.store(codes + i * n + lane, code, used)
    for _ in range(passes):
        for i in range(count):
            value = tl.load(x + i * n + lane, used, 0.0)
            code = tl.load(codes + i * n + lane, used, 0.0)
            square = value * value
            cube = square * value
            rest_lx = sum_lx - cube * code
            rest_l2 = sum_l2 - square * code * code
            new = nearest_float(tl.div_rn(value * rest_l2, rest_lx), -4, 3)
            full_lx = rest_lx + cube * new
            full_l2 = rest_l2 + square * new * new
            is_better = (rest_lx > 0.0) & (new != code) & (full_l2 > 0.0)
            is_better = is_better & (full_lx * full_lx * sum_l2 > sum_lx * sum_lx * full_l2)
            sum_lx = tl.where(is_better, full_lx, sum_lx)
            sum_l2 = tl.where(is_better, full_l2, sum_l2)
            tl.store(codes + i * n + lane, tl.where(is_better, new, code), used)
    for i in range(count):
        code = tl.load(codes + i * n + lane, used, 0.0)
        tl.store(codes + i * n + lane, tl.where(is_zero, -4.0, code), used)
    scale = tl.where((sum_l2 > 0.0) & (is_zero == 0), tl.div_rn(sum_lx, sum_l2), 0.0)
    tl.store(found + lane, scale, used)


@triton.jit(do_not_specialize=["n", "blocks", "tries"])
def positive(
    x, w, numerators, codes, found, n, blocks, tries, epsilon,
    top: tl.constexpr, passes: tl.constexpr, count: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """``codes``, (count, n), and ``found``, the scale, (n); ``n`` is a multiple of ``blocks``, which ``w`` is for."""
    lane = tl.program_id(0) * lanes + tl.arange(0, lanes)
    used = lane < n
    block = lane % blocks
    greatest = tl.load(x + lane, used, 0.0)
    for i in range(count):
        value = tl.load(x + i * n + lane, used, 0.0)
        greatest = tl.where((value > greatest) | (value != value), value, greatest)
    is_zero = greatest < epsilon
    inverse = zeros(greatest)
    least = zeros(greatest)
    for attempt in range(tries):
        tried = quotient(tl.load(numerators + attempt), greatest)
        error = zeros(greatest)
        for i in range(count):
            value = tl.load(x + i * n + lane, used, 0.0)
            code = nearest(value * tried)
            if attempt == 0:
                code = code & 0xFF
            else:
                code = tl.where(code > top, top, code)
            off = value - code.to(tl.float32) * quotient(1.0, tried)
            error = error + tl.load(w + i * blocks + block, used, 0.0) * off * off
        if attempt == 0:
            least = tl.where(error == error, error, -float("inf"))
            inverse = tried
        else:
            is_better = error < least
            least = tl.where(is_better, error, least)
            inverse = tl.where(is_better, tried, inverse)
    sum_lx = zeros(greatest)
    sum_l2 = zeros(greatest)
    for i in range(count):
        value = tl.load(x + i * n + lane, used, 0.0)
        weight = tl.load(w + i * blocks + block, used, 0.0)
        code = nearest(inverse * value)
        code = tl.where(code > top, top, code)
        level = code.to(tl.float32)
        sum_lx = sum_lx + weight * value * level
        sum_l2 = sum_l2 + weight * level * level
        tl.store(codes + i * n + lane, tl.where(is_zero, 0, code & 0xFF).to(tl.float32), used)
    sum_lx = tl.where(is_zero, 0.0, sum_lx)
    sum_l2 = tl.where(is_zero, 0.0, sum_l2)
    for _ in range(passes):
        for i in range(count):
            value = tl.load(x + i * n + lane, used, 0.0)
            weight = tl.load(w + i * blocks + block, used, 0.0)
            code = tl.load(codes + i * n + lane, used, 0.0)
            rest_lx = sum_lx - weight * value * code
            rest_l2 = sum_l2 - weight * code * code
            new = nearest(tl.div_rn(value * rest_l2, rest_lx))
            new = tl.where(new > top, top, new)
            level = new.to(tl.float32)
            full_lx = rest_lx + weight * value * level
            full_l2 = rest_l2 + weight * level * level
            is_better = (rest_lx > 0.0) & (rest_l2 > 0.0) & (level != code)
            is_better = is_better & (full_lx * full_lx * sum_l2 > sum_lx * sum_lx * full_l2)
            sum_lx = tl.where(is_better, full_lx, sum_lx)
            sum_l2 = tl.where(is_better, full_l2, sum_l2)
            tl.store(codes + i * n + lane, tl.where(is_better, (new & 0xFF).to(tl.float32), code), used)
    tl.store(found + lane, tl.where(sum_l2 > 0.0, tl.div_rn(sum_lx, sum_l2), 0.0), used)
