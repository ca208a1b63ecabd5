"""What follows from the rows that were observed. A number that does not exist, such as 0 / 0, is NaN."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..methods.ram_plus import RamPlus, overlap_ratio
from .observing import Columns, Row

Array = NDArray[np.float64]


def ratio(part: Array, whole: Array) -> Array:
    """part / whole, NaN where whole is 0."""
    out: Array = np.full(np.shape(part), np.nan)
    return np.divide(part, whole, out=out, where=np.asarray(whole) != 0)


@dataclass(frozen=True, slots=True)
class Numbers:
    """The statistics of rows (..., width): one, or one for each tensor or group; results have the leading shape."""

    rows: Row
    columns: Columns

    @property
    def elements(self) -> Array:
        """Weights that were compared."""
        return np.asarray(self.by_count.sum(axis=-1))

    @property
    def by_count(self) -> Array:
        """(..., agents + 1): weights that exactly 0, 1, 2 ... agents changed."""
        return self.columns.split(self.rows)[1]

    @property
    def shared(self) -> Array:
        """Weights that two agents or more changed."""
        return np.asarray(self.by_count[..., 2:].sum(axis=-1))

    @property
    def base_norm(self) -> Array:
        """Euclidean norm of the base."""
        return np.sqrt(self.columns.split(self.rows)[0][..., 0])

    @property
    def base_coarseness(self) -> Array:
        """Share of sampled values of the base that repeat a neighbour's."""
        whole = self.columns.split(self.rows)[0]
        return ratio(whole[..., 2], whole[..., 1])

    def agent(self, number: int) -> "OfAgent":
        """Of one agent."""
        return OfAgent(self, number)

    def pair(self, first: int, second: int) -> "OfPair":
        """Of two agents, first < second."""
        return OfPair(self, first, second)


@dataclass(frozen=True, slots=True)
class OfAgent:
    """Statistics of one agent."""

    all: Numbers
    number: int

    def _column(self, column: int) -> Array:
        return self.all.columns.split(self.all.rows)[2][..., self.number, column]

    @property
    def changed(self) -> Array:
        """Weights with |delta| > epsilon."""
        return self._column(0)

    @property
    def unique(self) -> Array:
        """Changed weights that no other agent changed."""
        return self._column(1)

    @property
    def density(self) -> Array:
        """changed / all."""
        return ratio(self.changed, self.all.elements)

    @property
    def unique_share(self) -> Array:
        """unique / changed."""
        return ratio(self.unique, self.changed)

    @property
    def update_sparsity(self) -> Array:
        """Share of weights with |delta| <= 1e-5, whatever epsilon is: arXiv:2505.11711, section 2 and its code."""
        return 1 - ratio(self._column(2), self.all.elements)

    @property
    def squares(self) -> Array:
        """Sum of the squares of the deltas."""
        return self._column(3)

    @property
    def norm(self) -> Array:
        """Euclidean norm of the delta."""
        return np.sqrt(self.squares)

    @property
    def relative_norm(self) -> Array:
        """Norm of the delta / norm of the base."""
        return ratio(self.norm, self.all.base_norm)

    @property
    def largest(self) -> Array:
        """Largest |delta|."""
        return self._column(4)

    @property
    def coarseness(self) -> Array:
        """Share of sampled values of the agent that repeat a neighbour's."""
        return ratio(self._column(5), self.all.columns.split(self.all.rows)[0][..., 1])

    @property
    def overlap_ratio(self) -> Array:
        """rho of RAM+: shared / unique, infinite without unique weights, 0 if nothing is changed."""
        counts = zip(np.ravel(self.changed), np.ravel(self.unique))
        ratios = [overlap_ratio(int(changed), int(unique)) for changed, unique in counts]
        return np.array(ratios).reshape(np.shape(self.changed))

    @property
    def scale(self) -> Array:
        """By what RAM+ with its default parameters multiplies the unique part, if this is all there is to count."""
        counts = np.stack([np.ravel(self.changed), np.ravel(self.unique)], axis=-1).astype(np.int64)
        return RamPlus().scales(counts).astype(np.float64).reshape(np.shape(self.changed))


@dataclass(frozen=True, slots=True)
class OfPair:
    """Statistics of two agents."""

    all: Numbers
    first: int
    second: int

    def _column(self, column: int) -> Array:
        agents = self.all.columns.agents
        place = self.first * (2 * agents - self.first - 1) // 2 + self.second - self.first - 1
        return self.all.columns.split(self.all.rows)[3][..., place, column]

    @property
    def both(self) -> Array:
        """Weights that both changed."""
        return self._column(0)

    @property
    def overlap(self) -> Array:
        """changed by both / changed by either."""
        either = self.all.agent(self.first).changed + self.all.agent(self.second).changed - self.both
        return ratio(self.both, either)

    @property
    def sign_agreement(self) -> Array:
        """Of the weights that both changed the share that moved the same way."""
        return ratio(self._column(1), self.both)

    @property
    def product(self) -> Array:
        """Inner product of the deltas."""
        return self._column(2)

    @property
    def cosine(self) -> Array:
        """Of the angle between the deltas; NaN where one of them is zero."""
        return ratio(self.product, self.all.agent(self.first).norm * self.all.agent(self.second).norm)
