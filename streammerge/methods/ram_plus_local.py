"""RAM+ with the overlap ratio of each tensor, as mergekit computes it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels.contract import Block, Kernels
from .base import State
from .ram_plus import OverlapScaled


@dataclass(frozen=True)
class RamPlusTensorLocal(OverlapScaled):
    """RAM+ whose overlap ratio is taken in each tensor by itself: mergekit's ramplus_tl, to the bit in float32.

    rho_i = shared_i / max(unique_i, epsilon) in float32, lambda_i = 1 + r * clip(rho_i, 0, alpha); shared deltas are
    divided by their count before they are added. Two passes over each tensor, the second while it is warm.
    """

    name = "ramplus_tl"
    title = "RAM+ with tensor-local ratios"
    paper = "mergekit 0.1.5, after arXiv:2601.13572"

    def scales(self, counts: NDArray[np.int64]) -> NDArray[np.float32]:
        """lambda_i in float32, step by step as mergekit rounds."""
        shared = (counts[:, 0] - counts[:, 1]).astype(np.float32)
        unique = np.maximum(counts[:, 1].astype(np.float32), np.float32(self.epsilon))
        nothing = np.where(shared > 0, np.float32(np.inf), np.float32(0))  # epsilon may be 0
        ratio = np.divide(shared, unique, out=nothing, where=unique > 0)
        clipped = np.clip(ratio, np.float32(0), np.float32(self.alpha))
        return (np.float32(1) + np.float32(self.r) * clipped).astype(np.float32, copy=False)

    def blend(self, kernels: Kernels, block: Block, state: State) -> None:
        """See ``Method``."""
        scales = self.scales(state)
        kernels.ram_divide_first(block.base, block.agents, self.epsilon, scales, block.out, block.tally)
