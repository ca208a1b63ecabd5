"""The random masks of the torch backend: the words of ``cpu.py``'s Philox4x64-10, in int64, which wraps like uint64.

torch has hardly any arithmetic on uint64. Sums and products have the same bits either way; a right shift is masked.
"""

from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LOWER = 0xFFFF_FFFF
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


class RandomMasks:
    """Draws masks on a device."""

    def __init__(self, device: torch.device) -> None:
        lower, upper = [word & _LOWER for word in _MULTIPLIERS], [word >> 32 for word in _MULTIPLIERS]
        self._lower, self._upper = (torch.tensor(words, device=device)[:, None] for words in (lower, upper))
        self._multipliers = torch.tensor([_signed(word) for word in _MULTIPLIERS], device=device)[:, None]

    def keep_random(self, rows: Tensor, density: NDArray[np.float64], keys: NDArray[np.uint64], start: int) -> None:
        """See ``Kernels``."""
        for row, share, key in zip(rows, density, keys):
            if share < 1:
                limit = ceil(float(share) * 2.0**53)  # number * 2^-53 < share stays
                row.masked_fill_(self._numbers((int(key[0]), int(key[1])), start, row.numel()).view_as(row) >= limit, 0)

    def _numbers(self, key: tuple[int, int], start: int, count: int) -> Tensor:
        """The upper 53 bits of words ``start`` to ``start + count`` of a key's stream."""
        first, last = start // 4, (start + count - 1) // 4
        # numpy's generator, too, raises the counter before it draws its first four words
        counters = torch.arange(first + 1, last + 2, device=self._multipliers.device)
        words = self._philox(counters, key)[start - 4 * first :][:count]
        return words.bitwise_right_shift_(11).bitwise_and_((1 << 53) - 1)

    def _philox(self, counters: Tensor, key: tuple[int, int]) -> Tensor:
        """Four words of each counter. What ``cpu.py`` does to c0 and c2, to c3 and c1 is done to both at once."""
        c02, c31 = torch.stack((counters, torch.zeros_like(counters))), counters.new_zeros(2, len(counters))
        for number in range(10):
            key_low, key_high = (_signed(word + number * step) for word, step in zip(key, _KEY_STEPS))
            c20 = self._high_products(c02).bitwise_xor_(c31)
            c31 = c02 * self._multipliers
            torch.bitwise_xor(c20[1], key_low, out=c02[0])
            torch.bitwise_xor(c20[0], key_high, out=c02[1])
        return torch.stack((c02[0], c31[1], c02[1], c31[0]), -1).view(-1)

    def _high_products(self, words: Tensor) -> Tensor:
        """The upper 64 bits of the products of words (2, n) and the two multipliers; integers may be fused."""
        lower, upper = words & _LOWER, (words >> 32).bitwise_and_(_LOWER)
        middle = _upper_half(lower * self._lower).addcmul_(lower, self._upper)
        other = (middle & _LOWER).addcmul_(upper, self._lower)
        return _upper_half(middle).add_(_upper_half(other)).addcmul_(upper, self._upper)


def _upper_half(words: Tensor) -> Tensor:
    """The upper 32 bits of each word, in place."""
    return words.bitwise_right_shift_(32).bitwise_and_(_LOWER)


def _signed(word: int) -> int:
    """The number that int64 has for the lower 64 bits of ``word``."""
    word &= (1 << 64) - 1
    return word - (word >> 63 << 64)
