"""Reinforced Agent Merging, and the counting of changes, in Numba: see ``Kernels``.

What was learned by measuring: up to four agents fit in the registers, and a loop that is compiled for each number of
them runs at 1.8 G elements/s for three where one for four runs at 1.3. Beyond, one short loop for each agent over a
tile that stays in the first-level cache, with float32 counters beside the float32 sums, is four times as fast as one
loop with many arrays, which does not vectorize. A count kept as float32 is exact (at most 32 agents), and a boolean
added to an integer vectorizes where an ``if`` does not.
"""

import numpy as np
from numpy.typing import NDArray

from ..formats.jit import inline, jit

Scalar = float | np.float32
Row = NDArray[np.float32]  # (elements,)
Rows = NDArray[np.float32]  # (agents, elements)
Counts = NDArray[np.int64]

_TILE = 1024  # elements; three float32 tiles of scratch and the inputs' share of the first-level cache
_ZERO, _ONE = np.float32(0), np.float32(1)
_ONES = np.ones(4, np.float32)


# --- up to four agents -----------------------------------------------------------------------------------------------


@inline
def _row(agents: Rows, i: int, n: int) -> Row:
    """Agent i of n, or any other in its place where there is none."""
    row: Row = agents[i if i < n else 0]
    return row


@inline
def _add(tally: Counts, agent: int, changed: np.int32, unique: np.int32) -> None:
    tally[agent, 0] += changed
    tally[agent, 1] += unique


@inline
def _of_four(
    base: Row, agents: Rows, n: int, blends: bool, divide_first: bool,
    epsilon: Scalar, scales: Row, out: Row, tally: Counts,
) -> None:  # fmt: skip
    """All three primitives for ``n`` agents: what is constant where this is called vanishes from the loop."""
    x0, x1, x2, x3 = agents[0], _row(agents, 1, n), _row(agents, 2, n), _row(agents, 3, n)
    f0, f1 = scales[0], scales[1] if n > 1 else _ONE
    f2, f3 = scales[2] if n > 2 else _ONE, scales[3] if n > 3 else _ONE
    changed_0 = changed_1 = changed_2 = changed_3 = np.int32(0)
    unique_0 = unique_1 = unique_2 = unique_3 = np.int32(0)
    for j in range(base.size):
        b = base[j]
        d0, d1, d2, d3 = x0[j] - b, x1[j] - b, x2[j] - b, x3[j] - b
        is_0, is_1 = abs(d0) > epsilon, (n > 1) & (abs(d1) > epsilon)
        is_2, is_3 = (n > 2) & (abs(d2) > epsilon), (n > 3) & (abs(d3) > epsilon)
        d0 = d0 if is_0 else _ZERO
        d1 = d1 if is_1 else _ZERO
        d2 = d2 if is_2 else _ZERO
        d3 = d3 if is_3 else _ZERO
        count = (
            ((_ONE if is_0 else _ZERO) + (_ONE if is_1 else _ZERO))
            + ((_ONE if is_2 else _ZERO) + (_ONE if is_3 else _ZERO))
        )  # fmt: skip
        is_alone = count == _ONE
        if blends:
            alone = ((d0 * f0 + d1 * f1) + d2 * f2) + d3 * f3
            divided = ((d0 / count + d1 / count) + d2 / count) + d3 / count
            mean = divided if divide_first else (((d0 + d1) + d2) + d3) / count
            merged = b + (alone if is_alone else mean)
            out[j] = merged if count > _ZERO else b
        changed_0 = np.int32(changed_0 + np.int32(is_0))
        changed_1 = np.int32(changed_1 + np.int32(is_1))
        changed_2 = np.int32(changed_2 + np.int32(is_2))
        changed_3 = np.int32(changed_3 + np.int32(is_3))
        unique_0 = np.int32(unique_0 + np.int32(is_0 & is_alone))
        unique_1 = np.int32(unique_1 + np.int32(is_1 & is_alone))
        unique_2 = np.int32(unique_2 + np.int32(is_2 & is_alone))
        unique_3 = np.int32(unique_3 + np.int32(is_3 & is_alone))
    _add(tally, 0, changed_0, unique_0)
    if n > 1:
        _add(tally, 1, changed_1, unique_1)
    if n > 2:
        _add(tally, 2, changed_2, unique_2)
    if n > 3:
        _add(tally, 3, changed_3, unique_3)


@inline
def _of_few(
    base: Row, agents: Rows, blends: bool, divide_first: bool, epsilon: Scalar, scales: Row, out: Row, tally: Counts
) -> None:
    """One to four agents, a loop for each number of them."""
    n = agents.shape[0]
    if n == 1:
        _of_four(base, agents, 1, blends, divide_first, epsilon, scales, out, tally)
    elif n == 2:
        _of_four(base, agents, 2, blends, divide_first, epsilon, scales, out, tally)
    elif n == 3:
        _of_four(base, agents, 3, blends, divide_first, epsilon, scales, out, tally)
    else:
        _of_four(base, agents, 4, blends, divide_first, epsilon, scales, out, tally)


# --- any number of agents --------------------------------------------------------------------------------------------


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


# --- the primitives --------------------------------------------------------------------------------------------------


@jit("void(float32[::1], float32[:, ::1], float32, int64[:, ::1])")
def count_changes(base: Row, agents: Rows, epsilon: Scalar, tally: Counts) -> None:
    """See ``Kernels``."""
    if agents.shape[0] <= 4:
        _of_few(base, agents, False, False, epsilon, _ONES, base, tally)
        return
    count_tile = np.empty(_TILE, np.float32)
    for begin in range(0, base.size, _TILE):
        end = min(base.size, begin + _TILE)
        b, count = base[begin:end], count_tile[: end - begin]
        count[:] = _ZERO
        for i in range(agents.shape[0]):
            _count(b, agents[i, begin:end], epsilon, count)
        _add_tallies(b, agents, begin, epsilon, count, tally)


@jit("void(float32[::1], float32[:, ::1], float32, float32[::1], float32[::1], int64[:, ::1])")
def ram(base: Row, agents: Rows, epsilon: Scalar, scales: Row, out: Row, tally: Counts) -> None:
    """See ``Kernels``."""
    if agents.shape[0] <= 4:
        _of_few(base, agents, True, False, epsilon, scales, out, tally)
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
def ram_divide_first(base: Row, agents: Rows, epsilon: Scalar, scales: Row, out: Row, tally: Counts) -> None:
    """See ``Kernels``."""
    if agents.shape[0] <= 4:
        _of_few(base, agents, True, True, epsilon, scales, out, tally)
        return
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
