"""The search procedures of ggml-quants.c for all sub-blocks of a chunk at once: ``quants/search.py`` in torch.

Elements and weights are ``(count, ...)``, one row for each element of a sub-block; results are ``(...)``. A lane does
the operations of the original in their order. Where the original stops or turns off, a mask says whose results count.
Only what makes the codes again is kept during a search, not the codes.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from .fields import constant, table
from .fused import find
from .k_blocks import added, signed_peak
from .rounding import nearest_float, nearest_tame

EPSILON = float(float32(1e-15))  # GROUP_MAX_EPS: below it a sub-block counts as zero
TENTH = float32(0.1)


class Affine(NamedTuple):
    """What ``asymmetric`` found: scale and minimum, then what makes the codes, ``nearest(inverse * (x - low))``."""

    scale: Tensor
    minimum: Tensor
    inverse: Tensor
    low: Tensor


def numbers(values: list[np.float32], device: torch.device) -> Tensor:
    """Numbers to be divided by tensors."""
    return table(tuple(map(float, values)), torch.float32, device)


class _Trials:
    """One search of ``asymmetric``: its data and its scratch."""

    def __init__(self, x: Tensor, w: Tensor, top: int, is_absolute: bool) -> None:
        self._x, self._w, self._top, self._is_absolute = x, w, top, is_absolute
        self._codes = torch.empty_like(x)
        self._products = x.new_empty((x.shape[0], 3, *x.shape[1:]))  # in the order of their sums
        self._sum_w, self._sum_x = self._totals()

    def _totals(self) -> tuple[Tensor, ...]:
        terms = self._products[:, :2]
        terms[:, 0] = self._w
        torch.mul(self._w, self._x, out=terms[:, 1])
        return added(terms).unbind()

    def choose(self, inverse: Tensor, low: Tensor) -> None:
        """Make the codes."""
        torch.sub(self._x, low, out=self._codes).mul_(inverse)
        nearest_float(self._codes, 0, self._top)

    def _sums(self) -> tuple[Tensor, ...]:
        """The weighted sums of code, code squared and code times element."""
        weighted = torch.mul(self._w, self._codes, out=self._products[:, 0])
        torch.mul(weighted, self._codes, out=self._products[:, 1])
        torch.mul(weighted, self._x, out=self._products[:, 2])
        return added(self._products).unbind()

    def solve(self) -> tuple[Tensor, Tensor, Tensor]:
        """The scale and the minimum, as the least element, that fit the codes best; whether they mean something."""
        sum_l, sum_l2, sum_xl = self._sums()
        determinant = (self._sum_w * sum_l2).sub_(sum_l * sum_l)
        scale = (self._sum_w * sum_xl).sub_(self._sum_x * sum_l).div_(determinant)
        low = (sum_l2 * self._sum_x).sub_(sum_l * sum_xl).div_(determinant)
        is_above = low > 0
        scale = torch.where(is_above, sum_xl / sum_l2, scale)
        return scale, low.masked_fill_(is_above, 0.0), determinant > 0

    def error(self, scale: Tensor, low: Tensor) -> Tensor:
        """The weighted error of ``scale * code + low``, absolute or squared; uses up the codes."""
        off = self._codes.mul_(scale).add_(low).sub_(self._x)
        size = off.abs_() if self._is_absolute else off.mul_(off)
        return added(size.mul_(self._w))


def asymmetric(x: Tensor, w: Tensor, top: int, starts: list[np.float32], is_absolute: bool) -> Affine:
    """``make_qkx2_quants`` and ``make_qkx3_quants``: fit ``scale * code - minimum`` with codes 0 .. top.

    Tries the inverse scales ``(start + top) / range`` and keeps the least weighted error, absolute or squared.
    """
    numerators = numbers([float32(top), *(start + float32(top) for start in starts)], x.device)
    if (fused := find(x.device)) is not None:
        scale, low, inverse, start = fused.asymmetric(x, w, numerators, top, is_absolute).unbind()
        return Affine(scale, low * -1.0, inverse, start)
    trials = _Trials(x, w, top, is_absolute)
    least = x.gather(0, x.argmin(0, keepdim=True))[0]  # a zero has the sign of the first zero: Q4_1 stores it
    low, high = torch.where(least > 0, 0.0, least), x.amax(0)
    is_flat = high == low
    high = torch.where(is_flat, low + 1.0, high)
    inverse = numerators[0] / (high - low)
    scale = constant(1.0, x.device) / inverse
    trials.choose(inverse, low)
    error = trials.error(scale, low).masked_fill_(is_flat, -torch.inf)
    best = torch.stack([error, scale.masked_fill_(is_flat, 0.0), low, inverse.masked_fill_(is_flat, 0.0), low])
    for numerator in numerators[1:]:
        low = best[2]  # a step searches from the best minimum so far, as the original does
        inverse = numerator / (high - low)
        trials.choose(inverse, low)
        scale, new_low, is_sound = trials.solve()
        error = trials.error(scale, new_low)
        is_better = (error < best[0]).logical_and_(is_sound)
        torch.where(is_better, torch.stack([error, scale, new_low, inverse, low]), best, out=best)
    _, scale, low, inverse, start = best.unbind()
    return Affine(scale, low * -1.0, inverse, start)


def symmetric(x: Tensor, w: Tensor, top: int, is_tame: bool) -> tuple[Tensor, Tensor]:
    """``make_qx_quants`` with rmse_type 1: fit ``scale * code`` with codes -top .. top - 1.

    ``is_tame``: all elements are finite. Returns the scale, which may be negative, and the inverse that makes the
    codes, ``nearest(inverse * x)``; it is NaN for a sub-block of zeros, whose codes are 0 after ``top`` was added.
    """
    tries = (0, *range(-9, 0), *range(1, 10))
    numerators = numbers([-(float32(top) + TENTH * float32(s)) for s in tries], x.device)
    if (fused := find(x.device)) is not None:
        scale, inverse = fused.symmetric(x, w, numerators, top).unbind()
        return scale, inverse
    peak, extreme = signed_peak(x)
    is_zero = peak < EPSILON
    extreme = torch.where(is_zero, 1.0, extreme)  # keeps the numbers of the unused lane tame
    rounding = nearest_tame if is_tame else nearest_float
    wx, codes, products = w * x, torch.empty_like(x), x.new_empty((x.shape[0], 2, *x.shape[1:]))

    def fit(inverse: Tensor) -> tuple[Tensor, ...]:
        rounding(torch.mul(x, inverse, out=codes), -top, top - 1)
        torch.mul(wx, codes, out=products[:, 0])
        torch.mul(w, codes, out=products[:, 1]).mul_(codes)
        return added(products).unbind()

    inverse = numerators[0] / extreme
    sum_lx, sum_l2 = fit(inverse)
    scale = (sum_lx / sum_l2).masked_fill_(sum_l2 == 0, 0.0)
    best = torch.stack([scale, scale * sum_lx, inverse])
    for numerator in numerators[1:]:
        inverse = numerator / extreme
        sum_lx, sum_l2 = fit(inverse)
        scale = sum_lx / sum_l2
        is_better = (sum_lx * sum_lx > best[1] * sum_l2).logical_and_(sum_l2 > 0)
        torch.where(is_better, torch.stack([scale, scale * sum_lx, inverse]), best, out=best)
    return best[0].masked_fill_(is_zero, 0.0), best[2].masked_fill_(is_zero, torch.nan)
