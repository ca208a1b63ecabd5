"""The searches that improve one code after another while the others keep theirs: see ``search.py``.

A pass that improves nothing leaves a lane as it is, so all lanes make all five passes.
"""

import torch
from numpy import float32
from torch import Tensor

from .fields import constant
from .fused import find
from .k_blocks import added, signed_peak
from .rounding import nearest, nearest_float, nearest_tame
from .search import EPSILON, TENTH, numbers

_PASSES = 5


def _terms(pair: Tensor, codes: Tensor) -> Tensor:
    """What codes add to the two sums: weighted element times code, weight times code squared."""
    terms = pair * codes
    terms[1] *= codes
    return terms


def _sums(pairs: Tensor, codes: Tensor) -> Tensor:
    """The two sums, (2, ...), for ``pairs``, (count, 2, ...)."""
    terms = pairs * codes.unsqueeze(1)
    terms[:, 1] *= codes
    return added(terms)


def _fits_better(new: Tensor, old: Tensor) -> Tensor:
    """Of two pairs of sums."""
    return (new[0] * new[0]).mul_(old[1]) > (old[0] * old[0]).mul_(new[1])


def _improve_signed(value: Tensor, pair: Tensor, code: Tensor, sums: Tensor) -> None:
    rest = sums - _terms(pair, code)
    new = nearest_float((value * rest[1]).div_(rest[0]), -4, 3)
    full = rest + _terms(pair, new)
    is_better = (rest[0] > 0).logical_and_(new != code).logical_and_(full[1] > 0).logical_and_(_fits_better(full, sums))
    torch.where(is_better, new, code, out=code)
    torch.where(is_better, full, sums, out=sums)


def refined(x: Tensor) -> tuple[Tensor, Tensor]:
    """``make_q3_quants``: fit ``scale * code`` with codes -4 .. 3 to finite elements, weighted by their squares.

    Returns the scale and the codes, as floats; they are all -4 in a sub-block of zeros.
    """
    if (fused := find(x.device)) is not None:
        scale, codes = fused.refined(x, _PASSES)
        return scale, codes
    peak, extreme = signed_peak(x)
    is_zero = peak < EPSILON
    inverse = constant(-4.0, x.device) / torch.where(is_zero, 1.0, extreme)
    codes = nearest_tame(x * inverse, -4, 3)
    pairs = torch.stack([x * x * x, x * x], 1)
    sums = _sums(pairs, codes)
    for _ in range(_PASSES):
        for value, pair, code in zip(x, pairs, codes):
            _improve_signed(value, pair, code, sums)
    scale = (sums[0] / sums[1]).masked_fill_(is_zero | ~(sums[1] > 0), 0.0)
    return scale, codes.masked_fill_(is_zero, -4.0)


def _start_positive(x: Tensor, w: Tensor, top: int, greatest: Tensor, numerators: Tensor) -> Tensor:
    """The inverse scale with the least weighted squared error, of nine around ``top / greatest``."""
    inverses = torch.stack([numerator / greatest for numerator in numerators])
    x, w = x.unsqueeze(1), w.unsqueeze(1)
    codes = nearest(x * inverses)
    codes[:, 0].bitwise_and_(0xFF)  # the first codes are bytes and not limited to top
    codes[:, 1:].clamp_(max=top)
    off = x - codes.float().mul_(constant(1.0, x.device) / inverses)
    errors = added((w * off).mul_(off))
    errors[0].nan_to_num_(-torch.inf, torch.inf)  # against NaN none is better
    best = errors.nan_to_num_(torch.inf, torch.inf, -torch.inf).argmin(0, keepdim=True)
    return inverses.gather(0, best)[0]


def _improve_positive(value: Tensor, pair: Tensor, code: Tensor, sums: Tensor, top: int) -> None:
    rest = sums - _terms(pair, code)
    new = nearest((value * rest[1]).div_(rest[0])).clamp_(max=top)
    level = new.float()
    full = rest + _terms(pair, level)
    is_better = (rest > 0).all(0).logical_and_(level != code).logical_and_(_fits_better(full, sums))
    torch.where(is_better, new.bitwise_and_(0xFF).float(), code, out=code)
    torch.where(is_better, full, sums, out=sums)


def positive(x: Tensor, w: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """``make_qp_quants``: fit ``scale * code`` to numbers >= 0 with codes 0 .. top.

    ``x`` is (count, kinds, blocks), ``w`` (count, 1, blocks). Returns the scale and the codes, as floats. As in the
    original a code is a byte, and nothing keeps a negative number from becoming a large one.
    """
    tries = (0, *range(-4, 0), *range(1, 5))
    numerators = numbers([TENTH * float32(s) + float32(top) for s in tries], x.device)
    if (fused := find(x.device)) is not None:
        scale, levels = fused.positive(x, w, numerators, top, _PASSES)
        return scale, levels
    greatest = x.amax(0)
    is_zero = greatest < EPSILON
    codes = nearest(_start_positive(x, w, top, greatest, numerators) * x).clamp_(max=top)
    pairs = torch.stack([w * x, w.expand_as(x)], 1)
    sums = _sums(pairs, codes.float()).masked_fill_(is_zero, 0.0)
    levels = codes.bitwise_and_(0xFF).masked_fill_(is_zero, 0).float()
    for _ in range(_PASSES):
        for value, pair, code in zip(x, pairs, levels):
            _improve_positive(value, pair, code, sums, top)
    return (sums[0] / sums[1]).masked_fill_(~(sums[1] > 0), 0.0), levels
