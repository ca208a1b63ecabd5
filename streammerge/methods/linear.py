"""Linear: the weighted average of the agents."""

from dataclasses import dataclass

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

    def blend(self, kernels: Kernels, block: Block, state: State) -> None:
        """See ``Method``."""
        weights = for_agents(self.weight, len(block.agents))
        divisor = np.add.accumulate(weights)[-1] if self.normalize else np.float32(1)
        if abs(divisor) < 1e-8:
            raise RecipeError("linear: the weights add up to 0; choose others, or -p normalize=false")
        kernels.weighted_sum(block.agents, weights, 1.0, divisor, block.out)
        if self.normalize:
            kernels.keep_unchanged(block.base, block.agents, block.out)
