"""The torch backend with several blocks at once against Numba block after block, to the bit; and its memory."""

from inspect import signature

import numpy as np
import pytest

from streammerge.kernels.contract import BLOCK, Kernels
from streammerge.kernels.load import load_cpu
from tests.checks import check_same_bits
from tests.kernels_on_torch import ELEMENTS, MEASURED, OnTorch, filled, load_torch

BLOCKS = 3
F32 = np.float32
PRIMITIVES = [name for name in vars(Kernels) if not name.startswith("_")]
BY_BLOCK = {"sums", "whole", "by_count", "by_agent", "by_pair"}


def coarse(rng, *shape):
    """Few different values, so that magnitudes are equal and differences are 0."""
    return (rng.integers(-40, 41, shape) * F32(2.0**-9)).astype(F32)


def arguments_of(primitive, agents, length):
    """Arguments for several blocks by name, what is measured by block with the blocks last."""
    rng = np.random.default_rng(agents + length)
    base = coarse(rng, BLOCKS, length)
    rows = np.where(rng.random((agents, BLOCKS, length)) < 0.5, coarse(rng, agents, BLOCKS, length), base)
    counted = {"histogram_high": (agents, 1 << 15), "histogram_low": (agents, 1 << 16), "count_equal": (agents, BLOCKS)}
    summed = {"sums_of_magnitudes": (agents, BLOCKS), "inner_products": (3, BLOCKS)}
    limits = np.resize(np.array([2.0**-6, 0, 2.0**-5], F32), agents).view(np.uint32)
    every = {
        "base": base, "agents": rows, "rows": rows, "deltas": rows, "row": rows[0], "merged": rows[-1],
        "x": base, "y": rows[0], "out": rng.standard_normal((BLOCKS, length)).astype(F32),
        "epsilon": 2.0**-8, "scales": np.linspace(1, 1.7, agents).astype(F32), "factor": 0.7, "divisor": 3.3,
        "weights": np.linspace(1, -0.4, agents).astype(F32), "factors": np.linspace(0.5, 1, agents), "normalize": True,
        "a": 0.3, "b": -1.7, "high": (limits >> 16).astype(np.int64), "thresholds": limits,
        "quota": np.concatenate([np.full((1, agents), length), rng.integers(0, length // 50 + 1, (2, agents))]),
        "density": rng.uniform(0, 1, agents), "keys": rng.integers(0, 2**64, (agents, 2), np.uint64), "start": 7,
        "tally": np.zeros((agents, 2), np.int64), "counts": np.zeros(counted.get(primitive, ()), np.int64),
        "sums": np.zeros(summed.get(primitive, ())), "whole": np.zeros((3, BLOCKS)),
        "by_count": np.zeros((agents + 1, BLOCKS)), "by_agent": np.zeros((agents, 6, BLOCKS)),
        "by_pair": np.zeros((agents * (agents - 1) // 2, 3, BLOCKS)),
    }  # fmt: skip
    return {name: every[name] for name in signature(getattr(Kernels, primitive)).parameters if name != "self"}


def block_of(primitive, named, number):
    """The arguments for one block: its elements and what is measured in it; other arrays are the same for all."""
    by_block = BY_BLOCK | ({"counts"} if primitive == "count_equal" else set())

    def part(name, value):
        if name in ELEMENTS:
            return np.ascontiguousarray(value[..., number, :])
        if name in by_block:
            return value[..., number].copy()
        return value[number] if name == "quota" else value

    found = {name: part(name, value) for name, value in named.items()}
    return found | ({"start": named["start"] + number * named["rows"].shape[-1]} if "start" in named else {})


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def on_torch(request):
    return OnTorch(request.param)


@pytest.mark.parametrize("agents", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [31, 2049, 8229])
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_several_blocks_at_once_are_block_after_block(on_torch, primitive, agents, length):
    together, apart = (arguments_of(primitive, agents, length) for _ in range(2))
    getattr(on_torch, primitive)(*together.values())
    for number in range(BLOCKS):
        wanted = block_of(primitive, apart, number)
        getattr(load_cpu(), primitive)(*wanted.values())
        for name, found in block_of(primitive, together, number).items():
            if name in ELEMENTS | BY_BLOCK and name in filled(primitive):
                check_same_bits(found, wanted[name], name)
    for name in {"tally", "counts"} & together.keys():
        if primitive != "count_equal":
            np.testing.assert_array_equal(together[name], apart[name])


@pytest.mark.parametrize("agents", [1, 3, 32])
def test_scratch_is_enough_for_every_primitive_and_not_much_more(device, agents):
    kernels, _ = load_torch(device.type)
    import torch

    from streammerge.kernels.cuda import scratch
    from tests.formats.device_memory import SLACK, peak_bytes

    length, peaks = BLOCK // 4, {}
    for primitive in PRIMITIVES:
        if (primitive, agents) == ("observe", 32):
            continue  # 496 pairs: following them takes seconds
        named = arguments_of(primitive, agents, length)
        uploaded = [
            torch.from_numpy(value).to(device) if name in ELEMENTS | MEASURED else value
            for name, value in named.items()
        ]  # fmt: skip
        peaks[primitive] = peak_bytes(getattr(kernels, primitive), *uploaded)
    bound = scratch(agents) * BLOCKS * length
    assert {name: peak for name, peak in peaks.items() if peak > bound} == {}
    assert bound <= 1.3 * max(peaks.values()) + SLACK
