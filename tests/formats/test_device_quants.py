"""Encoders in torch against the compiled ones, byte for byte."""

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from streammerge.formats import device as device_formats  # noqa: E402
from streammerge.formats import quants  # noqa: E402
from streammerge.formats.errors import FormatError  # noqa: E402

from . import quant_checks  # noqa: E402
from .device_encoder import encoder_on  # noqa: E402
from .device_memory import check_bound, peak_bytes  # noqa: E402
from .strange_device import StrangeDevice  # noqa: E402

NAMES = list(quants.QUANTS)

each_type = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Most tensors here are so small that a second thread is waited for longer than it helps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@each_type
def test_golden_rows(name, device):
    quant_checks.check_golden(name, encoder_on(device))


@each_type
def test_blocks_equal_the_compiled_ones(name, device):
    quant_checks.check_against_compiled(name, encoder_on(device), rows=2 if name.endswith("_K") else 16)


@each_type
def test_any_number_of_blocks_in_a_row(name, device):
    quant_checks.check_row_lengths(name, encoder_on(device))


@each_type
def test_divisions_change_nothing(name, device):
    quant_checks.check_divisions(name, encoder_on(device))


def test_mxfp4_beside_middles_and_powers_of_two(device):
    for values in (quant_checks.beside_middles_of_mxfp4(), quant_checks.peaks_beside_powers_of_two()):
        values = values[np.isfinite(values)]
        values = values[: values.size // 32 * 32]
        found = encoder_on(device)("MXFP4", values, 32, None)
        assert np.array_equal(found, quant_checks.encode("MXFP4", values, 32, None))


def test_float16_fields_are_rounded_as_in_the_compiled_encoders(device):
    """Q8_0 with peaks that make every float16, and what lies between two, its scale."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[1:] + halves[:-1]) / 2
    scales = np.concatenate([halves, between, np.nextafter(between, np.float32(0)), np.nextafter(between, halves[1:])])
    values = np.repeat(scales * np.float32(127), 32)
    found = encoder_on(device)("Q8_0", values, 32, None)
    assert np.array_equal(found, quant_checks.encode("Q8_0", values, 32, None))


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K", "Q5_K"])
def test_scales_that_are_too_large_for_their_bits(name, device):
    """Where few columns have a weight above 0, some scales are negative and become large codes."""
    rng, row = np.random.default_rng(28), quant_checks.ROW
    values = rng.standard_normal(200 * row, np.float32)
    weights = np.where(rng.random(row) < 0.06, rng.random(row, np.float32), np.float32(0))
    found = encoder_on(device)(name, values, row, weights)
    assert np.array_equal(found, quant_checks.encode(name, values, row, weights))


@each_type
def test_nothing_relies_on_the_processor(name):
    device_formats.scratch(name)  # imports the family, whose constants are made where they may
    encoder = encoder_on(torch.device("cpu"), StrangeDevice())
    rng, row = np.random.default_rng(27), quant_checks.ROW
    kinds = [*quant_checks.data(row, rng), *quant_checks.hostile_data(row, rng)]
    values = np.concatenate([values for _, values in kinds])
    for importance in (None, *(weights for _, weights in quant_checks.hostile_importances(row, rng))):
        wanted = quant_checks.encode(name, values, row, importance)
        assert np.array_equal(encoder(name, values, row, importance), wanted)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: x / 3, "division by a number"),
        (lambda x: 3 / x, "reciprocal of"),
        (lambda x: x.add(x, alpha=3), "add with a factor"),
        (lambda x: x.addcmul(x, x), "addcmul of"),
        (lambda x: x.sum(), "sum of"),
        (lambda x: x.sqrt(), "sqrt of"),
        (lambda x: x[0].item(), "_local_scalar_dense of"),
        (lambda x: x[x > 1], "index of"),
        (lambda x: (x * 200).to(torch.uint8), "400.* as torch.uint8"),
        (lambda x: (x - torch.inf).add_(torch.inf).to(torch.int32), "nan.* as torch.int32"),
    ],
)
def test_what_a_strange_device_finds(operation, message):
    with StrangeDevice(), pytest.raises(AssertionError, match=message):
        operation(torch.full((2,), 2.0))


def test_nan_has_other_bits_on_a_strange_device():
    with StrangeDevice():
        found = (torch.full((1,), torch.inf) * 0.0).view(torch.int32)
    assert found.item() == 0x7FFF_FFFF


@each_type
def test_scratch_bounds_what_lives_at_a_time(name, device):
    rows, row = 64, 1024
    quant = quants.QUANTS[name]
    values, weights = torch.randn(rows * row, device=device), torch.rand(row, device=device)
    out = torch.empty(values.numel() // quant.block * quant.nbytes, dtype=torch.uint8, device=device)
    peaks = [peak_bytes(device_formats.quantize, name, values, row, given, out) for given in (None, weights)]
    check_bound(device_formats.scratch(name), values.numel(), max(peaks))


def test_what_cannot_be_quantized_is_refused_as_by_the_compiled_encoders():
    values, out = torch.zeros(64), torch.zeros(36, dtype=torch.uint8)
    with pytest.raises(FormatError, match="cannot write elements of type IQ2_S; known are Q4_0, Q4_1, "):
        device_formats.quantize("IQ2_S", values, 64, None, out)
    with pytest.raises(FormatError, match="cannot write elements of type IQ2_S; known are Q4_0, Q4_1, "):
        device_formats.scratch("IQ2_S")
    with pytest.raises(ValueError, match="64 values are not whole rows of 48 in blocks of 32"):
        device_formats.quantize("Q4_0", values, 48, None, out)
    with pytest.raises(ValueError, match="32 weights for rows of 64 values"):
        device_formats.quantize("Q4_0", values, 64, torch.zeros(32), out)
    with pytest.raises(ValueError, match="64 Q4_0 elements in blocks of 32 do not fit 35 bytes"):
        device_formats.quantize("Q4_0", values, 64, None, out[1:])


def test_a_type_loads_its_own_family_only_and_no_compiled_one():
    code = """
import sys
import torch
from streammerge.formats import device
device.quantize("TQ2_0", torch.zeros(256), 256, None, torch.zeros(66, dtype=torch.uint8))
assert "streammerge.formats.device.ternary" in sys.modules
assert not {"numba", "streammerge.formats.device.legacy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
