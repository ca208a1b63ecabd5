"""The primitives on values as they are stored: noted down as a method calls them, carried out tile by tile.

A block of several models in float32 is larger than the caches, and each call of a primitive takes the interpreter's
lock anew: three agents in bfloat16 came to 0.4 G elements/s in one thread, and in two. Here one call takes each tile
from its bytes through all primitives to bytes while it is in the first-level cache, and asks for those of the next:
where they lie in a mapping, the memory works while the processor does. The primitives are those of ``cpu``, each
element goes through the same operations, so the bits are the same.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..formats import codecs
from ..formats.dtypes import DTYPES
from ..formats.jit import inline, jit
from . import cpu, masks, ram, selection, sums
from .contract import BLOCK, Array, Block, Scalar

Row = NDArray[np.float32]
Rows = NDArray[np.float32]
Counts = NDArray[np.int64]
Words = NDArray[np.uint64]
Table = NDArray[np.float64]
Bits = NDArray[np.uint32]

_TILE = 1024  # elements: with three agents base, agents and result in float32 are 20 KiB, the next tile's bytes 8


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
    SUMS_OF_MAGNITUDES = 15
    INNER_PRODUCTS = 16


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
    "boolean(int64, uint64[::1], int64[:, ::1], int64[::1], float64[:, ::1], uint32[::1], int64[:, ::1], "
    "uint64[:, ::1], int64, int64[:, ::1], float64[:, :, ::1], int64[:, ::1])"
)
def _run(
    elements: int, addresses: Words, types: Counts, steps: Counts, floats: Table, thresholds: Bits, quota: Counts,
    keys: Words, start: int, counts: Counts, added: NDArray[np.float64], tally: Counts,
) -> bool:  # fmt: skip
    """Whether all was finite. ``addresses`` and ``types`` (number, bytes of an element) of base, agents and result;
    ``floats``: two numbers and then one for each agent, by step; quota, counts and ``added`` may be by block."""
    agents, finite, narrow = len(addresses) - 2, True, floats.astype(np.float32)
    scratch = np.empty((agents + 2) * _TILE, np.float32)
    for begin in range(0, elements, _TILE):
        n, block = min(_TILE, elements - begin), begin // BLOCK
        tile = scratch[: (agents + 2) * n].reshape(agents + 2, n)
        base, rows, out = tile[0], tile[1:-1], tile[-1]
        for i in range(agents + 1):
            address = addresses[i] + np.uint64(begin * types[i, 1])
            if begin + n < elements:
                codecs.fetch(address + np.uint64(n * types[i, 1]), n * types[i, 1])
            finite &= not codecs.decode_at(types[i, 0], address, tile[i].view(np.uint32))
        for k in range(steps.size):
            step, one, two, vector = steps[k], narrow[k, 0], narrow[k, 1], narrow[k, 2:]
            if step == _Step.RAM:
                ram.ram(base, rows, one, vector, out, tally)
            elif step == _Step.RAM_DIVIDE_FIRST:
                ram.ram_divide_first(base, rows, one, vector, out, tally)
            elif step == _Step.COUNT_CHANGES:
                ram.count_changes(base, rows, one, tally)
            elif step == _Step.HISTOGRAM_HIGH:
                selection.histogram_high(rows, counts)
            elif step == _Step.HISTOGRAM_LOW:
                selection.histogram_low(rows, quota[0], counts)
            elif step == _Step.COUNT_EQUAL:
                selection.count_equal(rows, thresholds, counts[block])
            elif step == _Step.KEEP_LARGEST:
                selection.keep_largest_of(rows, thresholds, quota[block])
            elif step == _Step.KEEP_RANDOM:
                masks.keep_random(rows, floats[k, 2:], keys, start + begin)
            elif step == _Step.SCALE_ROWS:
                cpu.scale_rows(rows, floats[k, 2:])
            elif step == _Step.SUMS_OF_MAGNITUDES:
                sums.sums_of_magnitudes(rows, added[k, block])
            elif step == _Step.INNER_PRODUCTS:
                sums.inner_products(base, rows[0], added[k, block])
            else:
                _arithmetic(step, one, two, vector, base, rows, out)
        if addresses[-1]:
            address = addresses[-1] + np.uint64(begin * types[-1, 1])
            finite &= not codecs.encode_at(types[-1, 0], out.view(np.uint32), address)
    return finite


class Stored:
    """``Kernels`` for blocks as stored: notes what is called, always with the block's own base, agents and result, and
    does it all in ``run``. Not here: ``observe``."""

    def __init__(self, block: Block, dtypes: Sequence[str]) -> None:
        """``dtypes`` of base, agents and result. The block's arrays are bytes; an empty ``out`` is not filled."""
        agents = len(block.agents)
        self._block, self._tally = block, block.tally
        raws = (block.base, *block.agents, block.out)
        self._addresses = np.array([raw.ctypes.data if raw.size else 0 for raw in raws], np.uint64)
        self._types = _types(*dtypes)
        self._elements = block.base.size // DTYPES[dtypes[0]].itemsize
        self._blocks = -(-self._elements // BLOCK)
        self._steps: list[int] = []
        self._floats: list[tuple[Scalar, ...]] = []
        self._nothing = (0.0,) * agents
        self._thresholds, self._quota = np.zeros(agents, np.uint32), np.zeros((1, agents), np.int64)
        self._keys, self._start = np.zeros((agents, 2), np.uint64), 0
        self._counts, self._sums = np.zeros((1, 1), np.int64), dict[int, Array]()

    def run(self) -> bool:
        """Carry it out; whether inputs and result were finite."""
        added = np.zeros((len(self._steps), self._blocks, max(3, len(self._nothing))))
        for step, own in self._sums.items():
            added[step, :, : len(own)] = own.reshape(len(own), -1).T
        steps, floats = np.array(self._steps, np.int64), np.array(self._floats, np.float64)
        finite = _run(
            self._elements, self._addresses, self._types, steps, floats, self._thresholds, self._quota, self._keys,
            self._start, self._counts, added, self._tally,
        )  # fmt: skip
        for step, own in self._sums.items():
            own[:] = added[step, :, : len(own)].T.reshape(own.shape)
        return finite

    def _note(self, step: int, one: Scalar = 0.0, two: Scalar = 0.0, by_agent: Iterable[Scalar] | None = None) -> None:
        self._steps.append(int(step))
        self._floats.append((one, two, *(self._nothing if by_agent is None else by_agent)))

    def count_changes(self, base: Array, agents: Array, epsilon: Scalar, tally: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.COUNT_CHANGES, epsilon)
        self._tally = tally

    def ram(self, base: Array, agents: Array, epsilon: Scalar, scales: Array, out: Array, tally: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.RAM, epsilon, by_agent=scales)

    def ram_divide_first(
        self, base: Array, agents: Array, epsilon: Scalar, scales: Array, out: Array, tally: Array
    ) -> None:
        """See ``Kernels``."""
        self._note(_Step.RAM_DIVIDE_FIRST, epsilon, by_agent=scales)

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
        self._quota, self._counts = high[None], counts

    def count_equal(self, rows: Array, thresholds: Array, counts: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.COUNT_EQUAL)
        self._thresholds, self._counts = thresholds, counts.reshape(len(thresholds), -1).T

    def keep_largest(self, rows: Array, thresholds: Array, quota: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.KEEP_LARGEST)
        shape = self._blocks, len(thresholds)
        self._thresholds, self._quota = thresholds, np.broadcast_to(quota, shape).copy()

    def keep_random(self, rows: Array, density: Array, keys: Array, start: int) -> None:
        """See ``Kernels``."""
        self._note(_Step.KEEP_RANDOM, by_agent=density)
        self._keys, self._start = keys, start

    def scale_rows(self, rows: Array, factors: Array) -> None:
        """See ``Kernels``."""
        self._note(_Step.SCALE_ROWS, by_agent=factors)

    def sums_of_magnitudes(self, rows: Array, sums: Array) -> None:
        """See ``Kernels``."""
        self._sums[len(self._steps)] = sums
        self._note(_Step.SUMS_OF_MAGNITUDES)

    def inner_products(self, x: Array, y: Array, sums: Array) -> None:
        """See ``Kernels``; of the base and the first agent."""
        self._sums[len(self._steps)] = sums
        self._note(_Step.INNER_PRODUCTS)


@cache
def _types(*dtypes: str) -> Counts:
    """Number and bytes of each type."""
    return np.array([(codecs.Type[dtype], DTYPES[dtype].itemsize) for dtype in dtypes], np.int64)
