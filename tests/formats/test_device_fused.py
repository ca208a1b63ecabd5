"""The searches as single kernels: computed by Triton's interpreter, and compiled for GPUs that need not be there."""

import os
import re
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

from streammerge.formats.device import iq4, k_blocks, refinement, search  # noqa: E402
from streammerge.formats.device.fields import table  # noqa: E402

from . import quant_checks, test_device_search  # noqa: E402
from .device_encoder import encoder_on  # noqa: E402

CPU = torch.device("cpu")
SUBS = 1600


@pytest.fixture(scope="module")
def kernels():
    """Kernels for Triton's interpreter, which takes as long for many sub-blocks as for few: 8192 of them to a program.

    What is decorated while TRITON_INTERPRET is set is interpreted.
    """
    if torch.cuda.is_available():
        pytest.skip("the other tests of encoders run the kernels on this GPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        from streammerge.formats.device.fused import kernels, rounding

        patch.setattr(rounding, "LANES", 1 << 13)
        with np.errstate(all="ignore"):
            yield kernels


@pytest.fixture
def fused(kernels, monkeypatch):
    """The searches of ``formats/device`` use the kernels; gives the names of those that were started."""
    started = set()

    class Started(ModuleType):
        def __getattr__(self, name):
            started.add(name)
            return getattr(kernels, name)

    for module in (search, refinement, iq4, k_blocks):
        monkeypatch.setattr(module, "find", lambda device: Started("kernels"))
    return started


def sub_blocks(count, seed):
    """Elements and weights of sub-blocks, (count, 1, n) each: magnitudes from end to end, zeros, equal elements."""
    rng = np.random.default_rng(seed)
    x, w = test_device_search.numbers(rng, (2, count, SUBS))
    w = np.abs(w)
    x[:, :100] = np.abs(x[:, :100])
    x[:, 100:150] = x[0, 100:150]
    x[:, 150:200] = rng.choice([0, -0.0], (count, 50))
    w[:, 200:250] = 0
    return torch.from_numpy(x).unsqueeze(1), torch.from_numpy(w).unsqueeze(1)


def assert_same(wanted, found):
    np.testing.assert_array_equal(wanted, found)  # NaN are equal here
    is_number = wanted == wanted
    assert torch.equal(torch.signbit(wanted)[is_number], torch.signbit(found)[is_number])


def test_added(kernels):
    x, _ = sub_blocks(32, 3)
    x[:, 0, :50] = -0.0
    for terms in (x, x[:1], x.view(8, 4, -1), x.squeeze(1).t(), x.view(4, 8, -1).transpose(0, 1)):
        assert_same(k_blocks.added(terms), kernels.added(terms))


@pytest.mark.parametrize(("count", "top", "is_absolute"), [(32, 15, False), (32, 31, False), (16, 3, True)])
def test_asymmetric(count, top, is_absolute, kernels):
    x, w = sub_blocks(count, top)
    starts = [np.float32(start) for start in (-1, -0.3, 0.1, 0.6)]
    wanted = search.asymmetric(x.clone(), w.clone(), top, starts, is_absolute)
    numerators = search.numbers([np.float32(top), *(start + np.float32(top) for start in starts)], CPU)
    scale, low, inverse, origin = kernels.asymmetric(x, w, numerators, top, is_absolute)
    for a, b in zip(wanted, (scale, low * -1.0, inverse, origin), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize(("count", "top"), [(16, 32), (16, 4), (32, 8)])
def test_symmetric(count, top, kernels):
    x, w = sub_blocks(count, top)
    x[0, 0, 250:255] = x[3, 0, 253:260] = torch.nan
    wanted = search.symmetric(x.clone(), w.clone(), top, False)
    numerators = search.numbers([-(np.float32(top) + search.TENTH * np.float32(s)) for s in (0, *range(-9, 0))], CPU)
    more = search.numbers([-(np.float32(top) + search.TENTH * np.float32(s)) for s in range(1, 10)], CPU)
    for a, b in zip(wanted, kernels.symmetric(x, w, torch.cat([numerators, more]), top), strict=True):
        assert_same(a, b)


def test_iq4(kernels):
    x, w = (found.squeeze(1) for found in sub_blocks(32, 0))
    extreme = x.gather(0, x.abs().argmax(0, keepdim=True))[0].add(0.0)
    numerators = table(iq4._NUMERATORS, torch.float32, CPU)
    wanted = iq4._best(*iq4._fit(x, w, iq4._inverses(extreme, numerators)))
    is_used = extreme.abs() >= search.EPSILON
    assert_same(wanted[is_used], kernels.iq4_scale(x, w, numerators, extreme)[is_used])


@pytest.mark.parametrize(("count", "top"), [(8, 63), (16, 15)])
def test_positive(count, top, fused, monkeypatch):
    monkeypatch.setattr(test_device_search, "GROUPS", 200)
    test_device_search.test_positive(CPU, count, top)
    assert fused == {"positive"}


def test_refined(fused, monkeypatch):
    monkeypatch.setattr(test_device_search, "GROUPS", 200)
    test_device_search.test_refined(CPU)
    assert fused == {"refined"}


def test_an_importance_for_each_column_and_rows_of_one_block(fused):
    """Where every block has the same weights they are one block's, seen as many."""
    rng = np.random.default_rng(31)
    values, weights = rng.standard_normal(5 * 256, np.float32), rng.random(256, np.float32)
    found = encoder_on(CPU)("Q6_K", values, 256, weights)
    assert np.array_equal(found, quant_checks.encode("Q6_K", values, 256, weights))


@pytest.mark.parametrize(
    ("name", "is_weighted", "used"),
    [
        ("Q4_K", False, {"asymmetric", "added"}),
        ("Q2_K", True, {"asymmetric", "positive", "added"}),
        ("Q6_K", True, {"symmetric"}),
        ("Q3_K", False, {"refined"}),
        ("Q4_0", True, {"symmetric", "added"}),
        ("IQ4_XS", True, {"iq4_scale", "added"}),
    ],
)
def test_encoders_that_use_them(name, is_weighted, used, fused):
    rng, row = np.random.default_rng(30), quant_checks.ROW
    values = np.concatenate([kind for _, kind in (*quant_checks.data(row, rng), *quant_checks.hostile_data(row, rng))])
    weights = np.where(rng.random(row) < 0.9, rng.random(row, np.float32), np.float32(0)) if is_weighted else None
    found = encoder_on(CPU)(name, values, row, weights)
    assert np.array_equal(found, quant_checks.encode(name, values, row, weights))
    assert fused == used


def test_what_is_compiled_rounds_each_operation_and_keeps_subnormals():
    """In a process of its own, where nothing is interpreted. Names of PTX operations say how they round."""
    command = [sys.executable, "-m", "tests.formats.fused_ptx"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    programs = child.stdout.split(".version")[1:]
    assert len(programs) == 7
    for program in programs:
        found = set(re.findall(r"\b([a-z]+(?:\.\w+)*\.f(?:32|16|64))(?:x2)?\b", program))
        computed = {name for name in found if name.split(".")[0] not in ("selp", "setp", "abs", "neg", "cvt", "mov")}
        assert {"add.rn.f32"} <= computed <= {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "div.rn.f32"}
        assert not re.search(r"\.ftz|\bfma\b|\.approx", program)
