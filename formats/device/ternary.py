"""TQ1_0, TQ2_0 and MXFP4: ``quants/ternary.py`` has the layouts and the source. None of them uses an imatrix."""

import numpy as np
import torch
from torch import Tensor

from .fields import inverted, looked_up, peaks, put_half, put_nibbles, table

TERNARY = 256
WIDTH = 32  # elements of an MXFP4 block

SCRATCH = {"TQ1_0": 8, "TQ2_0": 8, "MXFP4": 9}

_BELOW_HALF = float(np.nextafter(np.float32(0.5), np.float32(0)))  # what is greater rounds to 1
_POWERS = (81, 27, 9, 3, 1)
_BASE_3 = tuple(-(-number * 256 // 243) for number in range(243))

# Codes of MXFP4 from -7 to 7: code i - 7 up to limit i, the middle between two doubled magnitudes; the middle itself
# belongs to the smaller magnitude.
_MIDDLES = np.array([0.5, 1.5, 2.5, 3.5, 5, 7, 10], np.float32)
_LIMITS = tuple(np.concatenate([np.nextafter(-_MIDDLES[::-1], np.float32(-np.inf)), _MIDDLES]).tolist())
_CODES = (15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7)
_LAST_EXPONENT = 253


def _first_bits(exponent: int) -> int:
    """The bits of the least float32 whose logarithm, rounded to float32, reaches an integer: just below its power."""
    power = (exponent + 127) << 23 if exponent >= -126 else 1 << (exponent + 149)
    codes = np.arange(max(1, power - 64), power + 1, dtype=np.uint32)
    logarithms = np.log2(codes.view(np.float32).astype(np.float64)).astype(np.float32)
    return int(codes[logarithms >= exponent][0])


_EXPONENTS = range(-149, 129)
_FIRST_BITS = tuple(_first_bits(exponent) for exponent in _EXPONENTS)
_SCALES = (0, *((exponent - 2 + 127) & 0xFF for exponent in _EXPONENTS))


def _trits(blocks: Tensor, d: Tensor) -> Tensor:
    """``1 + roundf(x / d)`` as uint8; the inverse is 0 where ggml's overflows: it turns all that follows into 0."""
    inverse = inverted(d)
    scaled = blocks * inverse.masked_fill_(inverse.isinf(), 0.0)
    return (scaled > _BELOW_HALF).view(torch.uint8) + (scaled >= -_BELOW_HALF).view(torch.uint8)


def _numbers(digits: Tensor, powers: tuple[int, ...]) -> Tensor:
    """Numbers below 256 from their digits, uint8[n, digits, width] to uint8[n, width]."""
    weighted = digits * table(powers, torch.uint8, digits.device).view(-1, 1)
    return weighted.sum(1, dtype=torch.uint8)


def encode_tq1_0(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``."""
    blocks, encoded = values.view(-1, TERNARY), out.view(-1, 54)
    d = peaks(blocks)
    trits = _trits(blocks, d)
    numbers = [
        _numbers(trits[:, :160].view(-1, 5, 32), _POWERS),
        _numbers(trits[:, 160:240].view(-1, 5, 16), _POWERS),
        _numbers(trits[:, 240:].view(-1, 4, 4), _POWERS[:4]),
    ]
    base_3 = table(_BASE_3, torch.uint8, values.device)
    encoded[:, :52] = looked_up(base_3, torch.cat(numbers, 1).to(torch.int32))
    put_half(d, encoded[:, 52:])


def encode_tq2_0(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``."""
    blocks, encoded = values.view(-1, TERNARY), out.view(-1, 66)
    d = peaks(blocks)
    trits = _trits(blocks, d)
    encoded[:, :64] = _numbers(trits.view(-1, 4, 32), (1, 4, 16, 64)).view(-1, 64)
    put_half(d, encoded[:, 64:])


def _power(exponent: Tensor) -> Tensor:
    """2 ** exponent, for int32 that give a normal float32."""
    return ((exponent + 127) << 23).view(torch.float32)


def _doubled(blocks: Tensor, e: Tensor) -> Tensor:
    """Elements in units of the doubled values, exact but where they are far below 1."""
    exponent = 128 - e
    part = exponent >> 1
    scaled = (blocks * _power(part)).mul_(_power(exponent - part))  # 2 ** 128 is no float32
    # ggml has no product for the two greatest values at the last scale: it is infinite.
    limit = torch.full_like(e, torch.inf, dtype=torch.float32).masked_fill_(e == _LAST_EXPONENT, 7.0)
    return scaled.clamp_(-limit, limit)


def encode_mxfp4(values: Tensor, weights: Tensor | None, out: Tensor) -> None:
    """See ``quants/contract.py``."""
    blocks, encoded = values.view(-1, WIDTH), out.view(-1, 17)
    device = values.device
    first_bits = table(_FIRST_BITS, torch.int32, device)
    place = torch.bucketize(peaks(blocks).view(torch.int32), first_bits, out_int32=True, right=True)
    e = looked_up(table(_SCALES, torch.int32, device), place)
    limits = table(_LIMITS, torch.float32, device)
    place = torch.bucketize(_doubled(blocks, e), limits, out_int32=True)
    encoded[:, :1] = e
    put_nibbles(looked_up(table(_CODES, torch.uint8, device), place), encoded[:, 1:])
