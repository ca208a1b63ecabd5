"""Floating element types to float32 and back, bit for bit: F64 F32 F16 BF16 F8_E4M3 F8_E5M2.

Decoding is exact; only F64 is rounded, once, to nearest even. Encoding rounds once to nearest even.
What overflows becomes infinity, in F8_E4M3 (which has none) NaN, as in ml_dtypes; torch does so before 2.12 and
saturates at 448 from then on, which would hide the overflow. A NaN keeps its sign and as much of its payload as
fits, so that ``encode(decode(x)) == x`` for every bit pattern of at most 32 bits.

Sources: IEEE 754-2019 for F16, F32 and F64; *OCP 8-bit Floating Point Specification* 1.0 for the F8 types, where
F8_E4M3 is what torch calls ``float8_e4m3fn``. BF16 is the upper half of a float32.

Kernels take bit patterns, not floats: loading a signaling NaN as a float may change it. Branches are selects,
and every step is wrapped in ``uint32(...)`` because Numba makes uint32 + uint32 a uint64: so LLVM vectorizes the
loops. Nothing but F64 depends on how the processor treats subnormal float32 values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numpy import float32, float64, int32, uint8, uint16, uint32, uint64
from numpy.typing import NDArray

from .errors import FormatError
from .jit import inline, intrinsic, jit

SIGN = uint32(0x8000_0000)
MAGNITUDE = uint32(0x7FFF_FFFF)
INFINITY = uint32(0x7F80_0000)
ONE = uint32(1)


@inline
def _widen(code: uint32, mantissa: int, bias: int, top: int, quantum: float) -> uint32:
    """The magnitude bits of a small float as float32 bits.

    ``mantissa`` is its number of mantissa bits, ``top`` its least non-finite code, ``quantum`` its least positive
    value. A subnormal is a multiple of the quantum, and that product is a normal float32. From ``top`` on the
    exponent becomes all ones and the payload moves along; the only NaN of F8_E4M3 gets a payload that way.
    """
    shifted = uint32(code << uint32(23 - mantissa))
    normal = uint32(shifted + uint32((127 - bias) << 23))
    subnormal = float32(float32(int32(code)) * float32(quantum)).view(uint32)
    finite = normal if code >= uint32(1 << mantissa) else subnormal
    return uint32(shifted | INFINITY) if code >= uint32(top) else finite


@inline
def _round(magnitude: uint32, shift: int) -> uint32:
    """``magnitude / 2**shift`` to nearest, ties to even. A carry into the exponent is the right result."""
    odd = uint32(uint32(magnitude >> uint32(shift)) & ONE)
    below_half = uint32((1 << (shift - 1)) - 1)
    return uint32(uint32(uint32(magnitude + below_half) + odd) >> uint32(shift))


@inline
def _keep_nan(code: uint32, magnitude: uint32, mantissa: int, top: int) -> uint32:
    """``code``, unless the float32 was NaN: then ``top`` with the payload cut to fit, or the quiet bit if that is 0."""
    payload = uint32(uint32(magnitude >> uint32(23 - mantissa)) & uint32((1 << mantissa) - 1))
    kept = payload if payload != uint32(0) else uint32(1 << (mantissa - 1))
    return uint32(uint32(top) | kept) if magnitude > INFINITY else code


@inline
def _narrow(magnitude: uint32, mantissa: int, bias: int, top: int, anchor: float) -> uint32:
    """The code of the small float nearest to a float32 given by its magnitude bits; parameters as in ``_widen``.

    The unit in the last place of ``anchor``, a power of two, is the quantum of the small float: adding it to a
    subnormal lets the hardware round to nearest even and leaves the number of quanta in the low bits.
    """
    normal = uint32(_round(magnitude, 23 - mantissa) - uint32((127 - bias) << mantissa))
    anchored = float32(uint32(magnitude).view(float32) + float32(anchor)).view(uint32)
    subnormal = uint32(anchored - float32(anchor).view(uint32))
    code = normal if magnitude >= uint32((128 - bias) << 23) else subnormal
    return _keep_nan(min(code, uint32(top)), magnitude, mantissa, top)


@jit("boolean(Array(uint64, 1, 'C', True), uint32[::1])")
def _decode_f64(raw: NDArray[uint64], out: NDArray[uint32]) -> bool:
    largest = uint32(0)
    for i in range(out.size):
        bits = float32(uint64(raw[i]).view(float64)).view(uint32)
        out[i] = bits
        largest = max(largest, uint32(bits & MAGNITUDE))
    return bool(largest >= INFINITY)


@jit("boolean(Array(uint32, 1, 'C', True), uint32[::1])")
def _copy_f32(source: NDArray[uint32], out: NDArray[uint32]) -> bool:
    largest = uint32(0)
    for i in range(out.size):
        out[i] = source[i]
        largest = max(largest, uint32(source[i] & MAGNITUDE))
    return bool(largest >= INFINITY)


@jit("boolean(Array(uint16, 1, 'C', True), uint32[::1])")
def _decode_f16(raw: NDArray[uint16], out: NDArray[uint32]) -> bool:
    largest = uint32(0)
    for i in range(out.size):
        code = uint32(raw[i])
        magnitude = _widen(uint32(code & uint32(0x7FFF)), 10, 15, 0x7C00, 2.0**-24)
        out[i] = uint32(uint32(code << uint32(16)) & SIGN) | magnitude
        largest = max(largest, magnitude)
    return bool(largest >= INFINITY)


@jit("boolean(Array(uint16, 1, 'C', True), uint32[::1])")
def _decode_bf16(raw: NDArray[uint16], out: NDArray[uint32]) -> bool:
    largest = uint32(0)
    for i in range(out.size):
        bits = uint32(uint32(raw[i]) << uint32(16))
        out[i] = bits
        largest = max(largest, uint32(bits & MAGNITUDE))
    return bool(largest >= INFINITY)


@jit("boolean(Array(uint8, 1, 'C', True), uint32[::1])")
def _decode_e4m3(raw: NDArray[uint8], out: NDArray[uint32]) -> bool:
    largest = uint32(0)
    for i in range(out.size):
        code = uint32(raw[i])
        magnitude = _widen(uint32(code & uint32(0x7F)), 3, 7, 0x7F, 2.0**-9)
        out[i] = uint32(uint32(code << uint32(24)) & SIGN) | magnitude
        largest = max(largest, magnitude)
    return bool(largest >= INFINITY)


@jit("boolean(Array(uint8, 1, 'C', True), uint32[::1])")
def _decode_e5m2(raw: NDArray[uint8], out: NDArray[uint32]) -> bool:
    largest = uint32(0)
    for i in range(out.size):
        code = uint32(raw[i])
        magnitude = _widen(uint32(code & uint32(0x7F)), 2, 15, 0x7C, 2.0**-16)
        out[i] = uint32(uint32(code << uint32(24)) & SIGN) | magnitude
        largest = max(largest, magnitude)
    return bool(largest >= INFINITY)


@jit("boolean(Array(uint32, 1, 'C', True), uint64[::1])")
def _encode_f64(values: NDArray[uint32], out: NDArray[uint64]) -> bool:
    largest = uint32(0)
    for i in range(out.size):
        out[i] = float64(uint32(values[i]).view(float32)).view(uint64)
        largest = max(largest, uint32(values[i] & MAGNITUDE))
    return bool(largest >= INFINITY)


@jit("boolean(Array(uint32, 1, 'C', True), uint16[::1])")
def _encode_f16(values: NDArray[uint32], out: NDArray[uint16]) -> bool:
    largest = uint32(0)
    for i in range(out.size):
        code = _narrow(uint32(values[i] & MAGNITUDE), 10, 15, 0x7C00, 0.5)
        out[i] = uint16(uint32(uint32(values[i] & SIGN) >> uint32(16)) | code)
        largest = max(largest, code)
    return bool(largest >= uint32(0x7C00))


@jit("boolean(Array(uint32, 1, 'C', True), uint16[::1])")
def _encode_bf16(values: NDArray[uint32], out: NDArray[uint16]) -> bool:
    largest = uint32(0)
    for i in range(out.size):  # right for all but NaN
        out[i] = uint16(_round(values[i], 16))
        largest = max(largest, uint32(values[i] & MAGNITUDE))
    if largest <= INFINITY:
        return bool(_round(largest, 16) >= uint32(0x7F80))
    for i in range(out.size):
        magnitude = uint32(values[i] & MAGNITUDE)
        code = _keep_nan(_round(magnitude, 16), magnitude, 7, 0x7F80)
        out[i] = uint16(uint32(uint32(values[i] & SIGN) >> uint32(16)) | code)
    return True


@jit("boolean(Array(uint32, 1, 'C', True), uint8[::1])")
def _encode_e4m3(values: NDArray[uint32], out: NDArray[uint8]) -> bool:
    largest = uint32(0)
    for i in range(out.size):
        code = _narrow(uint32(values[i] & MAGNITUDE), 3, 7, 0x7F, 2.0**14)
        out[i] = uint8(uint32(uint32(values[i] & SIGN) >> uint32(24)) | code)
        largest = max(largest, code)
    return bool(largest >= uint32(0x7F))


@jit("boolean(Array(uint32, 1, 'C', True), uint8[::1])")
def _encode_e5m2(values: NDArray[uint32], out: NDArray[uint8]) -> bool:
    largest = uint32(0)
    for i in range(out.size):
        code = _narrow(uint32(values[i] & MAGNITUDE), 2, 15, 0x7C, 2.0**7)
        out[i] = uint8(uint32(uint32(values[i] & SIGN) >> uint32(24)) | code)
        largest = max(largest, code)
    return bool(largest >= uint32(0x7C))


@jit("uint32(Array(uint32, 1, 'C', True))")
def _largest_bits(values: NDArray[uint32]) -> uint32:
    largest = uint32(0)
    for i in range(values.size):
        largest = max(largest, uint32(values[i] & MAGNITUDE))
    return largest


_UNCHANGED = "void(Array(uint32, 1, 'C', True), Array(uint32, 1, 'C', True), Array(uint64, 1, 'C', True), uint64[::1])"


@jit(_UNCHANGED)
def _keep_base(values: NDArray[uint32], base: NDArray[uint32], raw: NDArray[uint64], out: NDArray[uint64]) -> None:
    for i in range(out.size):
        ours, theirs = out[i], raw[i]  # loaded on both sides of the select, or the loop does not vectorize
        out[i] = theirs if values[i] == base[i] else ours


# --- for code that is compiled ---------------------------------------------------------------------------------------


class Type(IntEnum):
    """The element types by number."""

    F64 = 0
    F32 = 1
    F16 = 2
    BF16 = 3
    F8_E4M3 = 4
    F8_E5M2 = 5


@intrinsic
def _pointer(typing: Any, address: Any, element: Any) -> Any:
    """To elements of an unsigned type that lie at an address."""
    pointer: Any = types.CPointer(element.instance_type)  # type: ignore[no-untyped-call]

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(pointer))

    return pointer(types.uint64, element), build


@intrinsic
def _fetch(typing: Any, address: Any) -> Any:
    """Tell the processor that the line at an address is wanted soon. One that is not mapped is no fault."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        builder.call(fetch, [builder.inttoptr(values[0], pointer), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.uint64), build


@inline
def fetch(address: uint64, size: int) -> None:
    """So many bytes from an address are wanted soon in the first-level cache."""
    for offset in range(0, size, 64):
        _fetch(uint64(address + uint64(offset)))


@jit("boolean(int64, uint64, uint32[::1])")
def decode_at(kind: int, address: uint64, out: NDArray[uint32]) -> bool:
    """As many elements of a ``Type`` as ``out`` has from an address to float32 bits; whether any is infinite or NaN."""
    if kind == Type.BF16:
        return _decode_bf16(carray(_pointer(address, uint16), out.size), out)
    if kind == Type.F16:
        return _decode_f16(carray(_pointer(address, uint16), out.size), out)
    if kind == Type.F32:
        return _copy_f32(carray(_pointer(address, uint32), out.size), out)
    if kind == Type.F64:
        return _decode_f64(carray(_pointer(address, uint64), out.size), out)
    if kind == Type.F8_E4M3:
        return _decode_e4m3(carray(_pointer(address, uint8), out.size), out)
    return _decode_e5m2(carray(_pointer(address, uint8), out.size), out)


@jit("boolean(int64, Array(uint32, 1, 'C', True), uint64)")
def encode_at(kind: int, values: NDArray[uint32], address: uint64) -> bool:
    """float32 bits to elements of a ``Type`` at an address; whether any is infinite or NaN then."""
    if kind == Type.BF16:
        return _encode_bf16(values, carray(_pointer(address, uint16), values.size))
    if kind == Type.F16:
        return _encode_f16(values, carray(_pointer(address, uint16), values.size))
    if kind == Type.F32:
        return _copy_f32(values, carray(_pointer(address, uint32), values.size))
    if kind == Type.F64:
        return _encode_f64(values, carray(_pointer(address, uint64), values.size))
    if kind == Type.F8_E4M3:
        return _encode_e4m3(values, carray(_pointer(address, uint8), values.size))
    return _encode_e5m2(values, carray(_pointer(address, uint8), values.size))


# --- for Python ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Codec:
    """The unsigned integer that holds one element, its least non-finite code (sign aside), and the kernels to float32
    bits and back. These say whether they met anything infinite or NaN: a running maximum, which costs less than a
    count; counting is left to the rare case."""

    storage: type[np.unsignedinteger]
    infinity: int
    decode: Callable[..., bool]
    encode: Callable[..., bool]

    def count(self, codes: NDArray[np.unsignedinteger]) -> int:
        """How many codes are infinite or NaN."""
        magnitudes = codes & self.storage(np.iinfo(self.storage).max >> 1)
        return int(np.count_nonzero(magnitudes >= self.storage(self.infinity)))


_CODECS = {
    "F64": _Codec(uint64, 0x7FF0 << 48, _decode_f64, _encode_f64),
    "F32": _Codec(uint32, 0x7F80_0000, _copy_f32, _copy_f32),
    "F16": _Codec(uint16, 0x7C00, _decode_f16, _encode_f16),
    "BF16": _Codec(uint16, 0x7F80, _decode_bf16, _encode_bf16),
    "F8_E4M3": _Codec(uint8, 0x7F, _decode_e4m3, _encode_e4m3),
    "F8_E5M2": _Codec(uint8, 0x7C, _decode_e5m2, _encode_e5m2),
}


def decode(dtype: str, raw: NDArray[uint8], out: NDArray[float32]) -> int:
    """Little-endian elements to float32; returns how many are infinite or NaN.

    ``out`` is float32[n]; ``raw`` is uint8[n x itemsize], contiguous, aligned to the element, read-only or not.
    F64 values that float32 cannot hold overflow to infinity and are counted.
    """
    codec = _codec(dtype)
    codes, bits = raw.view(codec.storage), out.view(uint32)
    _same_length(dtype, codes.size, bits.size)
    return _CODECS["F32"].count(bits) if codec.decode(codes, bits) else 0


def encode(dtype: str, values: NDArray[float32], out: NDArray[uint8]) -> int:
    """float32 to little-endian elements; returns how many of the results are infinite or NaN.

    ``values`` is float32[n]; ``out`` is uint8[n x itemsize], contiguous, aligned to the element. A result above
    the count of non-finite inputs means overflow.
    """
    codec = _codec(dtype)
    bits, codes = values.view(uint32), out.view(codec.storage)
    _same_length(dtype, codes.size, bits.size)
    return codec.count(codes) if codec.encode(bits, codes) else 0


def largest_magnitude(values: NDArray[float32]) -> float:
    """The largest |value|, infinity or NaN if there is one."""
    return float(uint32(_largest_bits(values.view(uint32))).view(float32))


def keep_base(
    values: NDArray[float32], base_values: NDArray[float32], base_raw: NDArray[uint8], out: NDArray[uint8]
) -> None:
    """F64 only: where a value has the same 32 bits as the base's value, put the base's own 64 bits into ``out``.

    A weight that a merge leaves alone thus keeps the bits that float32 cannot hold. ``values`` and ``base_values``
    are float32[n]; ``base_raw`` and ``out`` are uint8[8 n], and ``out`` holds the encoded ``values``.
    """
    bits, base_bits = values.view(uint32), base_values.view(uint32)
    base_codes, codes = base_raw.view(uint64), out.view(uint64)
    for array in (base_bits, base_codes, codes):
        _same_length("F64", array.size, bits.size)
    _keep_base(bits, base_bits, base_codes, codes)


def _codec(dtype: str) -> _Codec:
    if dtype not in _CODECS:
        raise FormatError(f"cannot compute with elements of type {dtype}; known are {', '.join(_CODECS)}")
    return _CODECS[dtype]


def _same_length(dtype: str, found: int, wanted: int) -> None:
    # The kernels do not check bounds: a wrong length would read or write beyond the array.
    if found != wanted:
        raise ValueError(f"{found} elements of type {dtype} do not fit {wanted} float32 values")
