"""The codecs in torch against those in Numba, bit for bit."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from streammerge.formats import codecs  # noqa: E402
from streammerge.formats.device import codecs as device_codecs  # noqa: E402
from streammerge.formats.dtypes import DTYPES  # noqa: E402
from streammerge.formats.errors import FormatError  # noqa: E402

from . import test_codecs  # noqa: E402
from .device_memory import check_bound, peak_bytes  # noqa: E402
from .strange_device import StrangeDevice  # noqa: E402

ALL = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"]
SMALL = test_codecs.SMALL

each_type = pytest.mark.parametrize("dtype", ALL)


def decode(dtype, codes, device):
    out = torch.full((codes.size,), 7.0, device=device)
    device_codecs.decode(dtype, torch.from_numpy(codes.view(np.uint8)).to(device), out)
    return out.cpu().numpy()


def encode(dtype, values, device):
    out = torch.full((values.size * DTYPES[dtype].itemsize,), 0xA5, dtype=torch.uint8, device=device)
    device_codecs.encode(dtype, torch.from_numpy(values).to(device), out)
    return out.cpu().numpy().view(test_codecs.storage(dtype))


def every_exponent():
    """Float32 of every exponent and sign, with mantissas at random and those that are ties for some type."""
    rng = np.random.default_rng(11)
    exponents = np.arange(512, dtype=np.uint32)[:, None] << 23
    ties = [kept << (23 - bits) | 1 << (22 - bits) for bits in range(23) for kept in (0, 1, 2 ** max(bits - 1, 0))]
    beside = (np.array(ties)[:, None] + (-1, 0, 1)).ravel() & 0x7FFFFF
    mantissas = np.concatenate([rng.integers(0, 2**23, 2000), beside, [0, 1, 0x7FFFFE, 0x7FFFFF]])
    return (exponents | mantissas.astype(np.uint32)).ravel().view(np.float32)


@pytest.mark.parametrize("dtype", SMALL)
def test_every_code_is_decoded_as_in_numba(dtype, device):
    codes = test_codecs.all_codes(dtype)
    test_codecs.assert_same(decode(dtype, codes, device), test_codecs.decode(dtype, codes)[0], nan_signs=False)


def test_float32_is_copied_bit_for_bit(device):
    values = np.concatenate([test_codecs.both_signs(test_codecs.SPECIALS), every_exponent()])
    np.testing.assert_array_equal(decode("F32", values, device).view(np.uint32), values.view(np.uint32))
    np.testing.assert_array_equal(encode("F32", values, device), values.view(np.uint32))


def test_float64_is_rounded_once(device):
    rng = np.random.default_rng(12)
    low = every_exponent()
    low = low[np.isfinite(low)]
    with np.errstate(over="ignore"):
        middle = (low.astype(np.float64) + np.nextafter(low, np.float32(np.inf))) / 2
        beside = np.concatenate([np.nextafter(middle, -np.inf), middle, np.nextafter(middle, np.inf)])
    patterns = rng.integers(0, 2**64, 300_000, dtype=np.uint64).view(np.float64)
    subnormal = rng.standard_normal(100_000) * 2.0 ** rng.integers(-160, -120, 100_000)
    codes = np.concatenate([patterns, beside, subnormal, [1e300, -1e300, np.inf, -0.0, 5e-324]]).view(np.uint64)
    test_codecs.assert_same(decode("F64", codes, device), test_codecs.decode("F64", codes)[0], nan_signs=False)


@each_type
def test_values_of_every_exponent_are_encoded_as_in_numba(dtype, device):
    values = every_exponent()
    if dtype in SMALL:
        values = np.concatenate([values, test_codecs.encoder_inputs(dtype)])
    wanted, found = test_codecs.encode(dtype, values)[0], encode(dtype, values, device)
    is_number = ~np.isnan(values)
    np.testing.assert_array_equal(found[is_number], wanted[is_number])
    assert np.isnan(test_codecs.decode(dtype, found)[0][~is_number]).all()


@each_type
def test_nothing_relies_on_the_processor(dtype):
    values = every_exponent()
    values = values[np.isfinite(values)]
    with StrangeDevice():
        encode(dtype, values, "cpu")
        decode(dtype, values.view(test_codecs.storage(dtype)), "cpu")


@each_type
@pytest.mark.parametrize("length", [0, 1, 7, 65_537])
def test_any_length_and_nothing_beyond(dtype, length, device):
    size = DTYPES[dtype].itemsize
    values = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    room = torch.full(((length + 2) * size,), 0xA5, dtype=torch.uint8, device=device)
    raw = room[size:-size]
    device_codecs.encode(dtype, torch.from_numpy(values).to(device), raw)
    out = torch.full((length + 2,), 7.0, device=device)
    device_codecs.decode(dtype, raw, out[1:-1])
    assert (room[:size] == 0xA5).all() and (room[-size:] == 0xA5).all() and out[0] == out[-1] == 7
    codes = test_codecs.encode(dtype, values)[0]
    np.testing.assert_array_equal(raw.cpu().numpy(), codes.view(np.uint8))
    np.testing.assert_array_equal(out[1:-1].cpu().numpy(), test_codecs.decode(dtype, codes)[0])


def test_keep_base_restores_the_bits_that_float32_cannot_hold(device):
    rng = np.random.default_rng(5)
    base = np.concatenate([rng.standard_normal(10_001), [0.0, -0.0, np.nan, 1e300]])
    base_values, _ = test_codecs.decode("F64", base.view(np.uint64))
    values = np.where(rng.random(base.size) < 0.5, base_values, -base_values)
    out, _ = test_codecs.encode("F64", values)
    kept = torch.from_numpy(out.view(np.uint8).copy()).to(device)
    arrays = (values, base_values, base.view(np.uint8))
    device_codecs.keep_base(*(torch.from_numpy(array).to(device) for array in arrays), kept)
    codecs.keep_base(*arrays, out.view(np.uint8))
    np.testing.assert_array_equal(kept.cpu().numpy(), out.view(np.uint8))


def test_what_does_not_fit_is_refused():
    one, two = torch.zeros(1), torch.zeros(2)
    raw = torch.zeros(16, dtype=torch.uint8)
    with pytest.raises(FormatError, match="cannot compute with elements of type I64; known are F64, F32, F16"):
        device_codecs.decode("I64", raw, two)
    with pytest.raises(ValueError, match="8 elements of type F16 do not fit 2 float32 values"):
        device_codecs.decode("F16", raw, two)
    with pytest.raises(ValueError, match="4 elements of type F32 do not fit 2 float32 values"):
        device_codecs.encode("F32", two, raw)
    with pytest.raises(ValueError, match="1 elements of type F64 do not fit 2 float32 values"):
        device_codecs.keep_base(two, one, raw, raw.clone())


@each_type
def test_scratch_bounds_what_lives_at_a_time(dtype, device):
    count = 1 << 16
    values = torch.zeros(count, device=device)
    raw = torch.zeros(count * DTYPES[dtype].itemsize, dtype=torch.uint8, device=device)
    check_bound(device_codecs.DECODE_SCRATCH[dtype], count, peak_bytes(device_codecs.decode, dtype, raw, values))
    check_bound(device_codecs.ENCODE_SCRATCH[dtype], count, peak_bytes(device_codecs.encode, dtype, values, raw))


def test_scratch_of_keep_base(device):
    count = 1 << 16
    values, raw = torch.zeros(count, device=device), torch.zeros(8 * count, dtype=torch.uint8, device=device)
    peak = peak_bytes(device_codecs.keep_base, values, values, raw, raw.clone())
    check_bound(device_codecs.KEEP_BASE_SCRATCH, count, peak)


def test_the_peak_counts_what_lives_at_once_and_no_arguments(device):
    def work(given):
        kept = given + 1
        for _ in range(3):
            kept = kept.add_(given).view(4, -1) * kept.view(4, -1)
            kept = kept.view(-1)

    assert peak_bytes(work, torch.zeros(1000, device=device)) == 2 * 4000
