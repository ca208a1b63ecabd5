"""Selection by magnitude in Numba: see ``Kernels``. Magnitudes are compared as the bits of a float32."""

import numpy as np
from numpy.typing import NDArray

from ..formats.jit import inline, jit

Rows = NDArray[np.float32]  # (agents, elements)
Counts = NDArray[np.int64]
Bits = NDArray[np.uint32]

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_HALF = np.uint32(16)


@inline
def _upper(bits: np.uint32) -> np.uint32:
    return np.uint32(np.uint32(bits & _MAGNITUDE) >> _HALF)


@inline
def _count_four(a: np.uint32, b: np.uint32, c: np.uint32, d: np.uint32, counts: Counts) -> None:
    """Of equal bins the last one stores them all, so none of the four waits for another: most deltas are zero, and a
    bin that is counted up again at once waits for its own store."""
    in_a, in_b = counts[a] + 1, counts[b] + (1 + int(a == b))
    in_c = counts[c] + (1 + int(a == c) + int(b == c))
    in_d = counts[d] + (1 + int(a == d) + int(b == d) + int(c == d))
    counts[a] = in_a
    counts[b] = in_b
    counts[c] = in_c
    counts[d] = in_d


@jit("void(float32[:, ::1], int64[:, ::1])")
def histogram_high(rows: Rows, counts: Counts) -> None:
    """See ``Kernels``."""
    for i in range(rows.shape[0]):
        bits, found = rows[i].view(np.uint32), counts[i]
        fours = bits.size - bits.size % 4
        for j in range(0, fours, 4):
            _count_four(_upper(bits[j]), _upper(bits[j + 1]), _upper(bits[j + 2]), _upper(bits[j + 3]), found)
        for j in range(fours, bits.size):
            found[_upper(bits[j])] += 1


@inline
def _equal(bits: Bits, threshold: np.uint32) -> int:
    equal = 0
    for j in range(bits.size):
        equal += np.uint32(bits[j] & _MAGNITUDE) == threshold
    return equal


@jit("void(float32[:, ::1], int64[::1], int64[:, ::1])")
def histogram_low(rows: Rows, high: Counts, counts: Counts) -> None:
    """See ``Kernels``."""
    for i in range(rows.shape[0]):
        bits, found = rows[i].view(np.uint32), counts[i]
        first, inside = np.uint32(np.uint32(high[i]) << _HALF), np.uint32(0x10000)
        if first == 0:  # most deltas are zero, and then all in this bin: counted apart, the branch is seldom taken
            found[0] += _equal(bits, first)
            first, inside = np.uint32(1), np.uint32(0xFFFF)
        for j in range(bits.size):
            magnitude = np.uint32(bits[j] & _MAGNITUDE)
            if np.uint32(magnitude - first) < inside:
                found[magnitude & np.uint32(0xFFFF)] += 1


@jit("void(float32[:, ::1], uint32[::1], int64[::1])")
def count_equal(rows: Rows, thresholds: Bits, counts: Counts) -> None:
    """See ``Kernels``."""
    for i in range(rows.shape[0]):
        counts[i] += _equal(rows[i].view(np.uint32), thresholds[i])


@inline
def _end_of_quota(bits: Bits, threshold: np.uint32, quota: int) -> int:
    """Behind the last of the first ``quota`` elements that equal the threshold; there are more of them."""
    place, left = 0, max(quota, 0)
    while left > 0:
        left -= np.uint32(bits[place] & _MAGNITUDE) == threshold
        place += 1
    return place


@inline
def _zero_below(bits: Bits, threshold: np.uint32) -> None:
    for j in range(bits.size):
        own = bits[j]
        bits[j] = np.uint32(0) if np.uint32(own & _MAGNITUDE) < threshold else own


@jit("void(float32[:, ::1], uint32[::1], int64[::1])")
def keep_largest_of(rows: Rows, thresholds: Bits, left: Counts) -> None:
    """``keep_largest`` of a part of the rows: takes what it uses off the quota ``left``."""
    for i in range(rows.shape[0]):
        bits, threshold = rows[i].view(np.uint32), thresholds[i]
        equal = _equal(bits, threshold)
        if equal > left[i]:
            end = _end_of_quota(bits, threshold, left[i])
            _zero_below(bits[end:], np.uint32(threshold + np.uint32(1)))
            bits = bits[:end]
        _zero_below(bits, threshold)
        left[i] -= min(equal, left[i])


@jit("void(float32[:, ::1], uint32[::1], int64[::1])")
def keep_largest(rows: Rows, thresholds: Bits, quota: Counts) -> None:
    """See ``Kernels``."""
    keep_largest_of(rows, thresholds, quota.copy())
