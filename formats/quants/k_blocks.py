"""Blocks of the K types: their scratch memory, sixteen at a time, and what the types have in common.

Row r of the scratch array ``x`` holds element r of all sixteen blocks; bytes are put together four to an int32 in the
rows of ``words`` and transposed at the end. The last group repeats its last block in the lanes that are left over.
"""

from typing import NamedTuple

import numpy as np
from numpy import float32
from numpy.typing import NDArray

from ..jit import inline
from .asymmetric import Fits, new_fits
from .contract import Bytes, Values
from .lanes import LANES, Floats, IntRows, Ints, Rows, root, splat
from .memory import align_stack, copy_bytes, int_rows, load, rows, store, transpose
from .rounding import ZERO

BLOCK = 256
ENCODE = "void(Array(float32, 1, 'C', True), int64, Array(float32, 1, 'C', True), uint8[::1], int64)"
DECODE = "void(Array(uint8, 1, 'C', True), float32[::1])"
NO_WEIGHTS: Values = np.empty(0, float32)

_WORDS = 64  # int32 words of the longest block, 53 in Q6_K, up to a multiple of LANES


class Scratch(NamedTuple):
    """Scratch rows of sixteen blocks; sub-block j of each has row j of the arrays from ``scales`` on."""

    x: Rows  # 256 elements
    importance: Rows  # of the 256 columns
    weights: Rows  # of the elements
    codes: Rows  # of the elements, or something else for each of them, during a search
    kept: Rows  # 256 codes of a search that cannot make them again
    fits: Fits  # which shares some of these arrays
    scales: Rows
    minima: Rows
    sums: Rows  # of the weights
    inverses: Rows  # what makes the search's own codes again
    scale_codes: IntRows
    minimum_codes: IntRows
    signed_codes: IntRows  # ``scale_codes`` as the numbers they stand for
    levels: IntRows  # 256 final codes
    joined_codes: IntRows  # of scale and minimum, Q2_K only
    words: IntRows  # the block, four bytes to a row
    lanes: IntRows  # the same transposed: (LANES, words)
    starts: NDArray[np.int64]  # what to transpose


@inline
def new_scratch() -> Scratch:
    """For one call of an encoder."""
    align_stack()
    fits = new_fits(BLOCK)
    return Scratch(
        x=fits.x,
        importance=rows(BLOCK),
        weights=fits.weights,
        codes=fits.codes,
        kept=rows(BLOCK),
        fits=fits,
        scales=rows(16),
        minima=rows(16),
        sums=rows(16),
        inverses=rows(16),
        scale_codes=int_rows(16),
        minimum_codes=int_rows(16),
        signed_codes=int_rows(16),
        levels=int_rows(BLOCK),
        joined_codes=int_rows(16),
        words=int_rows(_WORDS),
        lanes=int_rows(_WORDS).reshape(LANES, _WORDS),
        starts=np.empty(LANES, np.int64),
    )


@inline
def _gather(s: Scratch, values: Values, first: int, last: int, period: int, out: Rows) -> None:
    """Put block ``min(first + lane, last)``, counted modulo ``period``, into each lane."""
    for lane in range(LANES):
        s.starts[lane] = min(first + lane, last) % period * BLOCK
    for i in range(0, BLOCK, LANES):
        transpose(values, s.starts, i, out, i * LANES, LANES)


@inline
def scatter(s: Scratch, out: Bytes, first: int, blocks: int, size: int) -> None:
    """Write the blocks in ``words`` that exist."""
    for i in range(LANES):
        s.starts[i] = i * LANES
    for word in range(0, (size + 3) // 4, LANES):
        transpose(s.words, s.starts, word * LANES, s.lanes, word, _WORDS)
    raw = s.lanes.view(np.uint8)
    for lane in range(min(LANES, blocks - first)):
        copy_bytes(raw, lane * 4 * _WORDS, out, (first + lane) * size, size)


@inline
def load_group(s: Scratch, values: Values, row: int, weights: Values, first: int) -> None:
    """Sixteen blocks from ``first`` on and, if there are weights, the importance of their columns."""
    blocks = values.size // BLOCK
    _gather(s, values, first, blocks - 1, blocks, s.x)
    if weights.size > 0:
        _gather(s, weights, first, blocks - 1, row // BLOCK, s.importance)


@inline
def sum_of_squares(x: Rows, first: int, count: int) -> Floats:
    """Added up in the order of the elements."""
    total = splat(ZERO)
    for i in range(count):
        total = total + load(x, first + i) * load(x, first + i)
    return total


@inline
def weigh_by_importance(s: Scratch, sub: int, count: int, variance: Floats) -> None:
    """Weights of one sub-block and their sum, with an importance matrix."""
    total = splat(ZERO)
    for i in range(sub * count, sub * count + count):
        value = load(s.x, i)
        weight = load(s.importance, i) * root(variance + value * value)
        store(s.weights, i, weight)
        total = total + weight
    store(s.sums, sub, total)


@inline
def four(rows: IntRows, first: int) -> Ints:
    """Four bytes from four rows, as a little-endian int32."""
    low = load(rows, first) | (load(rows, first + 1) << 8)
    return low | (load(rows, first + 2) << 16) | (load(rows, first + 3) << 24)


@inline
def pack_bits(s: Scratch, bit: int, first: int) -> None:
    """Byte l has one bit of each of the elements 32 j + l, at place j."""
    for word in range(8):
        total = load(s.levels, 0) & 0
        for j in range(8):
            total = total | (((four(s.levels, 32 * j + 4 * word) >> bit) & 0x01010101) << j)
        store(s.words, first + word, total)


@inline
def pack_pairs(s: Scratch, first: int) -> None:
    """The low two bits of all codes: byte l of each half has those of its elements l, 32 + l, 64 + l and 96 + l."""
    for word in range(16):
        element = word // 8 * 128 + word % 8 * 4
        total = four(s.levels, element) & 0x03030303
        for j in range(1, 4):
            total = total | ((four(s.levels, element + 32 * j) & 0x03030303) << (2 * j))
        store(s.words, first + word, total)
