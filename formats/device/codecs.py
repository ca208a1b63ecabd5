"""``formats/codecs.py`` in torch: floating element types to float32 and back, the same bits on any device.

torch converts as IEEE 754 says, exactly or to nearest even, but for float32 to F8: some of its releases saturate there.
So that is integer arithmetic, as in Numba. Infinity and overflow give what the Numba codecs give; a NaN stays one, but
its payload may not be theirs. Nothing is counted, because that would wait for the device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..dtypes import TORCH_NAMES
from ..errors import FormatError

MAGNITUDE = 0x7FFF_FFFF
INFINITY = 0x7F80_0000  # the bits of it; what is greater is NaN

_TYPES = {name: getattr(torch, theirs) for name, theirs in TORCH_NAMES.items()}


@dataclass(frozen=True, slots=True)
class _Small:
    """An F8 type: bits of mantissa, bias, the least code that is not finite, the code of NaN.

    The float32 with the exponent ``anchor`` have the least positive number of the type as their unit in the last place.
    """

    mantissa: int
    bias: int
    top: int
    nan: int
    anchor: int


_SMALL = {"F8_E4M3": _Small(3, 7, 0x7F, 0x7F, 14), "F8_E5M2": _Small(2, 15, 0x7C, 0x7E, 7)}

# The most bytes an element that live at a time in these functions, arguments not counted.
DECODE_SCRATCH = dict.fromkeys(_TYPES, 0)
ENCODE_SCRATCH = DECODE_SCRATCH | dict.fromkeys(_SMALL, 13)
KEEP_BASE_SCRATCH = 1


def decode(dtype: str, raw: Tensor, out: Tensor) -> None:
    """Little-endian elements, uint8[n x itemsize], into ``out``, float32[n]; F64 is rounded once."""
    codes = _elements(dtype, raw)
    _same_length(dtype, codes, out)
    out.copy_(codes)


def encode(dtype: str, values: Tensor, out: Tensor) -> None:
    """float32[n] into ``out``, little-endian elements, uint8[n x itemsize]; rounded once to nearest even."""
    codes = _elements(dtype, out)
    _same_length(dtype, codes, values)
    if dtype in _SMALL:
        out.copy_(_narrow(_SMALL[dtype], values))
    else:
        codes.copy_(values)


def keep_base(values: Tensor, base_values: Tensor, base_raw: Tensor, out: Tensor) -> None:
    """F64 only: where a value has the same 32 bits as the base's value, put the base's own 64 bits into ``out``.

    ``values`` and ``base_values`` are float32[n]; ``base_raw`` and ``out`` are uint8[8 n], and ``out`` holds the
    encoded ``values``.
    """
    base_codes, codes = base_raw.view(torch.int64), out.view(torch.int64)
    for tensor in (base_values, base_codes, codes):
        _same_length("F64", tensor, values)
    is_kept = values.view(torch.int32) == base_values.view(torch.int32)
    torch.where(is_kept, base_codes, codes, out=codes)


def _narrow(small: _Small, values: Tensor) -> Tensor:
    """The codes nearest to float32 values, ties to even, as int32."""
    bits = values.view(torch.int32)
    magnitude = (bits & MAGNITUDE).clamp_(max=INFINITY)  # of NaN the sum in _rounded would not be an int32
    code = _rounded(magnitude, 23 - small.mantissa).sub_((127 - small.bias) << small.mantissa)
    # Adding the anchor rounds to a multiple of the type's least number, and how many these are is in the low bits.
    subnormal = (magnitude.view(torch.float32) + 2.0**small.anchor).view(torch.int32)
    subnormal -= (127 + small.anchor) << 23
    torch.where(magnitude >= (128 - small.bias) << 23, code, subnormal, out=code)
    del magnitude, subnormal
    code.clamp_(max=small.top).masked_fill_(values != values, small.nan)
    return code.bitwise_or_((bits >> 24).bitwise_and_(0x80))


def _rounded(magnitude: Tensor, shift: int) -> Tensor:
    """``magnitude / 2**shift`` to nearest, ties to even. A carry into the exponent is the right result."""
    rounded = (magnitude >> shift).bitwise_and_(1)
    return rounded.add_(magnitude).add_((1 << (shift - 1)) - 1) >> shift


def _elements(dtype: str, raw: Tensor) -> Tensor:
    if dtype not in _TYPES:
        raise FormatError(f"cannot compute with elements of type {dtype}; known are {', '.join(_TYPES)}")
    return raw.view(_TYPES[dtype])


def _same_length(dtype: str, found: Tensor, wanted: Tensor) -> None:
    if found.numel() != wanted.numel():
        raise ValueError(f"{found.numel()} elements of type {dtype} do not fit {wanted.numel()} float32 values")
