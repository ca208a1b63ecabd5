"""Quantized types against ggml: bytes and values, bit for bit."""

import subprocess
import sys

import gguf
import numpy as np
import pytest

from streammerge.formats import quants
from streammerge.formats.errors import FormatError
from streammerge.formats.quants import iq4

from . import quant_checks

# Error of gaussian values, in units of their spread.
PRECISION = {
    "Q8_0": 0.006,
    "Q6_K": 0.025,
    "Q5_0": 0.05,
    "Q5_1": 0.05,
    "Q5_K": 0.05,
    "Q4_0": 0.1,
    "Q4_1": 0.1,
    "Q4_K": 0.1,
    "IQ4_NL": 0.1,
    "IQ4_XS": 0.1,
    "MXFP4": 0.15,
    "Q3_K": 0.2,
    "Q2_K": 0.35,
    "TQ1_0": 0.9,
    "TQ2_0": 0.9,
}

each_type = pytest.mark.parametrize("name", quants.QUANTS)


@each_type
def test_golden_rows(name):
    quant_checks.check_golden(name)


@each_type
def test_blocks_equal_the_librarys(name):
    quant_checks.check_against_library(name, 100_000 if quants.QUANTS[name].block == 32 else 50_000)


@each_type
def test_any_number_of_blocks_in_a_row(name):
    quant_checks.check_row_lengths(name)


@each_type
def test_divisions_change_nothing(name):
    quant_checks.check_divisions(name)


@each_type
def test_decoder(name):
    quant_checks.check_decoder(name)


@each_type
def test_decoding_gives_about_the_values_back(name):
    quant_checks.check_precision(name, PRECISION[name])


@each_type
def test_a_bad_block_stays_alone(name):
    quant_checks.check_bad_block_stays_alone(name)


def test_no_rounding_moves_the_limits_between_codes():
    for low, high, limit in zip(iq4.VALUES, iq4.VALUES[1:], iq4.LIMITS):
        below = np.nextafter(limit, np.float32(-np.inf))
        assert below - low < high - below  # float32, as in ggml
        assert not limit - low < high - limit


def test_numbers_beside_the_middles_of_mxfp4_at_every_scale():
    quant_checks.check_values("MXFP4", quant_checks.beside_middles_of_mxfp4())


def test_exponent_of_mxfp4_beside_every_power_of_two():
    quant_checks.check_values("MXFP4", quant_checks.peaks_beside_powers_of_two())


@pytest.mark.parametrize("quant", quants.QUANTS.values(), ids=lambda quant: quant.name)
def test_table_agrees_with_gguf(quant):
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[quant.name]] == (quant.block, quant.nbytes)


def test_a_type_loads_its_own_family_only_and_not_before_it_is_used():
    code = """
import sys
import numpy as np
from streammerge.formats import quants
assert "numba" not in sys.modules
quants.encode("TQ2_0", np.zeros(256, np.float32), 256, None, np.zeros(66, np.uint8))
assert "streammerge.formats.quants.ternary" in sys.modules
assert "streammerge.formats.quants.legacy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["IQ1_S", "IQ2_XXS", "IQ3_S", "NVFP4", "BF16"])
def test_other_types_are_decoded_by_gguf(name):
    kind = gguf.GGMLQuantizationType[name]
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 60, 8 * nbytes, dtype=np.uint8)
    out = np.empty(8 * block, np.float32)
    quants.decode(name, raw, out)
    assert np.array_equal(out, gguf.quants.dequantize(raw, kind))


def test_unknown_types_are_refused():
    values, raw = np.zeros(256, np.float32), np.zeros(256, np.uint8)
    with pytest.raises(FormatError, match="cannot write elements of type IQ2_S; known are Q4_0, Q4_1, "):
        quants.encode("IQ2_S", values, 256, None, raw)
    with pytest.raises(FormatError, match="cannot read elements of type Q9_9: ggml has no such type"):
        quants.decode("Q9_9", raw, values)
    with pytest.raises(FormatError, match="cannot read elements of type I8: the gguf package does not decode it"):
        quants.decode("I8", raw, values)


@pytest.mark.parametrize(
    ("values", "row", "weights", "nbytes", "message"),
    [
        (64, 48, None, 36, "64 values are not whole rows of 48 in blocks of 32"),
        (96, 64, None, 54, "96 values are not whole rows of 64"),
        (64, 0, None, 36, "whole rows of 0"),
        (64, 64, 32, 36, "32 weights for rows of 64 values"),
        (64, 64, None, 35, "64 Q4_0 elements in blocks of 32 do not fit 35 bytes"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(values, row, weights, nbytes, message):
    importance = None if weights is None else np.ones(weights, np.float32)
    with pytest.raises(ValueError, match=message):
        quants.encode("Q4_0", np.zeros(values, np.float32), row, importance, np.zeros(nbytes, np.uint8))


def test_bytes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="33 Q4_0 elements in blocks of 32 do not fit 18 bytes"):
        quants.decode("Q4_0", np.zeros(18, np.uint8), np.zeros(33, np.float32))
    with pytest.raises(ValueError, match="256 IQ1_S elements in blocks of 256 do not fit 49 bytes"):
        quants.decode("IQ1_S", np.zeros(49, np.uint8), np.zeros(256, np.float32))
