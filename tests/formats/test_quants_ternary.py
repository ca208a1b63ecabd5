"""The ternary types and MXFP4 against ggml: bytes and values, bit for bit."""

import numpy as np
import pytest

from . import quant_checks

each_type = pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0", "MXFP4"])


@each_type
def test_golden_rows(name):
    quant_checks.check_golden(name)


@each_type
def test_blocks_equal_the_librarys(name):
    quant_checks.check_against_library(name)


@each_type
def test_any_number_of_blocks_in_a_row(name):
    quant_checks.check_row_lengths(name)


@each_type
def test_decoder(name):
    quant_checks.check_decoder(name)


@each_type
def test_a_bad_block_stays_alone(name):
    quant_checks.check_bad_block_stays_alone(name)


def test_exponent_of_mxfp4_beside_every_power_of_two():
    exponents = np.arange(256, dtype=np.uint32)[:, None] << 23
    mantissas = np.concatenate([np.arange(3), np.arange(2**23 - 300, 2**23)]).astype(np.uint32)
    subnormals = [np.arange(max(1, 2**k - 80), 2**k + 3, dtype=np.uint32) for k in range(24)]
    patterns = np.concatenate([(exponents | mantissas).ravel(), *subnormals])
    peaks = patterns[patterns <= 0x7F800000].view(np.float32)
    values = np.zeros((peaks.size, 32), np.float32)
    values[:, 5] = peaks
    quant_checks.check_values("MXFP4", values.ravel())
