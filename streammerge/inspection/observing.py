"""The one pass that observes everything, as a method without a blend."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.contract import Array, Block, Kernels
from ..methods.base import Extent, Measure, Method, State, parameter

Row = NDArray[np.float64]

DEFAULT_EPSILON = 1e-5
LARGEST = 4  # the column of ``by_agent`` whose larger value stays


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the numbers of ``Kernels.observe`` lie in a row, for so many agents."""

    agents: int

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(0, 1), (0, 2) ... in the order of their rows."""
        return [(i, k) for i in range(self.agents) for k in range(i + 1, self.agents)]

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self._first_pair + 3 * self.agents * (self.agents - 1) // 2

    @property
    def _first_agent(self) -> int:
        return 3 + self.agents + 1

    @property
    def _first_pair(self) -> int:
        return self._first_agent + 6 * self.agents

    def split(self, rows: Row, axis: int = -1) -> tuple[Row, Row, Row, Row]:
        """Views of rows, which are ``width`` long along ``axis``. In its place are whole (3), by_count (agents + 1),
        by_agent (agents, 6) and by_pair (pairs, 3)."""
        axis %= rows.ndim
        leading, trailing = rows.shape[:axis], rows.shape[axis + 1 :]

        def part(start: int, stop: int, *shape: int) -> Row:
            return rows[(slice(None),) * axis + (slice(start, stop),)].reshape(*leading, *shape, *trailing)

        return (
            part(0, 3, 3),
            part(3, self._first_agent, self.agents + 1),
            part(self._first_agent, self._first_pair, self.agents, 6),
            part(self._first_pair, self.width, len(self.pairs), 3),
        )

    def combine(self, one: Row, other: Row) -> Row:
        """What two runs of elements have together: sums, of the largest deltas the larger."""
        both = one + other
        largest = slice(self._first_agent + LARGEST, self._first_pair, 6)
        both[..., largest] = np.maximum(one[..., largest], other[..., largest])
        return both


def observe(kernels: Kernels, block: Block, epsilon: float, row: Array) -> None:
    """Add the numbers of a block in float32 to ``row`` (width of ``Columns``, or width x blocks); the block stays as it
    is."""
    kernels.observe(block.base, block.agents, epsilon, *Columns(len(block.agents)).split(row, axis=0))


@dataclass(frozen=True)
class Observe(Measure):
    """Everything about base and agents, one row a tensor."""

    columns: Columns
    epsilon: float
    title = "comparing base and agents"
    kind = "sums"
    keeps = True
    stored = False

    def shape(self, agents: int) -> tuple[int, ...]:
        """One row."""
        return (self.columns.width,)

    def block(self, kernels: Kernels, block: Block, state: State, out: NDArray[Any]) -> None:
        """See ``Measure``."""
        observe(kernels, block, self.epsilon, out)

    def combine(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
        """See ``Measure``."""
        return self.columns.combine(one, other)

    def conclude(self, state: State, measured: NDArray[Any], extent: Extent) -> State:
        """The row itself."""
        return measured


@dataclass(frozen=True)
class Observing(Method):
    """One measure pass, tensor by tensor, and no blend."""

    name = "inspect"
    title = "Statistics of deltas"
    paper = "arXiv:2601.13572, arXiv:2505.11711"

    agents: int = 1
    epsilon: float = parameter(DEFAULT_EPSILON, "a weight counts as changed if |agent - base| exceeds this", low=0)

    def measures(self) -> tuple[Measure, ...]:
        """One pass."""
        return (Observe(Columns(self.agents), self.epsilon),)
