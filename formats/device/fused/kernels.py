"""Starts the kernels: functions of tensors, for whatever ``find`` found."""

import torch
from torch import Tensor

from ...quants.codebooks import IQ4_LIMITS, IQ4_VALUES
from . import iq4, refinement, rounding, search, sums

EPSILON = 1e-15  # GROUP_MAX_EPS
_LIMITS, _VALUES = tuple(map(float, IQ4_LIMITS)), tuple(map(float, IQ4_VALUES))


def added(terms: Tensor) -> Tensor:
    """The sum along the first axis."""
    found = terms.new_empty(terms.shape[1:])
    rows, n = terms.reshape(len(terms), -1), found.numel()
    sums.added[rounding.programs(n)](
        rows, found, n, len(rows), *rows.stride(), rounding.LANES, **rounding.OPTIONS
    )  # fmt: skip
    return found


def asymmetric(x: Tensor, w: Tensor, numerators: Tensor, top: int, is_absolute: bool) -> Tensor:
    """Scale, low, and the inverse and the low that make the codes, (4, ...), for ``x`` and ``w``, (count, ...).

    The tries are ``numerators / range``, the first of them the one before all others.
    """
    found = x.new_empty((4, *x.shape[1:]))
    n, tries = found[0].numel(), numerators.numel()
    search.asymmetric[rounding.programs(n)](
        x, w, numerators, found, n, tries, x.shape[0], top, is_absolute, rounding.LANES, **rounding.OPTIONS
    )
    return found


def symmetric(x: Tensor, w: Tensor, numerators: Tensor, top: int) -> Tensor:
    """The scale and the inverse that makes the codes, (2, ...)."""
    found = x.new_empty((2, *x.shape[1:]))
    n, tries = found[0].numel(), numerators.numel()
    search.symmetric[rounding.programs(n)](
        x, w, numerators, found, n, tries, EPSILON, x.shape[0], top, rounding.LANES, **rounding.OPTIONS
    )
    return found


def iq4_scale(x: Tensor, w: Tensor, numerators: Tensor, extreme: Tensor) -> Tensor:
    """The scale that fits best; ``extreme`` is the element of the greatest magnitude, (n)."""
    found, n, tries = torch.empty_like(extreme), extreme.numel(), numerators.numel()
    iq4.best_scale[rounding.programs(n)](
        x, w, numerators, found, n, tries, extreme, _LIMITS, _VALUES, x.shape[0], rounding.LANES, **rounding.OPTIONS
    )
    return found


def refined(x: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    """The scale and the codes."""
    codes, found = torch.empty_like(x), torch.empty_like(x[0])
    n = found.numel()
    refinement.refined[rounding.programs(n)](
        x, codes, found, n, EPSILON, passes, x.shape[0], rounding.LANES, **rounding.OPTIONS
    )
    return found, codes


def positive(x: Tensor, w: Tensor, numerators: Tensor, top: int, passes: int) -> tuple[Tensor, Tensor]:
    """The scale and the codes, for ``x``, (count, kinds, blocks), and ``w``, (count, 1, blocks)."""
    codes, found = torch.empty_like(x), torch.empty_like(x[0])
    n, tries = found.numel(), numerators.numel()
    refinement.positive[rounding.programs(n)](
        x, w, numerators, codes, found, n, w.shape[2], tries, EPSILON,
        top, passes, x.shape[0], rounding.LANES, **rounding.OPTIONS,
    )  # fmt: skip
    return found, codes
