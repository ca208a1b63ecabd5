"""Q2_K, Q4_K and Q5_K: ``quants/k_minima.py`` has the layouts and the source."""

import torch
from numpy import float32
from torch import Tensor

from .fields import constant, put_half, root
from .k_blocks import added, by_element, in_order, put, put_bits, put_joined, put_pairs, weigh_by_importance
from .refinement import positive
from .rounding import nearest, nearest_byte
from .search import Affine, asymmetric

SCRATCH = {"Q2_K": 30, "Q4_K": 27, "Q5_K": 27}


def _weigh_by_size(x: Tensor) -> Tensor:
    """Weights without importance matrix: magnitude, in Q4_K and Q5_K plus the root mean square of the sub-block."""
    if x.shape[0] == 16:
        return x.abs()
    base = root(added(x * x).mul_(1 / 32))
    return x.abs().add_(base)


def _fit(x: Tensor, weights: Tensor | None, top: int) -> tuple[Affine, Tensor | None]:
    """The fit of each sub-block; with an importance matrix also the sums of the weights."""
    is_short = x.shape[0] == 16
    if weights is None:
        begin, tries = (-1, 20) if top == 15 else (-0.5, 15)
        starts = [float32(begin) + float32(0.1) * float32(s) for s in range(tries + 1)]
        return asymmetric(x, _weigh_by_size(x), top, starts, is_short), None
    starts = [float32(-0.9) + float32(0.05) * float32(s) for s in range(37)]
    w = weigh_by_importance(x, weights, 1 if is_short else 2)
    return asymmetric(x, w, top, starts, False), added(w)


def _proportional(x: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """What ``positive`` does without importance matrix: the greatest number gets the greatest code."""
    greatest = x.amax(0)
    is_positive = greatest > 0
    greatest.masked_fill_(~is_positive, 0.0)
    inverse = (constant(top, x.device) / greatest).masked_fill_(~is_positive, 0.0)
    return greatest / constant(top, x.device), nearest(inverse * x).bitwise_and_(0xFF)


def _fit_scales(fit: Affine, sums: Tensor | None, top: int) -> tuple[Tensor, Tensor]:
    """Bytes for scale and minimum of the sub-blocks, (subs, 2, blocks); what a unit of each is worth, (2, blocks)."""
    x = torch.stack([fit.scale, fit.minimum], 1)
    units, codes = _proportional(x, top) if sums is None else positive(x, sums.unsqueeze(1), top)
    return codes.to(torch.uint8), units


def _levels(x: Tensor, fit: Affine, codes: Tensor, units: Tensor, top: int) -> Tensor:
    """Final codes, from the scales as they will be read; with a scale of 0 the search's own codes stay."""
    step, low = (codes * units.to(torch.float16).float()).unbind(1)
    scaled = (x + low).div_(step)
    own = (x - fit.low).mul_(fit.inverse)
    return in_order(nearest_byte(torch.where(step == 0, own, scaled), 0, top))


def _six_bits(codes: Tensor, is_capped: bool) -> Tensor:
    """Make six bits of each of the eight bytes.

    They need more when a scale is negative, which few columns with a weight above 0 bring about. ggml caps them,
    but in Q4_K with an importance matrix it lets the upper two bits of the first four bytes spill into the others.
    """
    if is_capped:
        return codes.clamp_(max=63)
    codes[4:].bitwise_and_(63).bitwise_or_((codes[:4] >> 6).bitwise_left_shift_(4))
    return codes.bitwise_and_(63)


def _put_scales(codes: Tensor, out: Tensor) -> None:
    """Eight scales and eight minima of six bits in twelve bytes (``get_scale_min_k4`` reads them)."""
    early, late = codes[:4], codes[4:]
    joined = early | (late & 0x30).bitwise_left_shift_(2)
    put(joined.transpose(0, 1), out[:, :8])
    put_joined(late[:, 0], late[:, 1], out[:, 8:])


def _encode_q45_k(values: Tensor, weights: Tensor | None, out: Tensor, width: int) -> None:
    """Q4_K or Q5_K, by the bits of a code."""
    x, top = by_element(values, 32), (1 << width) - 1
    fit, sums = _fit(x, weights, top)
    codes, units = _fit_scales(fit, sums, 63)
    codes = _six_bits(codes, width == 5 or weights is None)
    levels = _levels(x, fit, codes, units, top)
    put_half(units.t().contiguous(), out[:, :4])
    _put_scales(codes, out[:, 4:16])
    if width == 5:
        put_bits(levels, 4, out[:, 16:48])
    pairs = levels.view(4, 2, 32, -1)
    put_joined(pairs[:, 0], pairs[:, 1], out[:, -128:])


def encode_q4_k(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``."""
    _encode_q45_k(values, weights, out.view(-1, 144), 4)


def encode_q5_k(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``."""
    _encode_q45_k(values, weights, out.view(-1, 176), 5)


def encode_q2_k(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``. A scale that needs more than four bits spills over, and is then read like that."""
    x, encoded = by_element(values, 16), out.view(-1, 84)
    fit, sums = _fit(x, weights, 3)
    codes, units = _fit_scales(fit, sums, 15)
    joined = codes[:, 0] | (codes[:, 1] << 4)
    codes = torch.stack([joined & 15, joined >> 4], 1)
    put(joined, encoded[:, :16])
    put_pairs(_levels(x, fit, codes, units, 3).view(2, 4, 32, -1), encoded[:, 16:80])
    put_half(units.t().contiguous(), encoded[:, 80:])
