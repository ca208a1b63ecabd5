"""The primitives of ``contract.py`` in Numba: short plain loops that LLVM vectorizes.

What was learned by measuring (N = 3, one core): one loop with many arrays and several counters did not
vectorize and ran at 0.2 G elements/s; one short loop for each agent over a tile that stays in the first-level
cache, with float32 counters beside the float32 sums, runs four times as fast. A count kept as float32 is exact
(at most 32 agents), and a boolean added to an integer vectorizes where an ``if`` does not.
"""

import numpy as np
from numpy.typing import NDArray

from ..formats.jit import inline, jit
from . import sums

Scalar = float | np.float32
Row = NDArray[np.float32]  # (elements,)
Rows = NDArray[np.float32]  # (agents, elements)
Counts = NDArray[np.int64]
Sums = NDArray[np.float64]
Bits = NDArray[np.uint32]
Word = np.uint64
Words = NDArray[np.uint64]

_TILE = 1024  # elements; three float32 tiles of scratch and the inputs' share of the first-level cache
_ZERO = np.float32(0)
_ONE = np.float32(1)


@inline
def _accumulate(base: Row, row: Row, epsilon: Scalar, total: Row, count: Row) -> None:
    for j in range(base.size):
        delta = row[j] - base[j]
        is_changed = abs(delta) > epsilon
        total[j] += delta if is_changed else _ZERO
        count[j] += _ONE if is_changed else _ZERO


@inline
def _accumulate_scaled(base: Row, row: Row, epsilon: Scalar, scale: Scalar, total: Row, alone: Row, count: Row) -> None:
    for j in range(base.size):
        delta = row[j] - base[j]
        is_changed = abs(delta) > epsilon
        delta = delta if is_changed else _ZERO
        total[j] += delta
        alone[j] += delta * scale
        count[j] += _ONE if is_changed else _ZERO


@inline
def _count(base: Row, row: Row, epsilon: Scalar, count: Row) -> None:
    for j in range(base.size):
        count[j] += _ONE if abs(row[j] - base[j]) > epsilon else _ZERO


@inline
def _tally(base: Row, row: Row, epsilon: Scalar, count: Row) -> tuple[int, int]:
    """Changed and unique elements of one agent, once ``count`` is complete."""
    changed, unique = np.int32(0), np.int32(0)
    for j in range(base.size):
        is_changed = abs(row[j] - base[j]) > epsilon
        changed = np.int32(changed + np.int32(is_changed))
        unique = np.int32(unique + np.int32(is_changed & (count[j] == _ONE)))
    return int(changed), int(unique)


@inline
def _contribute(base: Row, row: Row, epsilon: Scalar, scale: Scalar, count: Row, total: Row) -> None:
    for j in range(base.size):
        delta = row[j] - base[j]
        share = delta * scale if count[j] == _ONE else delta / count[j]
        total[j] += share if abs(delta) > epsilon else _ZERO


@inline
def _finish(base: Row, total: Row, alone: Row, count: Row, out: Row) -> None:
    for j in range(base.size):
        mean = total[j] / count[j]
        merged = base[j] + (alone[j] if count[j] == _ONE else mean)
        out[j] = merged if count[j] > _ZERO else base[j]


@inline
def _finish_total(base: Row, total: Row, count: Row, out: Row) -> None:
    for j in range(base.size):
        merged = base[j] + total[j]
        out[j] = merged if count[j] > _ZERO else base[j]


@inline
def _add_tallies(base: Row, agents: Rows, begin: int, epsilon: Scalar, count: Row, tally: Counts) -> None:
    for i in range(agents.shape[0]):
        changed, unique = _tally(base, agents[i, begin : begin + base.size], epsilon, count)
        tally[i, 0] += changed
        tally[i, 1] += unique


@jit("void(float32[::1], float32[:, ::1], float32, int64[:, ::1])")
def _count_changes(base: Row, agents: Rows, epsilon: Scalar, tally: Counts) -> None:
    count_tile = np.empty(_TILE, np.float32)
    for begin in range(0, base.size, _TILE):
        end = min(base.size, begin + _TILE)
        b, count = base[begin:end], count_tile[: end - begin]
        count[:] = _ZERO
        for i in range(agents.shape[0]):
            _count(b, agents[i, begin:end], epsilon, count)
        _add_tallies(b, agents, begin, epsilon, count, tally)


@inline
def _row_or_base(base: Row, agents: Rows, i: int) -> Row:
    """Agent i, or the base in its place where there is none: it changes nothing."""
    return agents[i] if i < agents.shape[0] else base


@inline
def _ram_of_four(base: Row, agents: Rows, epsilon: Scalar, scales: Row, out: Row) -> NDArray[np.int32]:
    """RAM of at most four agents with every intermediate in registers; returns their changed and unique counts."""
    x0, x1, x2, x3 = (
        agents[0],
        _row_or_base(base, agents, 1),
        _row_or_base(base, agents, 2),
        _row_or_base(base, agents, 3),
    )
    f0, f1, f2, f3 = scales[0], scales[1], scales[2], scales[3]
    changed_0 = changed_1 = changed_2 = changed_3 = np.int32(0)
    unique_0 = unique_1 = unique_2 = unique_3 = np.int32(0)
    for j in range(base.size):
        b = base[j]
        d0, d1, d2, d3 = x0[j] - b, x1[j] - b, x2[j] - b, x3[j] - b
        is_0, is_1, is_2, is_3 = abs(d0) > epsilon, abs(d1) > epsilon, abs(d2) > epsilon, abs(d3) > epsilon
        d0 = d0 if is_0 else _ZERO
        d1 = d1 if is_1 else _ZERO
        d2 = d2 if is_2 else _ZERO
        d3 = d3 if is_3 else _ZERO
        count = (
            ((_ONE if is_0 else _ZERO) + (_ONE if is_1 else _ZERO))
            + ((_ONE if is_2 else _ZERO) + (_ONE if is_3 else _ZERO))
        )  # fmt: skip
        total = ((d0 + d1) + d2) + d3
        alone = ((d0 * f0 + d1 * f1) + d2 * f2) + d3 * f3
        is_alone = count == _ONE
        merged = b + (alone if is_alone else total / count)
        out[j] = merged if count > _ZERO else b
        changed_0 = np.int32(changed_0 + np.int32(is_0))
        changed_1 = np.int32(changed_1 + np.int32(is_1))
        changed_2 = np.int32(changed_2 + np.int32(is_2))
        changed_3 = np.int32(changed_3 + np.int32(is_3))
        unique_0 = np.int32(unique_0 + np.int32(is_0 & is_alone))
        unique_1 = np.int32(unique_1 + np.int32(is_1 & is_alone))
        unique_2 = np.int32(unique_2 + np.int32(is_2 & is_alone))
        unique_3 = np.int32(unique_3 + np.int32(is_3 & is_alone))
    return np.array(
        [changed_0, unique_0, changed_1, unique_1, changed_2, unique_2, changed_3, unique_3], np.int32
    ).reshape(4, 2)


@jit("void(float32[::1], float32[:, ::1], float32, float32[::1], float32[::1], int64[:, ::1])")
def _ram(base: Row, agents: Rows, epsilon: Scalar, scales: Row, out: Row, tally: Counts) -> None:
    if agents.shape[0] <= 4:  # the usual case, at twice the speed
        four_scales = np.ones(4, np.float32)
        four_scales[: scales.size] = scales
        found = _ram_of_four(base, agents, epsilon, four_scales, out)
        for i in range(agents.shape[0]):
            tally[i, 0] += found[i, 0]
            tally[i, 1] += found[i, 1]
        return
    total_tile = np.empty(_TILE, np.float32)
    alone_tile = np.empty(_TILE, np.float32)
    count_tile = np.empty(_TILE, np.float32)
    scaled = bool(np.any(scales != _ONE))  # a factor of 1 changes no bit: the unique delta is the total itself
    for begin in range(0, base.size, _TILE):
        end = min(base.size, begin + _TILE)
        n = end - begin
        b, total, alone, count = base[begin:end], total_tile[:n], alone_tile[:n], count_tile[:n]
        total[:] = _ZERO
        count[:] = _ZERO
        if scaled:
            alone[:] = _ZERO
            for i in range(agents.shape[0]):
                _accumulate_scaled(b, agents[i, begin:end], epsilon, scales[i], total, alone, count)
        else:
            for i in range(agents.shape[0]):
                _accumulate(b, agents[i, begin:end], epsilon, total, count)
        _add_tallies(b, agents, begin, epsilon, count, tally)
        _finish(b, total, alone if scaled else total, count, out[begin:end])


@jit("void(float32[::1], float32[:, ::1], float32, float32[::1], float32[::1], int64[:, ::1])")
def _ram_divide_first(base: Row, agents: Rows, epsilon: Scalar, scales: Row, out: Row, tally: Counts) -> None:
    total_tile = np.empty(_TILE, np.float32)
    count_tile = np.empty(_TILE, np.float32)
    for begin in range(0, base.size, _TILE):
        end = min(base.size, begin + _TILE)
        n = end - begin
        b, total, count = base[begin:end], total_tile[:n], count_tile[:n]
        total[:] = _ZERO
        count[:] = _ZERO
        for i in range(agents.shape[0]):
            _count(b, agents[i, begin:end], epsilon, count)
        for i in range(agents.shape[0]):
            _contribute(b, agents[i, begin:end], epsilon, scales[i], count, total)
        _add_tallies(b, agents, begin, epsilon, count, tally)
        _finish_total(b, total, count, out[begin:end])


@jit("void(float32[::1], float32[:, ::1])")
def _subtract_base(base: Row, agents: Rows) -> None:
    base_bits, bits = base.view(np.uint32), agents.view(np.uint32)
    for i in range(agents.shape[0]):
        row, row_bits = agents[i], bits[i]
        for j in range(base.size):
            delta = row[j] - base[j]
            row[j] = _ZERO if row_bits[j] == base_bits[j] else delta


@jit("void(float32[::1], float32[::1], float32[::1])")
def _add_to_base(base: Row, merged: Row, out: Row) -> None:
    for j in range(base.size):
        total = base[j] + merged[j]
        out[j] = base[j] if merged[j] == _ZERO else total


@jit("void(float32[:, ::1], float32[::1], float32, float32, float32[::1])")
def _weighted_sum(rows: Rows, weights: Row, factor: Scalar, divisor: Scalar, out: Row) -> None:
    out[:] = _ZERO
    for i in range(rows.shape[0]):
        row, weight = rows[i], weights[i]
        for j in range(out.size):
            out[j] += row[j] * weight
    if divisor != _ONE:
        for j in range(out.size):
            out[j] /= divisor
    if factor != _ONE:
        for j in range(out.size):
            out[j] *= factor


@jit("void(float32[::1], float32[::1], float32, float32, float32[::1])")
def _combine(base: Row, row: Row, a: Scalar, b: Scalar, out: Row) -> None:
    for j in range(base.size):
        out[j] = base[j] * a + row[j] * b


@jit("void(float32[::1], float32[:, ::1], float32[::1])")
def _keep_unchanged(base: Row, agents: Rows, out: Row) -> None:
    base_bits, bits, out_bits = base.view(np.uint32), agents.view(np.uint32), out.view(np.uint32)
    for begin in range(0, base.size, _TILE):
        end = min(base.size, begin + _TILE)
        b, o = base_bits[begin:end], out_bits[begin:end]
        differs = np.zeros(end - begin, np.uint32)
        for i in range(agents.shape[0]):
            row = bits[i, begin:end]
            for j in range(b.size):
                differs[j] |= row[j] ^ b[j]
        for j in range(b.size):
            o[j] = b[j] if differs[j] == 0 else o[j]


@jit("void(float32[:, ::1], float32[::1], boolean, float32, float32[::1])")
def _sign_consensus(deltas: Rows, weights: Row, normalize: bool, factor: Scalar, out: Row) -> None:
    elected = np.empty(_TILE, np.float32)
    divisor = np.empty(_TILE, np.float32)
    for begin in range(0, out.size, _TILE):
        end = min(out.size, begin + _TILE)
        o = out[begin:end]
        elected[:] = _ZERO
        divisor[:] = _ZERO
        o[:] = _ZERO
        for i in range(deltas.shape[0]):
            row, weight = deltas[i, begin:end], weights[i]
            for j in range(o.size):
                elected[j] += row[j] * weight
        for i in range(deltas.shape[0]):
            row, weight = deltas[i, begin:end], weights[i]
            for j in range(o.size):
                weighted = row[j] * weight
                agrees = weighted > _ZERO if elected[j] >= _ZERO else weighted < _ZERO
                o[j] += weighted if agrees else _ZERO
                divisor[j] += weight if agrees else _ZERO
        for j in range(o.size):
            if normalize:
                o[j] /= _ONE if divisor[j] == _ZERO else divisor[j]
            if factor != _ONE:
                o[j] *= factor


@jit("void(float32[:, ::1], int64[:, ::1])")
def _histogram_high(rows: Rows, counts: Counts) -> None:
    bits = rows.view(np.uint32)
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            counts[i, (bits[i, j] >> np.uint32(16)) & np.uint32(0x7FFF)] += 1


@jit("void(float32[:, ::1], int64[::1], int64[:, ::1])")
def _histogram_low(rows: Rows, high: Counts, counts: Counts) -> None:
    bits = rows.view(np.uint32)
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            magnitude = bits[i, j] & np.uint32(0x7FFFFFFF)
            if (magnitude >> np.uint32(16)) == high[i]:
                counts[i, magnitude & np.uint32(0xFFFF)] += 1


@jit("void(float32[:, ::1], uint32[::1], int64[::1])")
def _count_equal(rows: Rows, thresholds: Bits, counts: Counts) -> None:
    bits = rows.view(np.uint32)
    for i in range(rows.shape[0]):
        threshold, equal = thresholds[i], 0
        for j in range(rows.shape[1]):
            equal += (bits[i, j] & np.uint32(0x7FFFFFFF)) == threshold
        counts[i] += equal


@jit("void(float32[:, ::1], uint32[::1], int64[::1])")
def _keep_largest(rows: Rows, thresholds: Bits, quota: Counts) -> None:
    bits = rows.view(np.uint32)
    for i in range(rows.shape[0]):
        left = quota[i]
        for j in range(rows.shape[1]):
            magnitude = bits[i, j] & np.uint32(0x7FFFFFFF)
            if magnitude < thresholds[i]:
                rows[i, j] = _ZERO
            elif magnitude == thresholds[i]:
                if left <= 0:
                    rows[i, j] = _ZERO
                left -= 1


@inline
def _high_product(a: Word, b: Word) -> Word:
    """The upper 64 bits of a 64 x 64 bit product."""
    mask = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    a_low, a_high, b_low, b_high = a & mask, a >> shift, b & mask, b >> shift
    middle = a_high * b_low + ((a_low * b_low) >> shift)
    other = a_low * b_high + (middle & mask)
    return a_high * b_high + (middle >> shift) + (other >> shift)


@jit("void(uint64, uint64, uint64, uint64[::1])")
def _philox(counter: Word, key_low: Word, key_high: Word, words: Words) -> None:
    """Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): four words of one counter."""
    c0, c1, c2, c3 = counter, np.uint64(0), np.uint64(0), np.uint64(0)
    multiplier_0, multiplier_1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
    for _ in range(10):
        high_0, low_0 = _high_product(multiplier_0, c0), multiplier_0 * c0
        high_1, low_1 = _high_product(multiplier_1, c2), multiplier_1 * c2
        c0, c1, c2, c3 = high_1 ^ c1 ^ key_low, low_1, high_0 ^ c3 ^ key_high, low_0
        key_low += np.uint64(0x9E3779B97F4A7C15)
        key_high += np.uint64(0xBB67AE8584CAA73B)
    words[0], words[1], words[2], words[3] = c0, c1, c2, c3


@jit("void(float32[:, ::1], float64[::1], uint64[:, ::1], int64)")
def _keep_random(rows: Rows, density: Sums, keys: Words, start: int) -> None:
    words = np.empty(4, np.uint64)
    for i in range(rows.shape[0]):
        if density[i] >= 1:
            continue
        for j in range(rows.shape[1]):
            element = start + j
            if j == 0 or element % 4 == 0:
                # numpy's generator, too, raises the counter before it draws its first four words
                _philox(np.uint64(element // 4 + 1), keys[i, 0], keys[i, 1], words)
            uniform = np.float64(words[element % 4] >> np.uint64(11)) * 2.0**-53
            if not uniform < density[i]:
                rows[i, j] = _ZERO


@jit("void(float32[:, ::1], float64[::1])")
def _scale_rows(rows: Rows, factors: Sums) -> None:
    for i in range(rows.shape[0]):
        row, factor = rows[i], np.float32(factors[i])
        if factor != _ONE:
            for j in range(row.size):
                row[j] *= factor


class CPU:
    """The Numba backend: see ``Kernels`` for what each primitive means."""

    count_changes = staticmethod(_count_changes)
    ram = staticmethod(_ram)
    ram_divide_first = staticmethod(_ram_divide_first)
    subtract_base = staticmethod(_subtract_base)
    add_to_base = staticmethod(_add_to_base)
    weighted_sum = staticmethod(_weighted_sum)
    combine = staticmethod(_combine)
    keep_unchanged = staticmethod(_keep_unchanged)
    sign_consensus = staticmethod(_sign_consensus)
    histogram_high = staticmethod(_histogram_high)
    histogram_low = staticmethod(_histogram_low)
    count_equal = staticmethod(_count_equal)
    keep_largest = staticmethod(_keep_largest)
    keep_random = staticmethod(_keep_random)
    sums_of_magnitudes = staticmethod(sums.sums_of_magnitudes)
    inner_products = staticmethod(sums.inner_products)
    scale_rows = staticmethod(_scale_rows)
    observe = staticmethod(sums.observe)
