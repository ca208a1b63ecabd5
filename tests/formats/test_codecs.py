"""Codecs against the specifications, an oracle in float64, torch and ml_dtypes: bit for bit, over all patterns.

The NaNs of others keep neither payload nor, in torch's rounding to bfloat16, the sign: against them NaN means NaN.
"""

import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streammerge.formats import codecs
from streammerge.formats.dtypes import DTYPES, TORCH_NAMES
from streammerge.formats.errors import FormatError

Array = NDArray[Any]
Oracle = Callable[[str, Array], Array]

SMALL = ["F16", "BF16", "F8_E4M3", "F8_E5M2"]
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
ODD_LENGTHS = [0, 1, 7, 65_535, 65_537]
FINITE = [0, 1, 2, 0x007FFFFF, 0x00800000, 0x3F800000, 0x7F7FFFFF]  # with subnormals, one and the largest
NANS = [0x7F800001, 0x7F801000, 0x7FBFFFFF, 0x7FC00000, 0x7FC00001, 0x7FFFFFFF]  # signaling and quiet
SPECIALS = np.array([*FINITE, 0x7F800000, *NANS], np.uint32).view(np.float32)


def storage(dtype: str) -> Any:
    return UNSIGNED[DTYPES[dtype].itemsize]


def decode(dtype: str, codes: Array) -> tuple[Array, int]:
    out = np.empty(codes.size, np.float32)
    count = codecs.decode(dtype, codes.view(np.uint8), out)
    return out, count


def encode(dtype: str, values: Array) -> tuple[Array, int]:
    out = np.empty(values.size, storage(dtype))
    count = codecs.encode(dtype, values, out.view(np.uint8))
    return out, count


def all_codes(dtype: str) -> Array:
    return np.arange(2 ** (8 * DTYPES[dtype].itemsize), dtype=np.uint32).astype(storage(dtype))


def both_signs(values: Array) -> Array:
    return np.concatenate([values, -values])


def magnitudes(dtype: str) -> Array:
    """All finite values of a type from zero up, and the first that does not fit, in float64; index = code."""
    bits = DTYPES[dtype].itemsize * 8
    mantissa, bias = {"F16": (10, 15), "BF16": (7, 127), "F8_E4M3": (3, 7), "F8_E5M2": (2, 15)}[dtype]
    code = np.arange(2 ** (bits - 1))
    exponent, fraction = code >> mantissa, (code & (2**mantissa - 1)) / 2.0**mantissa
    value = np.where(
        exponent == 0, np.ldexp(fraction, 1 - bias), np.ldexp(1.0 + fraction, np.maximum(exponent, 1) - bias)
    )
    top = 0x7F if dtype == "F8_E4M3" else exponent.max() << mantissa
    up_to_overflow: Array = value[: top + 1]
    return up_to_overflow


def around_midpoints(dtype: str) -> tuple[Array, Array]:
    """float32 values at and beside every rounding boundary of a type, and the code each one rounds to."""
    grid = magnitudes(dtype)
    exact = (grid[:-1] + grid[1:]) / 2
    with np.errstate(over="ignore"):
        middle = exact.astype(np.float32)
    assert np.array_equal(middle, exact)  # float32 holds every midpoint
    low = np.arange(middle.size)
    below, above = np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))
    return np.concatenate([below, middle, above]), np.concatenate([low, low + low % 2, low + 1])


def encoder_inputs(dtype: str) -> Array:
    """Specials, every rounding boundary, every upper half of a float32 with telling lower halves, random bits."""
    upper = np.arange(2**16, dtype=np.uint32) << 16
    patterns = [upper | np.uint32(low) for low in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    patterns.append(np.random.default_rng(7).integers(0, 2**32, 2_000_000, dtype=np.uint32))
    boundaries, _ = around_midpoints(dtype)
    return np.concatenate([both_signs(SPECIALS), both_signs(boundaries), np.concatenate(patterns).view(np.float32)])


def torch_decode(dtype: str, codes: Array) -> Array:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    raw = torch.from_numpy(codes.view(np.uint8).copy())
    decoded: Array = raw.view(getattr(torch, TORCH_NAMES[dtype])).float().numpy()
    return decoded


def torch_encode(dtype: str, values: Array) -> Array:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    narrow = torch.from_numpy(values.copy()).to(getattr(torch, TORCH_NAMES[dtype]))
    codes: Array = narrow.view(torch.uint8).numpy().view(storage(dtype))
    return codes


def ml_dtypes_type(dtype: str) -> Any:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is the oracle of this test")
    return np.float16 if dtype == "F16" else getattr(ml_dtypes, TORCH_NAMES[dtype])


def ml_dtypes_decode(dtype: str, codes: Array) -> Array:
    decoded: Array = codes.view(ml_dtypes_type(dtype)).astype(np.float32)
    return decoded


def ml_dtypes_encode(dtype: str, values: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        codes: Array = values.astype(ml_dtypes_type(dtype)).view(storage(dtype))
    return codes


def assert_same(got: Array, wanted: Array, nan_signs: bool = True) -> None:
    """float32 arrays with equal bits, except that NaN equals NaN of the same sign."""
    nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.uint32), wanted[~nan].view(np.uint32))
    if nan_signs:
        np.testing.assert_array_equal(np.signbit(got[nan]), np.signbit(wanted[nan]))


@pytest.mark.parametrize("dtype", SMALL)
def test_decode_is_exact(dtype: str) -> None:
    wanted = magnitudes(dtype)[:-1]
    got, count = decode(dtype, all_codes(dtype))
    half = got.size // 2
    np.testing.assert_array_equal(got[: wanted.size].astype(np.float64), wanted)
    np.testing.assert_array_equal(got[half : half + wanted.size].view(np.uint32), (-got[: wanted.size]).view(np.uint32))
    assert not np.isfinite(got[wanted.size : half]).any()
    assert count == np.count_nonzero(~np.isfinite(got)) == got.size - 2 * wanted.size


@pytest.mark.parametrize(
    ("dtype", "code", "value"),
    [
        ("F16", 0x3C00, 1.0),
        ("F16", 0x0001, 2.0**-24),
        ("F16", 0xFBFF, -65504.0),
        ("BF16", 0x3F80, 1.0),
        ("BF16", 0x8001, -(2.0**-133)),
        ("F8_E4M3", 0x01, 2.0**-9),
        ("F8_E4M3", 0x7E, 448.0),
        ("F8_E5M2", 0x81, -(2.0**-16)),
        ("F8_E5M2", 0x7B, 57344.0),
        ("F8_E5M2", 0xFC, -np.inf),
    ],
)
def test_values_of_the_specifications(dtype: str, code: int, value: float) -> None:
    codes = np.array([code], storage(dtype))
    assert decode(dtype, codes)[0][0] == value
    assert encode(dtype, np.array([value], np.float32))[0][0] == code


@pytest.mark.parametrize("oracle", [torch_decode, ml_dtypes_decode])
@pytest.mark.parametrize("dtype", SMALL)
def test_decode_agrees(dtype: str, oracle: Oracle) -> None:
    codes = all_codes(dtype)
    assert_same(decode(dtype, codes)[0], oracle(dtype, codes))


@pytest.mark.parametrize("dtype", SMALL)
def test_roundtrip_keeps_every_pattern(dtype: str) -> None:
    codes = all_codes(dtype)
    np.testing.assert_array_equal(encode(dtype, decode(dtype, codes)[0])[0], codes)


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_wide_types_keep_float32(dtype: str) -> None:
    values = encoder_inputs("F16")
    values = values if dtype == "F32" else values[~np.isnan(values)]
    codes, encoded_count = encode(dtype, values)
    got, decoded_count = decode(dtype, codes)
    np.testing.assert_array_equal(got.view(np.uint32), values.view(np.uint32))
    np.testing.assert_array_equal(codes.view(f"f{codes.itemsize}"), values)
    assert encoded_count == decoded_count == np.count_nonzero(~np.isfinite(values))


@pytest.mark.parametrize("dtype", SMALL)
def test_encode_at_every_rounding_boundary(dtype: str) -> None:
    values, wanted = around_midpoints(dtype)
    sign = storage(dtype)(1 << (8 * DTYPES[dtype].itemsize - 1))
    np.testing.assert_array_equal(encode(dtype, values)[0], wanted)
    np.testing.assert_array_equal(encode(dtype, -values)[0], wanted.astype(sign.dtype) | sign)


@pytest.mark.parametrize("oracle", [torch_encode, ml_dtypes_encode])
@pytest.mark.parametrize("dtype", SMALL)
def test_encode_agrees(dtype: str, oracle: Oracle) -> None:
    values = encoder_inputs(dtype)
    if dtype == "F8_E4M3" and oracle is torch_encode:
        values = values[~(np.abs(values) > 464)]  # NaN beyond, until torch 2.12 began to saturate
    got, wanted = decode(dtype, encode(dtype, values)[0])[0], decode(dtype, oracle(dtype, values))[0]
    assert_same(got, wanted, nan_signs=not (dtype == "BF16" and oracle is torch_encode))


@pytest.mark.parametrize("dtype", SMALL)
def test_encode_counts_what_overflows(dtype: str) -> None:
    values = encoder_inputs(dtype)
    codes, count = encode(dtype, values)
    assert count == decode(dtype, codes)[1] == np.count_nonzero(~np.isfinite(decode(dtype, codes)[0]))
    assert count > np.count_nonzero(~np.isfinite(values))
    largest = np.float32(magnitudes(dtype)[-2])
    assert encode(dtype, np.array([largest, -largest, 0], np.float32))[1] == 0
    boundary = np.float32(magnitudes(dtype)[-2:].mean())
    for toward, expected in ((np.float32(0), 0), (np.float32(np.inf), 1)):
        assert encode(dtype, np.array([1, -np.nextafter(boundary, toward)], np.float32))[1] == expected


@pytest.mark.parametrize(
    ("dtype", "truncated", "quiet"),
    [("F16", 0xFE55, 0x7E00), ("BF16", 0xFFCA, 0x7FC0), ("F8_E4M3", 0xFF, 0x7F), ("F8_E5M2", 0xFE, 0x7E)],
)
def test_nan_keeps_sign_and_payload(dtype: str, truncated: int, quiet: int) -> None:
    """0xFFCAA801 is cut to fit; 0x7F800001 has nothing left after the cut, and must not become infinity."""
    codes, count = encode(dtype, np.array([0xFFCAA801, 0x7F800001], np.uint32).view(np.float32))
    assert codes.tolist() == [truncated, quiet]
    assert count == 2


def test_f64_rounds_once_to_nearest_even() -> None:
    rng = np.random.default_rng(3)
    patterns = rng.integers(0, 2**64, 500_000, dtype=np.uint64).view(np.float64)
    limits = np.array(
        [0, 5e-324, 2.0**-150, 1e-40, 3.4028235677973366e38, 3.4028235677973362e38, 1e308, np.inf, np.nan]
    )
    values = both_signs(np.concatenate([patterns, limits]))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        wanted = values.astype(np.float32)
    got, count = decode("F64", values.view(np.uint64))
    assert_same(got, wanted)
    assert count == np.count_nonzero(~np.isfinite(wanted))


def test_f64_at_rounding_boundaries() -> None:
    low = np.random.default_rng(4).integers(0, 0x7F7FFFFF, 300_000, dtype=np.uint32)
    high = low + np.uint32(1)
    middle = (low.view(np.float32).astype(np.float64) + high.view(np.float32)) / 2
    for values, wanted in [
        (np.nextafter(middle, 0), low),
        (middle, low + (low & np.uint32(1))),
        (np.nextafter(middle, np.inf), high),
    ]:
        np.testing.assert_array_equal(decode("F64", values.view(np.uint64))[0].view(np.uint32), wanted)


@pytest.mark.parametrize("dtype", [*SMALL, "F32", "F64"])
@pytest.mark.parametrize("length", ODD_LENGTHS)
def test_any_length(dtype: str, length: int) -> None:
    values = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    full, _ = encode(dtype, np.resize(values, 70_000) if length else np.zeros(70_000, np.float32))
    room = np.full(length + 4, 0xA5, storage(dtype))
    assert codecs.encode(dtype, values, room[:length].view(np.uint8)) == 0
    np.testing.assert_array_equal(room[:length], full[:length])
    assert (room[length:] == 0xA5).all()  # nothing is written beyond the end
    out = np.full(length + 4, 7, np.float32)
    assert codecs.decode(dtype, room[:length].view(np.uint8), out[:length]) == 0
    np.testing.assert_array_equal(out[:length], decode(dtype, full)[0][:length])
    assert (out[length:] == 7).all()


@pytest.mark.parametrize("dtype", [*SMALL, "F32", "F64"])
def test_mapped_file_is_decoded_in_place(dtype: str, tmp_path: Path) -> None:
    codes, _ = encode(dtype, np.linspace(-3, 3, 1001, dtype=np.float32))
    path = tmp_path / "raw"
    path.write_bytes(codes.tobytes())
    with path.open("rb") as file:
        raw = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    assert not raw.flags.writeable
    out = np.empty(1001, np.float32)
    assert codecs.decode(dtype, raw, out) == 0
    np.testing.assert_array_equal(out, decode(dtype, codes)[0])


def test_threads_do_not_disturb_each_other() -> None:
    codes = np.random.default_rng(1).integers(0, 2**16, 1_000_000).astype(np.uint16)
    wanted, count = decode("F16", codes)
    with ThreadPoolExecutor(4) as pool:
        for got, got_count in pool.map(lambda _: decode("F16", codes), range(16)):
            np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))
            assert got_count == count


@pytest.mark.parametrize("dtype", SMALL)
def test_flushing_of_subnormals_changes_nothing(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch switches the processor to flush subnormals")
    codes, values = all_codes(dtype), both_signs(around_midpoints(dtype)[0])
    decoded, encoded = decode(dtype, codes)[0], encode(dtype, values)[0]
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush subnormals")
        flushed, narrowed = decode(dtype, codes)[0], encode(dtype, values)[0]
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(flushed.view(np.uint32), decoded.view(np.uint32))
    np.testing.assert_array_equal(narrowed, encoded)


def test_keep_base_restores_the_bits_that_float32_cannot_hold() -> None:
    rng = np.random.default_rng(5)
    base = np.concatenate([rng.standard_normal(10_001), [0.0, -0.0, np.nan, 1e300]])
    base_values, _ = decode("F64", base.view(np.uint64))
    values = base_values.copy()
    changed = rng.random(values.size) < 0.5
    changed[-4:] = [True, False, False, False]
    values[changed] = -values[changed]  # 0.0 becomes -0.0: equal as numbers, not as bits
    out, _ = encode("F64", values)
    wanted = np.where(changed, out, base.view(np.uint64))
    raw = base.view(np.uint8)
    raw.flags.writeable = False
    codecs.keep_base(values, base_values, raw, out.view(np.uint8))
    np.testing.assert_array_equal(out, wanted)


def test_a_type_that_is_no_weight_is_refused() -> None:
    with pytest.raises(FormatError, match="cannot compute with elements of type I64; known are F64, F32, F16"):
        codecs.decode("I64", np.zeros(8, np.uint8), np.zeros(1, np.float32))


def test_lengths_that_differ_are_refused() -> None:
    one, two = np.zeros(1, np.float32), np.zeros(2, np.float32)
    raw = np.zeros(16, np.uint8)
    with pytest.raises(ValueError, match="8 elements of type F16 do not fit 2 float32 values"):
        codecs.decode("F16", raw, two)
    with pytest.raises(ValueError, match="4 elements of type F32 do not fit 2 float32 values"):
        codecs.encode("F32", two, raw)
    with pytest.raises(ValueError, match="1 elements of type F64 do not fit 2 float32 values"):
        codecs.keep_base(two, one, raw, raw.copy())
