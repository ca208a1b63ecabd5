"""The primitives on values as they are stored: noted down as a method calls them, carried out tile by tile.

A block of several models in float32 is larger than the caches, and each call of a primitive takes the interpreter's lock
anew: three agents in bfloat16 came to 0.4 G elements/s in one thread, and in two. Here one call takes each tile of the
block from its bytes through all primitives to bytes while it is in the first-level cache. The primitives are those of
``cpu``, each element goes through the same operations, so the bits are the same.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ..formats import codecs
from ..formats.dtypes import DTYPES
from ..formats.jit import inline, jit
from . import cpu, masks, ram, selection
from .contract import Array, Block, Scalar

Row = NDArray[np.float32]
Rows = NDArray[np.float32]
Counts = NDArray[np.int64]
Words = NDArray[np.uint64]

_TILE = 2048  # elements: with three agents base, agents and result in float32 are 40 KiB


class _Step(IntEnum):
    COUNT_CHANGES = 0
    RAM = 1
    RAM_DIVIDE_FIRST = 2
    SUBTRACT_BASE = 3
    ADD_TO_BASE = 4
    WEIGHTED_SUM = 5
    COMBINE = 6
    KEEP_UNCHANGED = 7
    SIGN_CONSENSUS = 8
    HISTOGRAM_HIGH = 9
    HISTOGRAM_LOW = 10
    COUNT_EQUAL = 11
    KEEP_LARGEST = 12
    KEEP_RANDOM = 13
    SCALE_ROWS = 14


@inline
def _arithmetic(step: int, one: Scalar, two: Scalar, vector: Row, base: Row, rows: Rows, out: Row) -> None:
    if step == _Step.SUBTRACT_BASE:
        cpu.subtract_base(base, rows)
    elif step == _Step.ADD_TO_BASE:
        cpu.add_to_base(base, out, out)
    elif step == _Step.WEIGHTED_SUM:
        cpu.weighted_sum(rows, vector, one, two, out)
    elif step == _Step.COMBINE:
        cpu.combine(base, rows[0], one, two, out)
    elif step == _Step.KEEP_UNCHANGED:
        cpu.keep_unchanged(base, rows, out)
    elif step == _Step.SIGN_CONSENSUS:
        cpu.sign_consensus(rows, vector, one != 0, two, out)


@jit(
    "boolean(int64, uint64[:, ::1], int64[::1], float32[:, ::1], float64[:, ::1], uint32[::1], int64[::1], "
    "uint64[:, ::1], int64, int64[:, ::1], int64[:, ::1])"
)
def _run(
    elements: int, places: Words, steps: Counts, scalars: Rows, vectors: NDArray[np.float64],
    thresholds: NDArray[np.uint32], numbers: Counts, keys: Words, start: int, counts: Counts, tally: Counts,
) -> bool:  # fmt: skip
    """Whether all was finite. ``places``: address, type and bytes of an element of base, agents and result."""
    agents, finite, narrow = len(places) - 2, True, vectors.astype(np.float32)
    scratch = np.empty((agents + 2) * _TILE, np.float32)
    for begin in range(0, elements, _TILE):
        n = min(_TILE, elements - begin)
        tile = scratch[: (agents + 2) * n].reshape(agents + 2, n)
        base, rows, out = tile[0], tile[1:-1], tile[-1]
        for i in range(agents + 1):
            address = places[i, 0] + np.uint64(begin) * places[i, 2]
            finite &= not codecs.decode_at(places[i, 1], address, tile[i].view(np.uint32))
        for k in range(steps.size):
            step, one, two, vector = steps[k], scalars[k, 0], scalars[k, 1], narrow[k]
            _arithmetic(step, one, two, vector, base, rows, out)
            if step == _Step.RAM:
                ram.ram(base, rows, one, vector, out, tally)
            elif step == _Step.RAM_DIVIDE_FIRST:
                ram.ram_divide_first(base, rows, one, vector, out, tally)
            elif step == _Step.COUNT_CHANGES:
                ram.count_changes(base, rows, one, tally)
            elif step == _Step.HISTOGRAM_HIGH:
                selection.histogram_high(rows, counts)
            elif step == _Step.HISTOGRAM_LOW:
                selection.histogram_low(rows, numbers, counts)
            elif step == _Step.COUNT_EQUAL:
                selection.count_equal(rows, thresholds, counts[0])
            elif step == _Step.KEEP_LARGEST:
                selection.keep_largest_of(rows, thresholds, numbers)
            elif step == _Step.KEEP_RANDOM:
                masks.keep_random(rows, vectors[k], keys, start + begin)
            elif step == _Step.SCALE_ROWS:
                cpu.scale_rows(rows, vectors[k])
        address = places[-1, 0] + np.uint64(begin) * places[-1, 2]
        if places[-1, 0]:
            finite &= not codecs.encode_at(places[-1, 1], out.view(np.uint32), address)
    return finite


class Stored:
    """``Kernels`` for a block as stored: notes what is called, always with the block's own base, agents and result, and
    does it all in ``run``. Not here: sums in float64, and what observes."""

    def __init__(self, block: Block, dtypes: Sequence[str]) -> None:
        """``dtypes`` of base, agents and result. The block's arrays are bytes; an empty ``out`` is not filled."""
        agents = len(block.agents)
        self._block, self._dtypes = block, dtypes
        self._steps: list[_Step] = []
        self._scalars: list[tuple[Scalar, Scalar]] = []
        self._vectors: list[Array] = []
        self._nothing = np.zeros(agents)
        self._thresholds, self._numbers = np.zeros(agents, np.uint32), np.zeros(agents, np.int64)
        self._keys, self._start = np.zeros((agents, 2), np.uint64), 0
        self._counts, self._tally = np.zeros((1, 1), np.int64), block.tally

    def run(self) -> bool:
        """Carry it out; whether inputs and result were finite."""
        block = self._block
        places = np.array([_place(*of) for of in zip((block.base, *block.agents, block.out), self._dtypes)], np.uint64)
        steps, scalars = np.array(self._steps, np.int64), np.array(self._scalars, np.float32)
        vectors, elements = np.array(self._vectors, np.float64), block.base.size // int(places[0, 2])
        return _run(
            elements, places, steps, scalars, vectors, self._thresholds, self._numbers, self._keys, self._start,
            self._counts, self._tally,
        )  # fmt: skip

    def _note(self, step: _Step, one: Scalar = 0.0, two: Scalar = 0.0, vector: Array | None = None) -> None:
        self._steps.append(step)
        self._scalars.append((one, two))
        self._vectors.append(self._nothing if vector is None else vector)

    def count_changes(self, base: Array, agents: Array, epsilon: Scalar, tally: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.COUNT_CHANGES, epsilon)
        self._tally = tally

    def ram(self, base: Array, agents: Array, epsilon: Scalar, scales: Array, out: Array, tally: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.RAM, epsilon, vector=scales)

    def ram_divide_first(
        self, base: Array, agents: Array, epsilon: Scalar, scales: Array, out: Array, tally: Array
    ) -> None:
        """See ``Kernels``."""
        self._note(_Step.RAM_DIVIDE_FIRST, epsilon, vector=scales)

    def subtract_base(self, base: Array, agents: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.SUBTRACT_BASE)

    def add_to_base(self, base: Array, merged: Array, out: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.ADD_TO_BASE)

    def weighted_sum(self, rows: Array, weights: Array, factor: Scalar, divisor: Scalar, out: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.WEIGHTED_SUM, factor, divisor, weights)

    def combine(self, base: Array, row: Array, a: Scalar, b: Scalar, out: Array) -> None:
        """See ``Kernels``; ``row`` is the first agent's."""
        self._note(_Step.COMBINE, a, b)

    def keep_unchanged(self, base: Array, agents: Array, out: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.KEEP_UNCHANGED)

    def sign_consensus(self, deltas: Array, weights: Array, normalize: bool, factor: Scalar, out: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.SIGN_CONSENSUS, float(normalize), factor, weights)

    def histogram_high(self, rows: Array, counts: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.HISTOGRAM_HIGH)
        self._counts = counts

    def histogram_low(self, rows: Array, high: Array, counts: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.HISTOGRAM_LOW)
        self._numbers, self._counts = high, counts

    def count_equal(self, rows: Array, thresholds: Array, counts: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.COUNT_EQUAL)
        self._thresholds, self._counts = thresholds, counts[None]

    def keep_largest(self, rows: Array, thresholds: Array, quota: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.KEEP_LARGEST)
        self._thresholds, self._numbers = thresholds, quota.copy()

    def keep_random(self, rows: Array, density: Array, keys: Array, start: int) -> None:
        """See ``Kernels``."""
        self._note(_Step.KEEP_RANDOM, vector=density)
        self._keys, self._start = keys, start

    def scale_rows(self, rows: Array, factors: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.SCALE_ROWS, vector=factors)


def _place(raw: NDArray[np.uint8], dtype: str) -> tuple[int, int, int]:
    """Address, type and bytes of an element; no address for what is empty."""
    address = raw.__array_interface__["data"][0] if raw.size else 0
    return address, codecs.Type[dtype], DTYPES[dtype].itemsize
