"""Linear: the weighted average of the agents."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from ..errors import RecipeError
from ..kernels.contract import Block, Kernels
from .base import Method, PerAgent, State, for_agents, parameter


@dataclass(frozen=True)
class Linear(Method):
    """Weighted average of the agents' weights ("model soup"). The base gives names and copied tensors only.

    sum of weight_i * agent_i, divided by the sum of the weights if normalize. One pass.
    """

    name = "linear"
    title = "Weighted average"
    paper = "arXiv:2203.05482"
    uses_base = False

    weight: PerAgent = parameter(1.0, "weight of each agent", kind="per agent")
    normalize: bool = parameter(True, "divide by the sum of the weights", kind="bool")

    @classmethod
    def build(cls, given: Mapping[str, object], agents: int) -> Self:
        """See ``Method``."""
        method = super().build(given, agents)
        if abs(method._divisor(agents)) < 1e-8:
            raise RecipeError("linear: the weights add up to 0; choose others, or -p normalize=false")
        return method

    def _divisor(self, agents: int) -> np.float32:
        weights = for_agents(self.weight, agents)
        return np.float32(np.add.accumulate(weights)[-1] if self.normalize else 1)

    def blend(self, kernels: Kernels, block: Block, state: State) -> None:
        """See ``Method``."""
        agents = len(block.agents)
        kernels.weighted_sum(block.agents, for_agents(self.weight, agents), 1.0, self._divisor(agents), block.out)
        if self.normalize:
            kernels.keep_unchanged(block.base, block.agents, block.out)
