"""IQ4_NL and IQ4_XS: ``quants/iq4.py`` has the layouts, the source and what is searched.

The search goes over the elements of all sub-blocks in step, with all sixteen scales to try side by side: sums are
(tries, sub-blocks). The element is the first axis there, so that what belongs together lies together.
"""

import torch
from torch import Tensor

from ..quants.codebooks import IQ4_LIMITS, IQ4_VALUES
from .fields import constant, inverted, looked_up, put_half, put_nibbles, root, signed_peaks, table
from .fused import find
from .k_blocks import added
from .rounding import nearest
from .search import EPSILON

WIDTH = 32
SUPER = 8  # sub-blocks of an IQ4_XS block
TRIES = 7

_LEAST = float(IQ4_VALUES[0])
_NUMERATORS = tuple(attempt + _LEAST for attempt in range(-TRIES, TRIES + 1))

SCRATCH = {"IQ4_NL": 23, "IQ4_XS": 25}


def _codes(scaled: Tensor) -> Tensor:
    """The places of the values nearest to numbers, int32; the last for NaN, as ggml's binary search."""
    limits = table(IQ4_LIMITS, torch.float32, scaled.device)
    return torch.bucketize(scaled, limits, out_int32=True, right=True)


def _weights(squares: Tensor, weights: Tensor, group: int) -> Tensor:
    """Importance times sqrt(spread + square), elements first; uses up the squares.

    The spread is twice the mean square of a block of ``group`` sub-blocks.
    """
    blocks = squares.view(WIDTH, -1, group)
    in_order = blocks.permute(2, 0, 1).reshape(group * WIDTH, -1)
    spread = added(in_order).mul_(2 / (group * WIDTH))
    importance = weights.view(-1, WIDTH).t().unsqueeze(1)
    w = root(blocks.add_(spread.view(-1, 1)))
    return w.view(WIDTH, -1, importance.shape[2]).mul_(importance).view_as(squares)


def _inverses(extreme: Tensor, numerators: Tensor) -> Tensor:
    """The inverse scales to try, (tries, sub-blocks)."""
    device = extreme.device
    first = constant(1.0, device) / (extreme.neg() / constant(_LEAST, device))
    return torch.cat([first.view(1, -1), numerators.view(-1, 1) / extreme])


def _fit(x: Tensor, w: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of w q x and w q q, where q is the value nearest to inverse * x."""
    values = table(IQ4_VALUES, torch.float32, x.device)
    products, squares = torch.zeros_like(inverse), torch.zeros_like(inverse)
    for value, weight in zip(x, w):
        q = looked_up(values, _codes(inverse * value))
        weighted = weight * q
        squares += q.mul_(weighted)
        products += weighted.mul_(value)
    return products, squares


def _best(products: Tensor, squares: Tensor) -> Tensor:
    """The scale of the try that fits best, the first of equals."""
    scales = products / squares
    gains = scales * products
    powers = products * products
    scale = scales[0].masked_fill(~(squares[0] > 0), 0.0)
    best = scale * products[0]
    for attempt in range(1, len(scales)):
        is_better = powers[attempt] > best * squares[attempt]  # not where squares are 0: then products are
        scale = torch.where(is_better, scales[attempt], scale)
        best = torch.where(is_better, gains[attempt], best)
    return scale


def _search(blocks: Tensor, weights: Tensor | None, group: int) -> Tensor:
    """The best scale of each sub-block, (n, 1); 0 where all elements are below 1e-15."""
    extreme = signed_peaks(blocks).view(-1)
    x = blocks.t().contiguous()
    w = x * x
    if weights is not None:
        w = _weights(w, weights, group)
    numerators = table(_NUMERATORS, torch.float32, x.device)
    if (fused := find(x.device)) is not None:
        scale: Tensor = fused.iq4_scale(x, w, numerators, extreme)
    else:
        scale = _best(*_fit(x, w, _inverses(extreme, numerators)))
    return scale.masked_fill_(extreme.abs() < EPSILON, 0.0).view(-1, 1)


def _put(blocks: Tensor, scale: Tensor, out: Tensor) -> None:
    """The codes for a scale of each sub-block, uint8[..., 16]."""
    codes = _codes(blocks * inverted(scale)).to(torch.uint8)
    put_nibbles(codes.view(*out.shape[:-1], WIDTH), out)


def encode_iq4_nl(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``."""
    blocks, encoded = values.view(-1, WIDTH), out.view(-1, 18)
    scale = _search(blocks, weights, 1)
    put_half(scale, encoded[:, :2])
    _put(blocks, scale, encoded[:, 2:])


def _put_scales(scales: Tensor, out: Tensor) -> Tensor:
    """Write d and the six-bit scales, float32[blocks, 8]; returns what these stand for.

    The codes are made for the float32 product, not for what d is rounded to.
    """
    extreme = signed_peaks(torch.where(scales == scales, scales, 0.0))
    d = extreme.neg_() / constant(32.0, scales.device)
    put_half(d, out[:, :2])
    levels = nearest(inverted(d) * scales).clamp_(-32, 31)
    codes = levels + 32
    places = table(tuple(range(0, 2 * SUPER, 2)), torch.int32, scales.device)
    high = ((codes >> 4) << places).sum(1, keepdim=True, dtype=torch.int32)
    out[:, 2:4] = high.view(torch.uint8)[:, :2]
    low = codes.bitwise_and_(15)
    out[:, 4:8] = low[:, ::2] | (low[:, 1::2] << 4)
    return d * levels


def encode_iq4_xs(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``."""
    blocks, encoded = values.view(-1, WIDTH), out.view(-1, 136)
    scales = _search(blocks, weights, SUPER).view(-1, SUPER)
    scales = _put_scales(scales, encoded)
    _put(blocks, scales.view(-1, 1), encoded[:, 8:].view(-1, SUPER, WIDTH // 2))
