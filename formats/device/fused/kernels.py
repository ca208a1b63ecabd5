"""Starts the kernels: functions of tensors on a CUDA device, the present one."""

from typing import Any

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from ...quants.codebooks import IQ4_LIMITS, IQ4_VALUES
from ..search import EPSILON
from . import iq4, refinement, rounding, search, sums

_LIMITS, _VALUES = tuple(map(float, IQ4_LIMITS)), tuple(map(float, IQ4_VALUES))


def _start(kernel: Any, n: int, *arguments: Any) -> Any:
    """For ``n`` sub-blocks; returns what was compiled. Raises RuntimeError, as torch does."""
    try:
        return kernel[(triton.cdiv(n, rounding.LANES),)](*arguments, rounding.LANES, **rounding.OPTIONS)
    except TritonError as error:
        raise RuntimeError(f"Triton cannot compile {kernel.__name__}: {error}") from error


def probe(device: torch.device) -> None:
    """Raise RuntimeError if what Triton compiles for this device does not run, or does not keep subnormals."""
    x, found = torch.ones((16, 1), device=device), torch.empty((2, 1), device=device)
    compiled = _start(search.symmetric, 1, x, x, -x[0], found, 1, 1, EPSILON, 16, 4)
    if ".ftz" in compiled.asm["ptx"]:  # so do versions before 3.6 with divisions
        raise RuntimeError(f"Triton {triton.__version__} takes subnormals for zeros; 3.6 and later do not")
    if found.tolist() != [[-1.0], [-1.0]]:
        raise RuntimeError("what Triton compiles does not compute what it should")


def added(terms: Tensor) -> Tensor:
    """The sum along the first axis."""
    found = terms.new_empty(terms.shape[1:])
    rows, n = terms.reshape(len(terms), -1), found.numel()
    _start(sums.added, n, rows, found, n, len(rows), *rows.stride())
    return found


def asymmetric(x: Tensor, w: Tensor, numerators: Tensor, top: int, is_absolute: bool) -> Tensor:
    """Scale, low, and the inverse and the low that make the codes, (4, ...), for ``x`` and ``w``, (count, ...).

    The tries are ``numerators / range``, the first of them the one before all others.
    """
    x, w, found = x.contiguous(), w.contiguous(), x.new_empty((4, *x.shape[1:]))
    n, tries = found[0].numel(), numerators.numel()
    _start(search.asymmetric, n, x, w, numerators, found, n, tries, x.shape[0], top, is_absolute)
    return found


def symmetric(x: Tensor, w: Tensor, numerators: Tensor, top: int) -> Tensor:
    """The scale and the inverse that makes the codes, (2, ...)."""
    x, w, found = x.contiguous(), w.contiguous(), x.new_empty((2, *x.shape[1:]))
    n, tries = found[0].numel(), numerators.numel()
    _start(search.symmetric, n, x, w, numerators, found, n, tries, EPSILON, x.shape[0], top)
    return found


def iq4_scale(x: Tensor, w: Tensor, numerators: Tensor, extreme: Tensor) -> Tensor:
    """The scale that fits best; ``extreme`` is the element of the greatest magnitude, (n)."""
    x, w, found = x.contiguous(), w.contiguous(), torch.empty_like(extreme)
    n, tries = found.numel(), numerators.numel()
    _start(iq4.best_scale, n, x, w, numerators, found, n, tries, extreme, _LIMITS, _VALUES, x.shape[0])
    return found


def refined(x: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    """The scale and the codes."""
    x = x.contiguous()
    codes, found = torch.empty_like(x), torch.empty_like(x[0])
    n = found.numel()
    _start(refinement.refined, n, x, codes, found, n, EPSILON, passes, x.shape[0])
    return found, codes


def positive(x: Tensor, w: Tensor, numerators: Tensor, top: int, passes: int) -> tuple[Tensor, Tensor]:
    """The scale and the codes, for ``x``, (count, kinds, blocks), and ``w``, (count, 1, blocks)."""
    x, w = x.contiguous(), w.contiguous()
    codes, found = torch.empty_like(x), torch.empty_like(x[0])
    n, tries, blocks = found.numel(), numerators.numel(), w.shape[2]
    _start(refinement.positive, n, x, w, numerators, codes, found, n, blocks, tries, EPSILON, top, passes, x.shape[0])
    return found, codes
