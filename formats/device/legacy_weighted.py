"""Q4_0, Q4_1, Q5_0 and Q5_1 with an importance matrix: ``quants/legacy_weighted.py`` in torch.

The weight of an element depends on the whole row, whose squares are added in the order of its elements: so many steps,
each for all rows, that a call should have many rows.
"""

import numpy as np
from torch import Tensor

from .fields import constant, put_codes, put_half, root
from .k_blocks import added
from .rounding import nearest_byte
from .search import asymmetric, symmetric

WIDTH = 32

_STARTS = [np.float32(-0.9) + np.float32(0.05) * np.float32(step) for step in range(37)]


def _weights(values: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    """Importance times sqrt(mean square of the row + square of the element), elements of a block first, as ``x``."""
    rows, columns = values.shape
    means = added((values * values).t()) / constant(columns, values.device)
    squares = (x * x).view(WIDTH, rows, -1)
    w = root(squares.add_(means.view(-1, 1)))
    return w.mul_(weights.view(-1, WIDTH).t().unsqueeze(1)).view_as(x)


def _fit_asymmetric(blocks: Tensor, x: Tensor, w: Tensor, top: int, out: Tensor) -> Tensor:
    """Write scale and minimum; the codes, uint8[n, 32]."""
    found = asymmetric(x, w, top, _STARTS, False)
    put_half(found.scale.view(-1, 1), out[:, :2])
    put_half(found.minimum.mul_(-1.0).view(-1, 1), out[:, 2:4])
    return nearest_byte((blocks - found.low.view(-1, 1)).mul_(found.inverse.view(-1, 1)), 0, top)


def _fit_symmetric(blocks: Tensor, x: Tensor, w: Tensor, top: int, out: Tensor) -> Tensor:
    """Write the scale; the codes, uint8[n, 32]."""
    scale, inverse = (found.view(-1, 1) for found in symmetric(x, w, top, True))
    put_half(scale, out[:, :2])
    return nearest_byte(blocks * inverse, -top, top - 1).masked_fill_(inverse != inverse, 0)


def encode_weighted(values: Tensor, weights: Tensor, has_minimum: bool, has_fifth: bool, out: Tensor) -> None:
    """Encode as one of the four types: those that end in 1 have a minimum, those that begin with Q5 a fifth bit."""
    fields = 4 if has_minimum else 2
    blocks, encoded = values.view(-1, WIDTH), out.view(-1, fields + (20 if has_fifth else 16))
    x = blocks.t().contiguous()
    w = _weights(values, weights, x)
    if has_minimum:
        codes = _fit_asymmetric(blocks, x, w, 31 if has_fifth else 15, encoded)
    else:
        codes = _fit_symmetric(blocks, x, w, 16 if has_fifth else 8, encoded)
    put_codes(codes, has_fifth, encoded[:, fields:])
