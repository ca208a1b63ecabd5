"""Task arithmetic: the base plus a weighted sum of the deltas."""

from dataclasses import dataclass

import numpy as np

from ..kernels.contract import Block, Kernels
from .base import Method, PerAgent, State, for_agents, parameter


@dataclass(frozen=True)
class TaskArithmetic(Method):
    """Adds the agents' deltas to the base: base + lambda * sum of weight_i * (agent_i - base).

    With normalize the sum is divided by the sum of the weights (by 1 if that is 0): the mean of the deltas. One pass.
    """

    name = "task_arithmetic"
    title = "Task arithmetic"
    paper = "arXiv:2212.04089"

    weight: PerAgent = parameter(1.0, "weight of each agent's delta", kind="per agent")
    lambda_: float = parameter(1.0, "factor on the summed delta")
    normalize: bool = parameter(False, "divide by the sum of the weights", kind="bool")

    def blend(self, kernels: Kernels, block: Block, state: State) -> None:
        """See ``Method``."""
        weights = for_agents(self.weight, len(block.agents))
        kernels.subtract_base(block.base, block.agents)
        kernels.weighted_sum(block.agents, weights, self.lambda_, delta_divisor(weights, self.normalize), block.out)
        kernels.add_to_base(block.base, block.out, block.out)


def delta_divisor(weights: np.ndarray[tuple[int, ...], np.dtype[np.float32]], normalize: bool) -> np.float32:
    """What a sum of weighted deltas is divided by: the weights' sum in float32, 1 where that is 0 or not wanted."""
    total = np.add.accumulate(weights)[-1]
    return total if normalize and abs(total) >= 1e-8 else np.float32(1)
