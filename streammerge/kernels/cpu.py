"""The primitives of ``contract.py`` in Numba: short plain loops that LLVM vectorizes. Here are those that add up; RAM,
selection by magnitude, random masks and float64 sums have files of their own.
"""

import numpy as np
from numpy.typing import NDArray

from ..formats.jit import inline, jit
from . import masks, selection, sums
from .ram import count_changes, ram, ram_divide_first

Scalar = float | np.float32
Row = NDArray[np.float32]  # (elements,)
Rows = NDArray[np.float32]  # (agents, elements)
Sums = NDArray[np.float64]
Bits = NDArray[np.uint32]

_TILE = 1024  # elements; scratch and the inputs' share of the first-level cache
_ZERO, _ONE = np.float32(0), np.float32(1)


@jit("void(float32[::1], float32[:, ::1])")
def subtract_base(base: Row, agents: Rows) -> None:
    """See ``Kernels``."""
    base_bits, bits = base.view(np.uint32), agents.view(np.uint32)
    for i in range(agents.shape[0]):
        row, row_bits = agents[i], bits[i]
        for j in range(base.size):
            delta = row[j] - base[j]
            row[j] = _ZERO if row_bits[j] == base_bits[j] else delta


@jit("void(float32[::1], float32[::1], float32[::1])")
def add_to_base(base: Row, merged: Row, out: Row) -> None:
    """See ``Kernels``."""
    if out is not merged:
        out[:] = merged
    for j in range(base.size):  # two arrays: with a third that is one of them the loop would not run as vectors
        own, delta = base[j], out[j]
        total = own + delta
        out[j] = own if delta == _ZERO else total


@jit("void(float32[:, ::1], float32[::1], float32, float32, float32[::1])")
def weighted_sum(rows: Rows, weights: Row, factor: Scalar, divisor: Scalar, out: Row) -> None:
    """See ``Kernels``."""
    for j in range(out.size):
        out[j] = _ZERO + rows[0, j] * weights[0]  # the 0 makes 0 of a -0
    for i in range(1, rows.shape[0]):
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
def combine(base: Row, row: Row, a: Scalar, b: Scalar, out: Row) -> None:
    """See ``Kernels``."""
    for j in range(base.size):
        out[j] = base[j] * a + row[j] * b


@inline
def _mark_differences(base: Bits, row: Bits, differs: Bits) -> None:
    for j in range(base.size):
        differs[j] |= np.uint32(row[j] ^ base[j])


@inline
def _put_back(base: Bits, differs: Bits, out: Bits) -> None:
    for j in range(base.size):
        theirs, ours = base[j], out[j]  # loaded on both sides of the select, or the loop does not vectorize
        out[j] = theirs if differs[j] == 0 else ours


@jit("void(float32[::1], float32[:, ::1], float32[::1])")
def keep_unchanged(base: Row, agents: Rows, out: Row) -> None:
    """See ``Kernels``."""
    base_bits, bits, out_bits = base.view(np.uint32), agents.view(np.uint32), out.view(np.uint32)
    differs_tile = np.empty(_TILE, np.uint32)
    for begin in range(0, base.size, _TILE):
        end = min(base.size, begin + _TILE)
        b, differs = base_bits[begin:end], differs_tile[: end - begin]
        differs[:] = 0
        for i in range(agents.shape[0]):
            _mark_differences(b, bits[i, begin:end], differs)
        _put_back(b, differs, out_bits[begin:end])


@jit("void(float32[:, ::1], float32[::1], boolean, float32, float32[::1])")
def sign_consensus(deltas: Rows, weights: Row, normalize: bool, factor: Scalar, out: Row) -> None:
    """See ``Kernels``."""
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


@jit("void(float32[:, ::1], float64[::1])")
def scale_rows(rows: Rows, factors: Sums) -> None:
    """See ``Kernels``."""
    for i in range(rows.shape[0]):
        row, factor = rows[i], np.float32(factors[i])
        if factor != _ONE:
            for j in range(row.size):
                row[j] *= factor


class CPU:
    """The Numba backend: see ``Kernels`` for what each primitive means."""

    count_changes = staticmethod(count_changes)
    ram = staticmethod(ram)
    ram_divide_first = staticmethod(ram_divide_first)
    subtract_base = staticmethod(subtract_base)
    add_to_base = staticmethod(add_to_base)
    weighted_sum = staticmethod(weighted_sum)
    combine = staticmethod(combine)
    keep_unchanged = staticmethod(keep_unchanged)
    sign_consensus = staticmethod(sign_consensus)
    histogram_high = staticmethod(selection.histogram_high)
    histogram_low = staticmethod(selection.histogram_low)
    count_equal = staticmethod(selection.count_equal)
    keep_largest = staticmethod(selection.keep_largest)
    keep_random = staticmethod(masks.keep_random)
    sums_of_magnitudes = staticmethod(sums.sums_of_magnitudes)
    inner_products = staticmethod(sums.inner_products)
    scale_rows = staticmethod(scale_rows)
    observe = staticmethod(sums.observe)
