"""SLERP: spherical interpolation between the base and one agent."""

from dataclasses import dataclass
from math import acos, sin, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.contract import Block, Kernels
from .base import Extent, Measure, Method, State, parameter

_COLINEAR = 0.9995
_TINY = 1e-8


class InnerProducts(Measure):
    """base.base, base.agent and agent.agent of one tensor."""

    title = "measuring angles"
    kind = "sums"

    def shape(self, agents: int) -> tuple[int, ...]:
        """The three products."""
        return (3,)

    def block(self, kernels: Kernels, block: Block, state: State, out: NDArray[Any]) -> None:
        """See ``Measure``."""
        kernels.inner_products(block.base, block.agents[0], out)

    def conclude(self, state: State, measured: NDArray[Any], extent: Extent) -> State:
        """The cosine of the angle; 0 if one of the two is zero."""
        base, cross, agent = (float(value) for value in measured)
        norms = [sqrt(square) if sqrt(square) > _TINY else 1.0 for square in (base, agent)]
        return min(max(cross / norms[0] / norms[1], -1.0), 1.0) if extent.elements else 1.0


@dataclass(frozen=True)
class Slerp(Method):
    """Interpolates between the base (t = 0) and one agent (t = 1) along the arc between them, tensor by tensor.

    Where the two are nearly parallel (cosine above 0.9995, as fine-tunes of one base are), it is linear
    interpolation. Two passes over each tensor, the second while it is warm.
    """

    name = "slerp"
    title = "Spherical linear interpolation"
    paper = "Shoemake, SIGGRAPH 1985"
    max_agents = 1

    t: float = parameter(0.5, "where between the base (0) and the agent (1)", low=0, high=1)

    def measures(self) -> tuple[Measure, ...]:
        """One pass over the tensor."""
        return (InnerProducts(),)

    def blend(self, kernels: Kernels, block: Block, state: State) -> None:
        """See ``Method``."""
        cosine, t = float(state), self.t
        if abs(cosine) > _COLINEAR:
            kernels.combine(block.base, block.agents[0], np.float32(1) - np.float32(t), np.float32(t), block.out)
            kernels.keep_unchanged(block.base, block.agents, block.out)
            return
        angle = acos(cosine)
        weights = sin((1 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)
        kernels.combine(block.base, block.agents[0], np.float32(weights[0]), np.float32(weights[1]), block.out)
