"""What is not usual is noticed, by any device, without waiting for it."""

import numpy as np
import pytest
import torch

from streammerge.device.limits import LARGEST, Limits
from streammerge.formats import codecs
from streammerge.formats.dtypes import DTYPES
from tests.formats.strange_device import StrangeDevice


def exceeded(array, device, *largest):
    limits = Limits(device)
    limits.check(torch.from_numpy(array).to(device), *largest)
    assert limits.exceeded.dtype == torch.bool and limits.exceeded.shape == ()
    return limits.exceeded.item()


@pytest.mark.parametrize("values", [[0.0, -0.0], [1.5, -2.5, 2.0], [3.4e38, -1e-45], [-3.4028235e38]])
def test_finite_values_are_usual(values, device):
    assert not exceeded(np.array(values, np.float32), device)


@pytest.mark.parametrize("bad", [0x7F800000, 0xFF800000, 0x7F800001, 0x7FC00000, 0xFFC00000, 0xFFFFFFFF])
def test_infinity_and_nan_are_not(bad, device):
    array = np.array([1, 2, 3], np.float32)
    array[1] = np.array(bad, np.uint32).view(np.float32)
    assert exceeded(array, device)


def test_what_was_noticed_stays(device):
    limits = Limits(device)
    for value in (1.0, np.inf, 1.0):
        limits.check(torch.tensor([value], device=device))
    assert limits.exceeded.item()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", LARGEST)
def test_the_largest_value_of_a_type_is_usual_and_is_its_largest(dtype, sign, device):
    largest = np.array([sign * LARGEST[dtype]], np.float32)
    assert not exceeded(largest, device, LARGEST[dtype])
    with np.errstate(over="ignore"):
        beyond = np.nextafter(largest, np.float32(sign * np.inf))
        far = largest * np.float32(1.1)
    assert exceeded(beyond, device, LARGEST[dtype])
    raw = np.empty(DTYPES[dtype].itemsize, np.uint8)
    assert codecs.encode(dtype, largest, raw) == 0
    back = np.empty(1, np.float32)
    codecs.decode(dtype, raw, back)
    assert back[0] == largest[0]
    assert codecs.encode(dtype, far, raw) == 1


def test_nothing_relies_on_the_processor():
    limits, values = Limits(torch.device("cpu")), torch.tensor([1.0, -2.0])
    with StrangeDevice():
        limits.check(values, 3.0)
    assert not limits.exceeded.item()
