"""Every primitive of streammerge.kernels.contract against plain numpy, to the bit.

Lengths straddle the tiles and vector lanes of a backend; values hold subnormals, both zeros and equal magnitudes.
"""

from itertools import combinations, product

import numpy as np
import pytest

from streammerge.kernels.load import load_cpu
from tests import oracle
from tests.checks import check_same_bits, check_same_numbers
from tests.kernels_on_torch import OnTorch

LENGTHS = [1, 7, 2047, 2049, 65_536]
AGENTS = [1, 2, 3, 4, 8, 32]
SIZES = list(product(AGENTS, LENGTHS))
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-40, -1e-39, 1.1754944e-38, 1e-5, -1e-5, 0.5, -0.5, 3.0, 1e30, -1e30]
NAN, INF = np.float32(np.nan), np.float32(np.inf)
F32 = np.float32

sizes = pytest.mark.parametrize(("agents", "length"), SIZES)


@pytest.fixture(scope="module", params=["numba", "torch on cpu", pytest.param("torch on cuda", marks=pytest.mark.cuda)])
def kernels(request):
    """A backend, on numpy arrays."""
    return load_cpu() if request.param == "numba" else OnTorch(request.param.removeprefix("torch on "))


@pytest.fixture(scope="module")
def cpu():
    """The backend that alone meets what is not finite."""
    return load_cpu()


def numbers(seed, *shape):
    """Weights of the usual size with special values strewn among them."""
    rng = np.random.default_rng(seed)
    usual = (rng.standard_normal(shape) * 0.05).astype(F32)
    return np.where(rng.random(shape) < 0.1, rng.choice(np.array(SPECIAL, F32), shape), usual)


def models(seed, agents, length):
    """A base, and agents that are its bits but where they moved: by much, by next to nothing, or together."""
    rng = np.random.default_rng(seed)
    base = numbers(seed + 1, length)
    moves = rng.choice(np.array([1e-3, -1e-3, 2.5e-4, 1e-5, -1e-6, 1e-44], F32), (agents, length))
    moves[:, rng.random(length) < 0.1] = F32(7e-4)
    moved = np.where(rng.random((agents, length)) < 1.5 / (agents + 1), base + moves, base)
    return base, np.ascontiguousarray(moved)


def tally(agents):
    return np.zeros((agents, 2), np.int64)


def in_agent_order(rows):
    total = np.zeros_like(rows[0])
    for row in rows:
        total = total + row
    return total


# --- Reinforced Agent Merging ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 1e-3])
@sizes
def test_count_changes_adds_changed_and_unique(kernels, agents, length, epsilon):
    base, rows = models(agents + length, agents, length)
    found = tally(agents) + 5
    kernels.count_changes(base, rows, epsilon, found)
    np.testing.assert_array_equal(found - 5, oracle.count_changes(base, rows, epsilon))


@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
@sizes
def test_ram(kernels, agents, length, epsilon):
    base, rows = models(agents + length, agents, length)
    scales = np.linspace(1, 1.7, agents).astype(F32)
    out, found = np.empty_like(base), tally(agents) + 5
    kernels.ram(base, rows, epsilon, scales, out, found)
    check_same_bits(out, oracle.ram(base, rows, epsilon, scales))
    np.testing.assert_array_equal(found - 5, oracle.count_changes(base, rows, epsilon))


@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
@sizes
def test_ram_divide_first(kernels, agents, length, epsilon):
    base, rows = models(agents + length, agents, length)
    scales = np.linspace(1, 1.7, agents).astype(F32)
    out, found = np.empty_like(base), tally(agents) + 5
    kernels.ram_divide_first(base, rows, epsilon, scales, out, found)
    check_same_bits(out, oracle.ram_divide_first(base, rows, epsilon, scales))
    np.testing.assert_array_equal(found - 5, oracle.count_changes(base, rows, epsilon))


@pytest.mark.parametrize("primitive", ["ram", "ram_divide_first"])
def test_epsilon_is_a_float32_and_a_change_exceeds_it(kernels, primitive):
    epsilon = F32(1e-5)  # a little less than the double 1e-5
    rows = np.array([[epsilon, np.nextafter(epsilon, F32(1)), -epsilon, -np.nextafter(epsilon, F32(1))]])
    base, out, found = np.zeros(4, F32), np.empty(4, F32), tally(1)
    getattr(kernels, primitive)(base, rows, 1e-5, np.ones(1, F32), out, found)
    check_same_bits(out, np.array([0, rows[0, 1], 0, rows[0, 3]], F32))
    assert found.tolist() == [[2, 2]]


@pytest.mark.parametrize("primitive", ["ram", "ram_divide_first"])
def test_ram_keeps_the_bits_of_an_unchanged_base(cpu, primitive):
    base = np.array([0x80000000, 0x7FC12345, 0xFFC00001, 0x7F800001, 0x7F800000, 0x00000001], np.uint32).view(F32)
    rows = np.ascontiguousarray(np.broadcast_to(base, (3, base.size)))
    out = np.empty_like(base)
    getattr(cpu, primitive)(base, rows, 1e-5, np.full(3, 2, F32), out, tally(3))
    check_same_bits(out, base)


@pytest.mark.parametrize("primitive", ["ram", "ram_divide_first"])
def test_ram_counts_an_infinite_change_but_not_a_nan(cpu, primitive):
    base = np.zeros(3, F32)
    rows = np.array([[INF, NAN, 1], [0, 0, NAN]], F32)
    out, found = np.empty(3, F32), tally(2)
    getattr(cpu, primitive)(base, rows, 1e-5, np.ones(2, F32), out, found)
    check_same_numbers(out, np.array([INF, 0, 1], F32))
    assert found.tolist() == [[2, 2], [0, 0]]


# --- sums -----------------------------------------------------------------------------------------------------------


@sizes
def test_subtract_base(kernels, agents, length):
    base, rows = models(agents + length, agents, length)
    wanted = rows - base
    kernels.subtract_base(base, rows)
    check_same_bits(rows, wanted)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_add_to_base(kernels, length, in_place):
    base, merged = numbers(1, length), numbers(2, length)
    wanted = np.where(merged == 0, base, base + merged)
    out = merged if in_place else np.empty_like(base)
    kernels.add_to_base(base, merged, out)
    check_same_bits(out, wanted)


@pytest.mark.parametrize(("factor", "divisor"), [(1.0, 1.0), (0.7, 1.0), (1.0, 3.3), (-0.3, 1.7), (0.0, 1.0)])
@sizes
def test_weighted_sum(kernels, agents, length, factor, divisor):
    rows = numbers(agents + length, agents, length)
    weights = np.random.default_rng(length).uniform(-2, 2, agents).astype(F32)
    out = np.empty(length, F32)
    kernels.weighted_sum(rows, weights, factor, divisor, out)
    total = in_agent_order([row * weight for row, weight in zip(rows, weights)])
    check_same_bits(out, total / F32(divisor) * F32(factor))


@pytest.mark.parametrize("length", LENGTHS)
def test_combine(kernels, length):
    base, row = numbers(1, length), numbers(2, length)
    out = np.empty(length, F32)
    kernels.combine(base, row, 0.3, -1.7, out)
    check_same_bits(out, base * F32(0.3) + row * F32(-1.7))


@sizes
def test_keep_unchanged(kernels, agents, length):
    base, rows = models(agents + length, agents, length)
    out = numbers(9, length)
    wanted = np.where((rows == base).all(axis=0), base, out)
    kernels.keep_unchanged(base, rows, out)
    check_same_bits(out, wanted)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("factor", [1.0, 0.7])
@sizes
def test_sign_consensus(kernels, agents, length, normalize, factor):
    deltas = numbers(agents + length, agents, length)
    weights = np.random.default_rng(length).choice(np.array([1, 1, 0.5, 0, -1], F32), agents)
    out = np.empty(length, F32)
    kernels.sign_consensus(deltas, weights, normalize, factor, out)
    check_same_numbers(out, oracle.sign_consensus(deltas, weights, normalize, factor))


def test_sign_consensus_on_a_draw_elects_plus(kernels):
    deltas = np.array([[2, -2, 0], [-2, 2, -0.0]], F32)
    out = np.empty(3, F32)
    kernels.sign_consensus(deltas, np.ones(2, F32), True, 1.0, out)
    check_same_numbers(out, np.array([2, 2, 0], F32))


@pytest.mark.parametrize("primitive", ["weighted_sum", "combine", "add_to_base", "subtract_base"])
def test_sums_follow_ieee_754_where_values_are_not_finite(cpu, primitive):
    x = np.array([NAN, INF, -INF, INF, INF, 3e38, -3e38], F32)
    y = np.array([1, 1, 1, INF, -INF, 3e38, -3e38], F32)
    rows, out = np.stack([x, y]), np.empty(7, F32)
    if primitive == "weighted_sum":
        cpu.weighted_sum(rows, np.ones(2, F32), 1.0, 1.0, out)
    elif primitive == "combine":
        cpu.combine(x, y, 1.0, 1.0, out)
    elif primitive == "add_to_base":
        cpu.add_to_base(x, y, out)
    else:
        negative = np.ascontiguousarray(-y)
        cpu.subtract_base(negative, rows[:1])
        assert rows[0][4] == 0  # equal infinities are no change
        out = rows[0]
        out[4] = NAN
    check_same_numbers(out, np.array([NAN, INF, -INF, INF, NAN, INF, -INF], F32))


@pytest.mark.parametrize("length", LENGTHS)
class TestNoOperationIsFused:
    """a * b + c in one rounding would be 2^-24 for these values; with each operation rounded it is 0."""

    A = F32(1 + 2.0**-12)
    C = F32(-(1 + 2.0**-11))

    def test_these_values_tell(self, length):
        assert float(self.A) * float(self.A) + float(self.C) == 2.0**-24
        assert self.A * self.A + self.C == 0

    @pytest.mark.parametrize("product_first", [False, True])
    def test_weighted_sum(self, kernels, length, product_first):
        rows = np.array([[self.C], [self.A]]).repeat(length, axis=1)
        weights = np.array([1, self.A], F32)
        if product_first:
            rows, weights = np.ascontiguousarray(rows[::-1]), np.ascontiguousarray(weights[::-1])
        out = np.empty(length, F32)
        kernels.weighted_sum(rows, weights, 1.0, 1.0, out)
        assert not out.any()

    @pytest.mark.parametrize("product_first", [False, True])
    def test_combine(self, kernels, length, product_first):
        a, c, out = np.full(length, self.A), np.full(length, self.C), np.empty(length, F32)
        if product_first:
            kernels.combine(a, c, self.A, 1.0, out)
        else:
            kernels.combine(c, a, 1.0, self.A, out)
        assert not out.any()

    @pytest.mark.parametrize("primitive", ["ram", "ram_divide_first"])
    def test_unique_delta(self, kernels, length, primitive):
        base = np.full(length, self.C)
        rows = np.stack([base, base + self.A, base])
        assert (rows[1] - base == self.A).all()
        out = np.empty(length, F32)
        getattr(kernels, primitive)(base, rows, 1e-5, np.array([1, self.A, 1], F32), out, tally(3))
        assert not out.any()

    def test_sign_consensus(self, kernels, length):
        """The sum of the weighted deltas is exactly 0, so plus is elected; fused, either sign could be."""
        deltas = np.array([[self.C], [self.A]]).repeat(length, axis=1)
        for sign in (F32(1), F32(-1)):
            out = np.empty(length, F32)
            kernels.sign_consensus(deltas * sign, np.array([1, self.A], F32), False, 1.0, out)
            np.testing.assert_array_equal(out, -self.C)


# --- selection ------------------------------------------------------------------------------------------------------


def magnitude_bits(rows):
    return rows.view(np.uint32) & np.uint32(0x7FFFFFFF)


@sizes
def test_histogram_high(kernels, agents, length):
    rows = numbers(agents + length, agents, length)
    counts = np.ones((agents, 1 << 15), np.int64)
    kernels.histogram_high(rows, counts)
    for row, found in zip(magnitude_bits(rows), counts):
        np.testing.assert_array_equal(found - 1, np.bincount(row >> 16, minlength=1 << 15))


@sizes
def test_histogram_low(kernels, agents, length):
    rows = numbers(agents + length, agents, length)
    high = (magnitude_bits(rows)[:, length // 2] >> 16).astype(np.int64)
    counts = np.ones((agents, 1 << 16), np.int64)
    kernels.histogram_low(rows, high, counts)
    for row, bin_, found in zip(magnitude_bits(rows), high, counts):
        np.testing.assert_array_equal(found - 1, np.bincount(row[row >> 16 == bin_] & 0xFFFF, minlength=1 << 16))


def test_histograms_take_nan_and_infinity_as_the_largest_magnitudes(cpu):
    rows = np.array([[INF, -INF, NAN, 1]], F32)
    high, low = np.zeros((1, 1 << 15), np.int64), np.zeros((1, 1 << 16), np.int64)
    cpu.histogram_high(rows, high)
    cpu.histogram_low(rows, np.array([0x7F80]), low)
    assert {int(b): int(high[0, b]) for b in np.flatnonzero(high)} == {0x3F80: 1, 0x7F80: 2, 0x7FC0: 1}
    assert {int(b): int(low[0, b]) for b in np.flatnonzero(low)} == {0: 2}


@sizes
def test_count_equal(kernels, agents, length):
    rows = numbers(agents + length, agents, length)
    thresholds = np.full(agents, F32(0.5)).view(np.uint32)
    thresholds[-1] = 0
    counts = np.full(agents, 5)
    kernels.count_equal(rows, thresholds, counts)
    np.testing.assert_array_equal(counts - 5, (magnitude_bits(rows) == thresholds[:, None]).sum(axis=1))


@pytest.mark.parametrize("quota", [0, 1, 3, 10**9])
@sizes
def test_keep_largest(kernels, agents, length, quota):
    rows = numbers(agents + length, agents, length)
    limits = np.resize(np.array([0.5, 0.05, 0, 1e-40, 1e-5], F32), agents)
    wanted = rows.copy()
    for row, limit in zip(wanted, limits):
        size = np.abs(row)
        row[size < limit] = 0
        row[np.flatnonzero(size == limit)[quota:]] = 0
    kernels.keep_largest(rows, limits.view(np.uint32), np.full(agents, quota))
    check_same_bits(rows, wanted)


def test_keep_largest_keeps_nothing_below_a_threshold_beyond_all_magnitudes(kernels, cpu):
    for backend, values in ((kernels, [3.4e38, -1, 0]), (cpu, [NAN, INF, -1])):
        rows = np.array([values], F32)
        backend.keep_largest(rows, np.array([0xFFFFFFFF], np.uint32), np.array([4]))
        check_same_bits(rows, np.zeros((1, 3), F32))


# --- random masks ---------------------------------------------------------------------------------------------------


def uniform(key, start, length):
    """Numbers of numpy's own generator: counter c begins with word 4 c."""
    key = int(key[0]) | int(key[1]) << 64
    words = np.random.Philox(key=key, counter=start // 4).random_raw(start % 4 + length)[start % 4 :]
    return (words >> np.uint64(11)) * 2.0**-53


@pytest.mark.parametrize("start", [0, 1, 5, 65_536, 3 * 65_536, 2**34 + 3])
@pytest.mark.parametrize(("agents", "length"), [*product([1, 3], LENGTHS)])
def test_keep_random_draws_the_words_of_numpys_philox(kernels, agents, length, start):
    rng = np.random.default_rng(agents + length)
    keys = rng.integers(0, 2**64, (agents, 2), np.uint64)
    density = rng.uniform(0, 1, agents)
    rows = np.ones((agents, length), F32)
    kernels.keep_random(rows, density, keys, start)
    for row, key, share in zip(rows, keys, density):
        check_same_bits(row, (uniform(key, start, length) < share).astype(F32))


def test_keep_random_compares_53_bits(kernels):
    keys = np.array([[7, 9]], np.uint64)
    u = uniform(keys[0], 0, 1)[0]
    for density, kept in ((u, 0), (np.nextafter(u, 1), 1)):
        rows = np.ones((1, 1), F32)
        kernels.keep_random(rows, np.array([density]), keys, 0)
        assert rows[0, 0] == kept


def test_keep_random_keeps_all_at_density_1_and_nothing_at_0(kernels):
    rows = np.stack([numbers(1, 1000), numbers(1, 1000)])
    kept = rows[0].copy()
    kernels.keep_random(rows, np.array([1.0, 0.0]), np.zeros((2, 2), np.uint64), 0)
    check_same_bits(rows[0], kept)
    check_same_bits(rows[1], np.zeros(1000, F32))


# --- statistics -----------------------------------------------------------------------------------------------------


def folded(values):
    """Tiles of 1,024, the last one filled up with zeros, folded in half until one number is left, then added up."""
    tiles = np.append(values, np.zeros(-values.size % 1024)).reshape(-1, 1024)
    while tiles.shape[1] > 1:
        half = tiles.shape[1] // 2
        tiles = tiles[:, :half] + tiles[:, half:]
    return float(np.add.accumulate(tiles[:, 0])[-1])


@sizes
def test_sums_of_magnitudes(kernels, agents, length):
    rows = numbers(agents + length, agents, length)
    sums = np.zeros(agents)
    kernels.sums_of_magnitudes(rows, sums)
    assert sums.tolist() == [folded(np.abs(row).astype(np.float64)) for row in rows]


@pytest.mark.parametrize("length", LENGTHS)
def test_inner_products(kernels, length):
    x, y = numbers(1, length), numbers(2, length)
    sums = np.zeros(3)
    kernels.inner_products(x, y, sums)
    wide = x.astype(np.float64), y.astype(np.float64)
    assert sums.tolist() == [folded(a * b) for a, b in ((wide[0], wide[0]), wide, (wide[1], wide[1]))]


@sizes
def test_scale_rows(kernels, agents, length):
    rows = numbers(agents + length, agents, length)
    factors = np.resize([1.0, 2.4847, 1 + 1e-12, 0.0, -3.0], agents)
    wanted = rows * factors.astype(F32)[:, None]
    kernels.scale_rows(rows, factors)
    check_same_bits(rows, wanted)


def repeats(row):
    """How many of the first 32 values of each run of 8,192 are there before, zeros left out."""
    samples = [row[begin : begin + 32] for begin in range(0, row.size - 31, 8192)]
    return sum(len(sample[sample != 0]) - len(set(sample[sample != 0].tolist())) for sample in samples)


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize(("agents", "length"), [*product([1, 2, 3, 8], [1, 31, 32, 2049, 8223, 8224]), (5, 65_536)])
def test_observe(kernels, agents, length, epsilon):
    base, rows = models(agents + length, agents, length)
    pairs = list(combinations(range(agents), 2))
    whole, by_count, by_agent, by_pair = (
        np.zeros(shape) for shape in (3, agents + 1, (agents, 6), (len(pairs), 3))
    )  # fmt: skip
    kernels.observe(base, rows, epsilon, whole, by_count, by_agent, by_pair)
    deltas = rows - base
    wide, changed = deltas.astype(np.float64), np.abs(deltas) > F32(epsilon)
    count = changed.sum(axis=0)
    samples = len(range(0, length - 31, 8192))
    assert whole.tolist() == [folded(np.square(base, dtype=np.float64)), 32 * samples, repeats(base)]
    assert by_count.tolist() == [(count == k).sum() for k in range(agents + 1)]
    for i, found in enumerate(by_agent):
        updated, unique = (np.abs(deltas[i]) > F32(1e-5)).sum(), (changed[i] & (count == 1)).sum()
        largest, square = np.abs(wide[i]).max(), folded(wide[i] * wide[i])
        assert found.tolist() == [changed[i].sum(), unique, updated, square, largest, repeats(rows[i])]
    for (i, k), found in zip(pairs, by_pair):
        both = changed[i] & changed[k]
        same = both & (np.sign(deltas[i]) == np.sign(deltas[k]))
        assert found.tolist() == [both.sum(), same.sum(), folded(wide[i] * wide[k])]
