"""Encoders in torch against the compiled ones, byte for byte."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from streammerge.formats import device as device_formats  # noqa: E402
from streammerge.formats import quants  # noqa: E402
from streammerge.formats.errors import FormatError  # noqa: E402

from . import quant_checks, test_quants  # noqa: E402
from .device_encoder import encoder_on  # noqa: E402
from .device_memory import check_bound, peak_bytes  # noqa: E402

NAMES = list(quants.QUANTS)

each_type = pytest.mark.parametrize("name", NAMES)


@each_type
def test_golden_rows(name, device):
    quant_checks.check_golden(name, encoder_on(device))


@each_type
def test_blocks_equal_the_compiled_ones(name, device):
    quant_checks.check_against_compiled(name, encoder_on(device))


@each_type
def test_any_number_of_blocks_in_a_row(name, device):
    quant_checks.check_row_lengths(name, encoder_on(device))


@each_type
def test_divisions_change_nothing(name, device):
    quant_checks.check_divisions(name, encoder_on(device))
