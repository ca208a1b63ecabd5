"""RAM+: RAM with the unique part rescaled by the overlap ratio of the whole model."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.contract import Block, Kernels
from .base import Extent, Measure, Method, State, parameter


@dataclass(frozen=True)
class CountChanges(Measure):
    """Changed and unique weights of each agent."""

    epsilon: float
    title = "counting changed weights"

    def shape(self, agents: int) -> tuple[int, ...]:
        """(agents, 2): changed and unique."""
        return (agents, 2)

    def block(self, kernels: Kernels, block: Block, state: State, out: NDArray[Any]) -> None:
        """See ``Measure``."""
        kernels.count_changes(block.base, block.agents, self.epsilon, out)

    def conclude(self, state: State, measured: NDArray[Any], extent: Extent) -> State:
        """The counts themselves."""
        return measured


def overlap_ratio(changed: int, unique: int) -> float:
    """rho = shared / unique: infinite if the agent has no unique weight, 0 if it changed nothing."""
    if changed == 0:
        return 0.0
    return (changed - unique) / unique if unique else float("inf")


@dataclass(frozen=True)
class OverlapScaled(Method):
    """What the variants of RAM+ share: their parameters, and the pass that counts."""

    tallies = True

    r: float = parameter(0.1, "how strongly the overlap ratio rescales the unique part", low=0)
    alpha: float = parameter(0.2, "the overlap ratio is clipped to at most this", low=0)
    epsilon: float = parameter(1e-5, "a weight counts as changed if |agent - base| exceeds this", low=0)

    def measures(self) -> tuple[Measure, ...]:
        """One pass."""
        return (CountChanges(self.epsilon),)


@dataclass(frozen=True)
class RamPlus(OverlapScaled):
    """RAM that makes up for what averaging takes: the more an agent overlaps, the more its unique part grows.

    As ram, but the unique delta of agent i is multiplied by lambda_i = 1 + r * clip(rho_i, 0, alpha), where
    rho_i = shared_i / unique_i counts weights over the whole model. Two passes: count, then merge. The preset
    "authors" is the mode arm-r-v2 of the authors' released code with its default factor of 1.05 (a factor R there
    is r = R - 1 and alpha = 1 here): -p preset=authors; their README uses a factor of 1.2: -p preset=authors -p r=0.2.
    """

    name = "ram+"
    aliases = ("ramplus", "ram_plus")
    title = "Reinforced Agent Merging with rescaling"
    paper = "arXiv:2601.13572"
    presets = {"paper": {"r": 0.1, "alpha": 0.2}, "authors": {"r": 0.05, "alpha": 1.0}}
    scope = "model"

    def scales(self, counts: NDArray[np.int64]) -> NDArray[np.float32]:
        """lambda_i for counts (agents, 2) of changed and unique weights: float64, then rounded to float32."""
        ratios = [overlap_ratio(int(changed), int(unique)) for changed, unique in counts]
        return np.array([1 + self.r * min(max(ratio, 0.0), self.alpha) for ratio in ratios]).astype(np.float32)

    def blend(self, kernels: Kernels, block: Block, state: State) -> None:
        """See ``Method``."""
        kernels.ram(block.base, block.agents, self.epsilon, self.scales(state), block.out, block.tally)
