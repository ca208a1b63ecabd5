"""RAM: Reinforced Agent Merging."""

from dataclasses import dataclass

import numpy as np

from ..kernels.contract import Block, Kernels
from .base import Method, State, parameter


@dataclass(frozen=True)
class Ram(Method):
    """Reinforced Agent Merging: average what agents changed together, keep what one agent changed alone.

    An agent has changed a weight if it differs from the base by more than epsilon. Where two or more agents did,
    the result is the base plus the mean of their deltas (of those agents only); where one did, its value as it is;
    where none did, the base's exact bits. Agents trained by reinforcement learning change few weights, mostly
    different ones, so nothing is diluted. One pass.
    """

    name = "ram"
    title = "Reinforced Agent Merging"
    paper = "arXiv:2601.13572"
    tallies = True

    epsilon: float = parameter(1e-5, "a weight counts as changed if |agent - base| exceeds this", low=0)

    def blend(self, kernels: Kernels, block: Block, state: State) -> None:
        """See ``Method``."""
        ones = np.ones(len(block.agents), np.float32)
        kernels.ram(block.base, block.agents, self.epsilon, ones, block.out, block.tally)
