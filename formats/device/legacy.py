"""Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1: ``quants/legacy.py`` has the layouts and the source.

Where an inverse scale overflows, ggml gets infinities and NaN and makes each of them 0. Here such a block is given an
inverse of 0 and an offset that is cut to 0, so that nothing but finite numbers is converted to integers.
"""

import numpy as np
import torch
from torch import Tensor

from .fields import constant, inverted, peaks, put_codes, put_half, signed_peaks
from .legacy_weighted import encode_weighted

WIDTH = 32

SCRATCH = {"Q8_0": 9, "Q4_0": 26, "Q4_1": 27, "Q5_0": 26, "Q5_1": 27}  # with an imatrix; 7 at most without

_BELOW_HALF = float(np.nextafter(np.float32(0.5), np.float32(0)))


def encode_q8_0(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``."""
    blocks, encoded = values.view(-1, WIDTH), out.view(-1, 34)
    d = peaks(blocks) / constant(127.0, values.device)
    put_half(d, encoded[:, :2])
    inverse = inverted(d)
    scaled = blocks * inverse.masked_fill_(inverse.isinf(), 0.0)
    scaled += torch.copysign(constant(_BELOW_HALF, values.device), scaled)  # then cutting rounds halves away from zero
    encoded[:, 2:].view(torch.int8).copy_(scaled)


def _encode_symmetric(values: Tensor, has_fifth: bool, out: Tensor) -> None:
    top = 16 if has_fifth else 8
    blocks, encoded = values.view(-1, WIDTH), out.view(-1, 22 if has_fifth else 18)
    d = signed_peaks(blocks) / constant(-top, values.device)
    put_half(d, encoded[:, :2])
    inverse = inverted(d)
    overflows = inverse.isinf()
    scaled = blocks * inverse.masked_fill_(overflows, 0.0)
    scaled += torch.full_like(d, top + 0.5).masked_fill_(overflows, 0.5)
    codes = scaled.to(torch.uint8).clamp_(max=2 * top - 1)
    put_codes(codes, has_fifth, encoded[:, 2:])


def _encode_asymmetric(values: Tensor, has_fifth: bool, out: Tensor) -> None:
    top = 31 if has_fifth else 15
    blocks, encoded = values.view(-1, WIDTH), out.view(-1, 24 if has_fifth else 20)
    least = blocks.gather(1, blocks.argmin(1, keepdim=True))  # a zero has the sign of the first zero
    width = (blocks.amax(1, keepdim=True) - least).add_(0.0)  # -0 + 0 is 0
    d = width / constant(top, values.device)
    put_half(d, encoded[:, :2])
    put_half(least, encoded[:, 2:4])
    inverse = inverted(d)
    inverse.masked_fill_(inverse.isinf(), 0.0)
    least.masked_fill_(inverse == 0, 0.0)  # where the range is infinite, so may be a distance from its least element
    scaled = (blocks - least).mul_(inverse).add_(0.5)
    codes = scaled.to(torch.uint8).clamp_(max=top)
    put_codes(codes, has_fifth, encoded[:, 4:])


def _encode(values: Tensor, weights: Tensor | None, has_minimum: bool, has_fifth: bool, out: Tensor) -> None:
    if weights is not None:
        encode_weighted(values, weights, has_minimum, has_fifth, out)
    elif has_minimum:
        _encode_asymmetric(values, has_fifth, out)
    else:
        _encode_symmetric(values, has_fifth, out)


def encode_q4_0(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``."""
    _encode(values, weights, False, False, out)


def encode_q4_1(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``."""
    _encode(values, weights, True, False, out)


def encode_q5_0(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``."""
    _encode(values, weights, False, True, out)


def encode_q5_1(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``."""
    _encode(values, weights, True, True, out)
