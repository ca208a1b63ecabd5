"""Random masks in Numba: words of numpy's Philox generator, many counters at a time.

A product of 64 x 64 bits to 128 is one instruction where LLVM is told that it is one; of 32-bit halves it is four
products and ten more instructions, which no vector makes up for.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from ..formats.jit import inline, intrinsic, jit

Rows = NDArray[np.float32]
Word = np.uint64
Words = NDArray[np.uint64]

_COUNTERS = 256  # four words of each stay in the first-level cache
_MULTIPLIER_0, _MULTIPLIER_1 = Word(0xD2E7470EE14C6C93), Word(0xCA5A826395121157)
_WEYL_0, _WEYL_1 = Word(0x9E3779B97F4A7C15), Word(0xBB67AE8584CAA73B)


@intrinsic
def _product(typing: Any, a: Any, b: Any) -> Any:
    """The upper and the lower 64 bits of a product."""

    def build(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        wide, word = ir.IntType(128), ir.IntType(64)
        product = builder.mul(*(builder.zext(value, wide) for value in values))
        upper = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), word)
        return context.make_tuple(builder, sig.return_type, (upper, builder.trunc(product, word)))

    word = types.uint64
    return types.Tuple((word, word))(word, word), build  # type: ignore[no-untyped-call]


@inline
def _philox(counter: Word, low: Word, high: Word) -> tuple[Word, Word, Word, Word]:
    """Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): four words of one counter."""
    c0, c1, c2, c3 = counter, Word(0), Word(0), Word(0)
    for _ in range(10):
        high_0, low_0 = _product(_MULTIPLIER_0, c0)
        high_1, low_1 = _product(_MULTIPLIER_1, c2)
        c0, c1, c2, c3 = high_1 ^ c1 ^ low, low_1, high_0 ^ c3 ^ high, low_0
        low += _WEYL_0
        high += _WEYL_1
    return c0, c1, c2, c3


@inline
def _fill(words: Words, counter: int, low: Word, high: Word) -> None:
    for c in range(words.size // 4):
        w0, w1, w2, w3 = _philox(Word(counter + c), low, high)
        words[4 * c], words[4 * c + 1], words[4 * c + 2], words[4 * c + 3] = w0, w1, w2, w3


@inline
def _mask(row: NDArray[np.float32], words: Words, limit: Word) -> None:
    for j in range(row.size):
        value = row[j]
        row[j] = value if words[j] >> Word(11) < limit else np.float32(0)


@jit("void(float32[:, ::1], float64[::1], uint64[:, ::1], int64)")
def keep_random(rows: Rows, density: NDArray[np.float64], keys: Words, start: int) -> None:
    """See ``Kernels``."""
    words = np.empty(4 * _COUNTERS, np.uint64)
    for i in range(rows.shape[0]):
        if density[i] >= 1:
            continue
        limit = Word(np.ceil(density[i] * 2.0**53))  # u < density, of multiples of 2^-53
        begin = 0
        while begin < rows.shape[1]:
            skipped = (start + begin) % 4
            end = min(rows.shape[1], begin + words.size - skipped)
            # numpy's generator, too, raises the counter before it draws its first four words
            _fill(words, (start + begin) // 4 + 1, keys[i, 0], keys[i, 1])
            _mask(rows[i, begin:end], words[skipped:], limit)
            begin = end
