"""DARE: drop deltas at random, rescale the rest, add them to the base."""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.contract import Block, Kernels
from .base import Extent, Measure, Method, PerAgent, State, for_agents, parameter
from .task_arithmetic import delta_divisor

_NOTHING = 1e-7


@lru_cache(maxsize=64)
def mask_keys(seed: int, tensor: str, agents: int) -> NDArray[np.uint64]:
    """The 128-bit generator key of each agent for one tensor, as (agents, 2) uint64, low half first.

    BLAKE2b of seed, tensor name and the agent's position: the same mask whatever reads, and in whatever order.
    """
    keys = np.empty((agents, 2), np.uint64)
    for agent in range(agents):
        text = seed.to_bytes(8, "little") + b"\0" + tensor.encode() + b"\0" + agent.to_bytes(4, "little")
        keys[agent] = np.frombuffer(blake2b(text).digest()[:16], "<u8")
    return keys


@dataclass(frozen=True)
class MaskedMagnitudes(Measure):
    """Sum of |delta| before and after the random mask."""

    density: PerAgent
    seed: int
    title = "measuring what the mask drops"
    kind = "sums"

    def shape(self, agents: int) -> tuple[int, ...]:
        """(2, agents): before, after."""
        return (2, agents)

    def block(self, kernels: Kernels, block: Block, state: State, out: NDArray[Any]) -> None:
        """See ``Measure``."""
        kernels.subtract_base(block.base, block.agents)
        kernels.sums_of_magnitudes(block.agents, out[0])
        apply_mask(kernels, block, self.density, self.seed)
        kernels.sums_of_magnitudes(block.agents, out[1])

    def conclude(self, state: State, measured: NDArray[Any], extent: Extent) -> State:
        """before / after for each agent; 1 where either is next to nothing."""
        before, after = measured
        usable = (before >= _NOTHING) & (after >= _NOTHING)
        return np.divide(before, after, out=np.ones(extent.agents), where=usable)


def apply_mask(kernels: Kernels, block: Block, density: PerAgent, seed: int) -> None:
    """Drop elements of ``block.agents`` (deltas) at random."""
    agents = len(block.agents)
    kept = np.broadcast_to(np.asarray(density, np.float64), agents).copy()
    kernels.keep_random(block.agents, kept, mask_keys(seed, block.tensor, agents), block.start)


@dataclass(frozen=True)
class DareLinear(Method):
    """Drops each delta with probability 1 - density, rescales what is left, and adds it to the base.

    The mask is a function of seed, tensor name, agent position and element index alone. rescale: "l1" brings the
    sum of magnitudes of each tensor back to what it was (mergekit's way; two passes over each tensor);
    "inverse_density" divides by the density (the paper's way; one pass); "none" leaves the rest as it is.
    """

    name = "dare_linear"
    title = "DARE with a weighted sum"
    paper = "arXiv:2311.03099"

    weight: PerAgent = parameter(1.0, "weight of each agent's delta", kind="per agent")
    density: PerAgent = parameter(1.0, "share of the deltas that are kept", kind="per agent", low=0, high=1)
    lambda_: float = parameter(1.0, "factor on the summed delta")
    normalize: bool = parameter(False, "divide by the sum of the weights", kind="bool")
    rescale: str = parameter(
        "l1", "how the kept deltas are scaled up", kind="choice", choices=("l1", "inverse_density", "none")
    )
    seed: int = parameter(0, "seed of the random mask", kind="int", low=0, high=2**63 - 1)

    def measures(self) -> tuple[Measure, ...]:
        """One pass over the tensor for the ``l1`` scaling."""
        drops = np.min(np.asarray(self.density)) < 1
        return (MaskedMagnitudes(self.density, self.seed),) if self.rescale == "l1" and drops else ()

    def blend(self, kernels: Kernels, block: Block, state: State) -> None:
        """See ``Method``."""
        agents = len(block.agents)
        kernels.subtract_base(block.base, block.agents)
        apply_mask(kernels, block, self.density, self.seed)
        if state is not None:
            kernels.scale_rows(block.agents, state)
        elif self.rescale == "inverse_density":
            density = np.broadcast_to(np.asarray(self.density, np.float64), agents)
            # below 1e-30 nothing is kept, and the factor would be infinite in float32
            kernels.scale_rows(block.agents, np.divide(1, density, out=np.ones(agents), where=density > 1e-30))
        weights = for_agents(self.weight, agents)
        kernels.weighted_sum(block.agents, weights, self.lambda_, delta_divisor(weights, self.normalize), block.out)
        kernels.add_to_base(block.base, block.out, block.out)
