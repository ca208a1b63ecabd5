"""TIES: trim, elect sign, and merge."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.contract import BLOCK, Block, Kernels
from .base import Extent, Measure, Method, PerAgent, State, for_agents, parameter


@dataclass(frozen=True, slots=True)
class Selection:
    """The search for the k-th largest magnitude of each agent: what is known so far, one entry an agent.

    The threshold is the bits of a magnitude; ``need`` says how many of the elements that equal it stay, and
    ``quota`` how many of them in each block (None: all of them, wherever they are).
    """

    high: NDArray[np.int64]
    need: NDArray[np.int64]
    thresholds: NDArray[np.uint32] | None = None
    equal: NDArray[np.int64] | None = None
    quota: NDArray[np.int64] | None = None


class UpperBits(Measure):
    """Histogram of the upper 16 bits of |delta|: finds the bin that holds the k-th largest."""

    title = "selecting magnitudes, upper bits"

    def __init__(self, density: PerAgent) -> None:
        self._density = density

    def shape(self, agents: int) -> tuple[int, ...]:
        """(agents, 32768)."""
        return (agents, 1 << 15)

    def block(self, kernels: Kernels, block: Block, state: State, out: NDArray[Any]) -> None:
        """See ``Measure``."""
        kernels.subtract_base(block.base, block.agents)
        kernels.histogram_high(block.agents, out)

    def conclude(self, state: State, measured: NDArray[Any], extent: Extent) -> State:
        """The bin, and how many of its elements are among the k largest."""
        densities = np.broadcast_to(np.asarray(self._density, np.float64), extent.agents)
        keep = [_kept(float(density), extent.elements) for density in densities]
        high, need = _descend(measured, np.array(keep))
        return Selection(high, need)


class LowerBits(Measure):
    """Histogram of the lower 16 bits inside that bin: finds the k-th largest magnitude itself."""

    title = "selecting magnitudes, lower bits"

    def shape(self, agents: int) -> tuple[int, ...]:
        """(agents, 65536)."""
        return (agents, 1 << 16)

    def block(self, kernels: Kernels, block: Block, state: Selection, out: NDArray[Any]) -> None:
        """See ``Measure``."""
        kernels.subtract_base(block.base, block.agents)
        kernels.histogram_low(block.agents, state.high, out)

    def conclude(self, state: Selection, measured: NDArray[Any], extent: Extent) -> State:
        """The threshold, how many elements equal it, and how many of these are kept."""
        low, need = _descend(measured, state.need)
        equal = measured[np.arange(extent.agents), low]
        return Selection(state.high, need, ((state.high << 16) | low).astype(np.uint32), equal)


class EqualMagnitudes(Measure):
    """How many elements of each block equal the threshold: of these the first ones by index are kept."""

    title = "counting equal magnitudes"
    kind = "blocks"

    def shape(self, agents: int) -> tuple[int, ...]:
        """(agents,) for each block."""
        return (agents,)

    def needed(self, state: Selection) -> bool:
        """Only if an agent keeps some of its equal magnitudes but not all; zeros are equal, but lose nothing."""
        assert state.equal is not None and state.thresholds is not None
        return bool(np.any((state.need < state.equal) & (state.thresholds > 0)))

    def block(self, kernels: Kernels, block: Block, state: Selection, out: NDArray[Any]) -> None:
        """See ``Measure``."""
        kernels.subtract_base(block.base, block.agents)
        kernels.count_equal(block.agents, state.thresholds, out)

    def conclude(self, state: Selection, measured: NDArray[Any], extent: Extent) -> State:
        """How many each block may keep."""
        before = np.cumsum(measured, axis=0) - measured
        quota = np.clip(state.need - before, 0, None)
        return Selection(state.high, state.need, state.thresholds, state.equal, quota)


def _kept(density: float, elements: int) -> int:
    """How many elements stay: int(density * n) as mergekit truncates it, at least one; none at density 0."""
    return max(1, int(density * elements)) if density > 0 and elements else 0


def _descend(counts: NDArray[np.int64], rank: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """From the largest bin down, the bin that holds the rank-th element (1-based), and its rank in there."""
    from_top = np.cumsum(counts[:, ::-1], axis=1)
    place = np.array([np.searchsorted(row, max(int(k), 1)) for row, k in zip(from_top, rank)])
    place = np.minimum(place, counts.shape[1] - 1)
    bins = counts.shape[1] - 1 - place
    rows = np.arange(len(rank))
    return bins, rank - (from_top[rows, place] - counts[rows, bins])


@dataclass(frozen=True)
class Ties(Method):
    """TIES-Merging: keep each agent's largest deltas, elect a sign for each weight, average the deltas that agree.

    In each tensor the int(density * n) largest |delta| of an agent are kept, exactly; among equal magnitudes at
    the threshold the ones with the lowest index. The elected sign is that of the weighted sum; the result is the
    base plus the weighted mean (normalize) or sum of the deltas of that sign, times lambda. The threshold is found
    by radix selection on the float's bits: four passes over each tensor, three of them while it is warm, and no tensor
    is ever in memory.
    """

    name = "ties"
    title = "TIES-Merging"
    paper = "arXiv:2306.01708"

    weight: PerAgent = parameter(1.0, "weight of each agent's delta", kind="per agent")
    density: PerAgent = parameter(1.0, "share of the deltas that are kept", kind="per agent", low=0, high=1)
    lambda_: float = parameter(1.0, "factor on the merged delta")
    normalize: bool = parameter(True, "divide by the weights of the deltas that agree", kind="bool")

    def measures(self) -> tuple[Measure, ...]:
        """Three passes over the tensor, none if everything is kept."""
        if np.min(np.asarray(self.density)) >= 1:
            return ()
        return (UpperBits(self.density), LowerBits(), EqualMagnitudes())

    def blend(self, kernels: Kernels, block: Block, state: Selection | None) -> None:
        """See ``Method``."""
        kernels.subtract_base(block.base, block.agents)
        if state is not None:
            kernels.keep_largest(block.agents, *self._limits(state, block))
        weights = for_agents(self.weight, len(block.agents))
        kernels.sign_consensus(block.agents, weights, self.normalize, self.lambda_, block.out)
        kernels.add_to_base(block.base, block.out, block.out)

    def _limits(self, state: Selection, block: Block) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Threshold (agents) and quota (agents, or blocks x agents); density 0 keeps nothing, density 1 everything."""
        assert state.thresholds is not None
        density = np.broadcast_to(np.asarray(self.density, np.float64), len(block.agents))
        quota = np.full(len(density), BLOCK) if state.quota is None else state.quota[block.index]
        thresholds = np.where(density == 0, np.uint32(0xFFFFFFFF), state.thresholds)
        thresholds = np.where(density == 1, np.uint32(0), thresholds).astype(np.uint32)
        return thresholds, np.where(density == 1, BLOCK, quota).astype(np.int64)
