"""Sums of blocks whose bits depend on nothing but the blocks."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = NDArray[Any]


class Tree:
    """Rows of blocks, put together along a fixed binary tree: blocks 0 and 1, 2 and 3, these two, and so on.

    So it does not matter in which order they come. Two neighbours become one row as soon as both are there: of a tensor
    of any size at most 2 x log2(blocks) rows wait for each chunk that is still out. ``combine`` must be commutative.
    """

    def __init__(self, combine: Callable[[Row, Row], Row] = np.add) -> None:
        self._combine = combine
        self._rows: dict[tuple[int, int], Row] = {}  # (level, number in it)

    def add(self, block: int, row: Row) -> None:
        """The row of one block; it is copied."""
        level, row = 0, row.copy()
        while (neighbour := self._rows.pop((level, block ^ 1), None)) is not None:
            row = self._combine(neighbour, row)
            level, block = level + 1, block // 2
        self._rows[level, block] = row

    def total(self) -> Row:
        """All of them together, once the last one has come."""
        first, *others = (self._rows[place] for place in sorted(self._rows))
        for other in others:
            first = self._combine(other, first)
        return first


def rows_waiting(blocks: int) -> int:
    """How many rows a tree of so many blocks holds at most for each chunk that is out, and the one that is added."""
    return 2 * blocks.bit_length() + 2
