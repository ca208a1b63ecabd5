"""Blocks as stored against what decodes, computes and encodes them one after another: ml_dtypes and the primitives."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from streammerge.kernels.contract import BLOCK, Block
from streammerge.kernels.load import load_cpu
from streammerge.kernels.stored import Stored
from tests import oracle

F32 = np.float32
TYPES = oracle.STORED | {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
LONG = 2 * BLOCK + 5000
CASES = [(3, length, "BF16") for length in (1, 2047, 2049, BLOCK)] + [(agents, LONG, "BF16") for agents in (1, 2, 4, 8)]
CASES += [(3, 2049, dtype) for dtype in TYPES] + [(3, LONG, "F16")]
each_case = pytest.mark.parametrize(("agents", "length", "dtype"), CASES)


@pytest.fixture(scope="module")
def kernels():
    return load_cpu()


def drawn(agents, length, dtypes):
    """Base and agents, of which some weights moved, in these types and as float32."""
    rng = np.random.default_rng(agents + length)
    base = (rng.standard_normal(length) * 0.05).astype(TYPES[dtypes[0]])
    base[rng.random(length) < 0.05] = -0.0
    models = [base]
    for dtype in dtypes[1:-1]:
        moved = base.astype(F32) + rng.choice(np.array([1e-2, -1e-3, 2e-5], F32), length)
        models.append(np.where(rng.random(length) < 0.4, moved, base.astype(F32)).astype(TYPES[dtype]))
    return models, [model.astype(F32) for model in models]


def numbers_for(agents, blocks):
    """Parameters of the primitives, and room for what they measure."""
    rng = np.random.default_rng(agents)
    return SimpleNamespace(
        factors=np.linspace(0.7, 1.3, agents),
        weights=np.linspace(0.7, 1.3, agents).astype(F32),
        thresholds=np.resize(np.array([1e-3, 0, 2e-5], F32), agents).view(np.uint32),
        quota=rng.integers(0, 3000, (blocks, agents)),
        keys=rng.integers(0, 2**64, (agents, 2), np.uint64),
        tally=np.ones((agents, 2), np.int64),
        high=np.ones((agents, 1 << 15), np.int64),
        low=np.ones((agents, 1 << 16), np.int64),
        equal=np.moveaxis(np.ones((blocks, agents), np.int64), 0, -1),
        sums=np.ones((2, agents, blocks)),
        products=np.ones((3, blocks)),
    )


def of_block(numbers, i):
    """The same for one block, by itself."""
    own = {"quota": numbers.quota[i], "equal": numbers.equal[:, i].copy()}
    own |= {"sums": np.ascontiguousarray(numbers.sums[..., i]), "products": numbers.products[:, i].copy()}
    return SimpleNamespace(**(vars(numbers) | own))


BLENDS = {
    "ram": lambda k, b, n: k.ram(b.base, b.agents, 1e-5, n.weights, b.out, b.tally),
    "ram_divide_first": lambda k, b, n: k.ram_divide_first(b.base, b.agents, 1e-5, n.weights, b.out, b.tally),
    "combine": lambda k, b, n: k.combine(b.base, b.agents[0], 0.3, 0.6, b.out),
    "average": lambda k, b, n: (
        k.weighted_sum(b.agents, n.weights, 0.9, 3.3, b.out),
        k.keep_unchanged(b.base, b.agents, b.out),
    ),
    "deltas": lambda k, b, n: (
        k.subtract_base(b.base, b.agents),
        k.scale_rows(b.agents, n.factors),
        k.weighted_sum(b.agents, n.weights, 1.1, 1.0, b.out),
        k.add_to_base(b.base, b.out, b.out),
    ),
    "consensus": lambda k, b, n: (
        k.subtract_base(b.base, b.agents),
        k.keep_largest(b.agents, n.thresholds, n.quota),
        k.sign_consensus(b.agents, n.weights, True, 0.9, b.out),
        k.add_to_base(b.base, b.out, b.out),
    ),
    "sum": lambda k, b, n: (
        k.keep_random(b.agents, n.factors / 2, n.keys, b.start),
        k.sign_consensus(b.agents, n.weights, False, 1.0, b.out),
    ),
}
MEASURES = {
    "tally": lambda k, b, n: k.count_changes(b.base, b.agents, 1e-5, n.tally),
    "high": lambda k, b, n: k.histogram_high(b.agents, n.high),
    "low": lambda k, b, n: k.histogram_low(b.agents, (n.thresholds >> np.uint32(16)).astype(np.int64), n.low),
    "equal": lambda k, b, n: (k.subtract_base(b.base, b.agents), k.count_equal(b.agents, n.thresholds, n.equal)),
    "sums": lambda k, b, n: (
        k.sums_of_magnitudes(b.agents, n.sums[0]),
        k.keep_random(b.agents, n.factors / 2, n.keys, b.start),
        k.sums_of_magnitudes(b.agents, n.sums[1]),
    ),
    "products": lambda k, b, n: k.inner_products(b.base, b.agents[0], n.products),
}


def as_stored(calls, models, dtypes, numbers, start, out):
    raws = [model.view(np.uint8) for model in models]
    block = Block("w", slice(7, 7 + len(numbers.quota)), start, raws[0], raws[1:], out.view(np.uint8), numbers.tally)
    stored = Stored(block, dtypes)
    calls(stored, block, numbers)
    return stored.run()


def by_block(kernels, calls, values, numbers, start):
    """Every block by itself in float32; the result and what was measured, the axis of blocks last."""
    outs, measured = [], []
    for i in range(len(numbers.quota)):
        base, *agents = (row[i * BLOCK : (i + 1) * BLOCK].copy() for row in values)
        own, out = of_block(numbers, i), np.empty_like(base)
        calls(kernels, Block("w", 7 + i, start + i * BLOCK, base, np.stack(agents), out, numbers.tally), own)
        outs.append(out)
        measured.append(own)
    for name in ("equal", "sums", "products"):
        setattr(numbers, name, np.stack([getattr(own, name) for own in measured], axis=-1))
    return np.concatenate(outs)


@each_case
@pytest.mark.parametrize("name", list(BLENDS))
def test_a_blend_gives_what_decoding_computing_and_encoding_give(kernels, name, agents, length, dtype):
    dtypes = ["BF16", *(("BF16", "F16", "F32")[i % 3] for i in range(agents)), dtype]
    models, values = drawn(agents, length, dtypes)
    found, wanted = (numbers_for(agents, -(-length // BLOCK)) for _ in range(2))
    out = np.empty(length, TYPES[dtype])
    assert as_stored(BLENDS[name], models, dtypes, found, 4, out)
    expected = by_block(kernels, BLENDS[name], values, wanted, 4).astype(TYPES[dtype])
    np.testing.assert_array_equal(out.view(np.uint8), expected.view(np.uint8))
    np.testing.assert_array_equal(found.tally, wanted.tally)


def patterns(agents, length):
    """Finite bfloat16 of every size: zeros of both signs, subnormals, values that overflow when added."""
    rng = np.random.default_rng(agents)
    base = rng.integers(0, 1 << 16, length, np.uint16)
    near = (base[None] + rng.integers(-2, 3, (agents, length))).astype(np.uint16)
    far = rng.permutation(base)[None] ^ rng.integers(0, 2, (agents, length)).astype(np.uint16)
    moved = np.where(rng.random((1, length)) < 0.9, near, far)
    codes = np.vstack([base, np.where(rng.random((agents, length)) < 0.5, base[None], moved)])
    codes[(codes & 0x7F80) == 0x7F80] &= 0x3FFF
    return list(codes.view(ml_dtypes.bfloat16))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("agents", [1, 3, 4, 5])
@pytest.mark.parametrize("name", list(BLENDS))
def test_numbers_of_every_size(kernels, name, agents):
    models, dtypes = patterns(agents, 70_001), ["BF16"] * (agents + 2)
    out = np.empty_like(models[0])
    finite = as_stored(BLENDS[name], models, dtypes, numbers_for(agents, 2), 0, out)
    values = by_block(kernels, BLENDS[name], [model.astype(F32) for model in models], numbers_for(agents, 2), 0)
    expected = values.astype(ml_dtypes.bfloat16)
    same = (out.view(np.uint16) == expected.view(np.uint16)) | (np.isnan(values) & np.isnan(out.astype(F32)))
    assert same.all() and finite == bool(np.isfinite(expected.astype(F32)).all())


@each_case
@pytest.mark.parametrize("name", list(MEASURES))
def test_a_measure_counts_what_it_counts_in_float32(kernels, name, agents, length, dtype):
    dtypes = [dtype] * (agents + 2)
    models, values = drawn(agents, length, dtypes)
    found, wanted = (numbers_for(agents, -(-length // BLOCK)) for _ in range(2))
    assert as_stored(MEASURES[name], models, dtypes, found, 4, models[0][:0])
    by_block(kernels, MEASURES[name], values, wanted, 4)
    np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("model", [0, 2])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_an_input_that_is_not_finite_is_seen(dtype, model, value):
    models = [np.ones(5000, TYPES[dtype]) for _ in range(3)]
    out = np.empty_like(models[0])
    assert as_stored(BLENDS["ram"], models, [dtype] * 4, numbers_for(2, 1), 0, out)
    models[model][4321] = value
    assert not as_stored(BLENDS["ram"], models, [dtype] * 4, numbers_for(2, 1), 0, out)


def test_a_result_that_overflows_is_seen():
    models = [np.full(5000, 60_000, np.float32) for _ in range(3)]
    models[1][4321] = 70_000
    for dtype, fits in (("F32", True), ("F16", False)):
        out = np.empty(5000, TYPES[dtype])
        assert as_stored(BLENDS["ram"], models, ["F32"] * 3 + [dtype], numbers_for(2, 1), 0, out) == fits


def test_what_is_read_only_and_not_aligned_to_a_vector_will_do(kernels):
    models, values = drawn(3, 3000, ["BF16"] * 5)
    shifted = [np.frombuffer(b"12" + model.tobytes(), ml_dtypes.bfloat16)[1:] for model in models]
    assert not any(model.flags.writeable for model in shifted)
    out = np.empty(3001, ml_dtypes.bfloat16)[1:]
    assert as_stored(BLENDS["ram"], shifted, ["BF16"] * 5, numbers_for(3, 1), 0, out)
    expected = by_block(kernels, BLENDS["ram"], values, numbers_for(3, 1), 0).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(out.view(np.uint16), expected.view(np.uint16))
