"""Q3_K and Q6_K: ``quants/k_symmetric.py`` has the layouts and the source."""

import torch
from torch import Tensor

from .fields import constant, put_half
from .k_blocks import (
    added,
    by_element,
    in_order,
    of_columns,
    put,
    put_bits,
    put_joined,
    put_pairs,
    signed_peak,
    weigh_by_importance,
)
from .refinement import refined
from .rounding import nearest, nearest_byte
from .search import EPSILON, symmetric

SCRATCH = {"Q3_K": 28, "Q6_K": 28}


def _levels(x: Tensor, own: Tensor, codes: Tensor, scale: Tensor, top: int) -> Tensor:
    """Final codes, from the scales as they will be read; with a scale of 0 the search's own, given before rounding."""
    step = codes * scale.to(torch.float16).float()
    return in_order(nearest_byte(torch.where(step == 0, own, x / step), -top, top - 1))


def _own(x: Tensor, inverse: Tensor, top: int) -> Tensor:
    """What the codes of ``symmetric`` are rounded from."""
    return torch.where(inverse != inverse, -top, x * inverse)


def _weights_q6_k(x: Tensor, weights: Tensor | None) -> Tensor:
    """Only here the importance is the weight as it is."""
    if weights is None:
        return x * x
    importance, view = of_columns(weights, x)
    return importance.expand_as(view).reshape_as(x)


def encode_q6_k(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``."""
    x, encoded = by_element(values, 16), out.view(-1, 210)
    scales, inverses = symmetric(x, _weights_q6_k(x, weights), 32, True)
    peak, extreme = signed_peak(scales)
    inverse = constant(-128.0, x.device) / extreme
    codes = nearest(inverse * scales).clamp_(max=127).to(torch.int8)  # the low eight bits
    scale = constant(1.0, x.device) / inverse
    levels = _levels(x, _own(x, inverses, 32), codes, scale, 32)
    quarters = levels.view(2, 4, 32, -1)
    put_joined(quarters[:, :2], quarters[:, 2:], encoded[:, :128])
    put_pairs(quarters >> 4, encoded[:, 128:192])
    put(codes.view(torch.uint8), encoded[:, 192:208])
    put_half(scale.unsqueeze(1), encoded[:, 208:])
    encoded.masked_fill_((peak < EPSILON).unsqueeze(1), 0)  # a block whose scales are all 0 has only zero bytes


def _scales_weighted_q3_k(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With an importance matrix: codes of the scales, what one unit of them is worth, the elements' own codes."""
    w = weigh_by_importance(x, weights, 2)
    scales, inverses = symmetric(x, w, 4, True)
    sums = added(w)
    del w
    unit, inverse = symmetric(scales, sums, 32, False)
    return nearest_byte(_own(scales, inverse, 32), -32, 31), unit, _own(x, inverses, 4)


def _scales_q3_k(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same without importance matrix."""
    scales, own = refined(x)
    _, extreme = signed_peak(scales)
    is_zero = extreme == 0
    inverse = constant(-32.0, x.device) / extreme
    codes = nearest_byte(inverse * scales, -32, 31).masked_fill_(is_zero, 0)
    return codes, (constant(1.0, x.device) / inverse).masked_fill_(is_zero, 0.0), own


def encode_q3_k(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``."""
    x, encoded = by_element(values, 16), out.view(-1, 110)
    codes, scale, own = _scales_q3_k(x) if weights is None else _scales_weighted_q3_k(x, weights)
    levels = _levels(x, own, codes.to(torch.int32).sub_(32), scale, 4)
    put_bits(levels, 2, encoded[:, :32])
    put_pairs(levels.view(2, 4, 32, -1), encoded[:, 32:96])
    put_joined(codes[:8], codes[8:], encoded[:, 96:104])
    put_pairs((codes >> 4).view(1, 4, 4, -1), encoded[:, 104:108])
    put_half(scale.unsqueeze(1), encoded[:, 108:])
