"""The four-bit types with a codebook against ggml: bytes and values, bit for bit."""

import numpy as np
import pytest

from streammerge.formats.quants import iq4

from . import quant_checks

each_type = pytest.mark.parametrize("name", ["IQ4_NL", "IQ4_XS"])


@each_type
def test_golden_rows(name):
    quant_checks.check_golden(name)


@each_type
def test_blocks_equal_the_librarys(name):
    quant_checks.check_against_library(name, 40_000 if name == "IQ4_XS" else 100_000)


@each_type
def test_any_number_of_blocks_in_a_row(name):
    quant_checks.check_row_lengths(name)


@each_type
def test_decoder(name):
    quant_checks.check_decoder(name)


@each_type
def test_a_bad_block_stays_alone(name):
    quant_checks.check_bad_block_stays_alone(name)


def test_no_rounding_moves_the_limits_between_codes():
    for low, high, limit in zip(iq4.VALUES, iq4.VALUES[1:], iq4.LIMITS):
        below = np.nextafter(limit, np.float32(-np.inf))
        assert below - low < high - below  # float32, as in ggml
        assert not limit - low < high - limit
