"""Which statistics are shown, in one list: table, JSON and page take them from here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .numbers import OfAgent, OfPair
from .text import number, share

Of = TypeVar("Of", OfAgent, OfPair)


@dataclass(frozen=True, slots=True)
class Field(Generic[Of]):
    """One statistic: its key in JSON, what a column is called (short), what it means, its value and how it is written.

    ``low`` and ``high`` are the ends of its colour scale, None where the data sets them.
    """

    key: str
    title: str
    meaning: str
    value: Callable[[Of], Any]
    write: Callable[[Any], str] = share
    low: float | None = 0.0
    high: float | None = None


AGENT: tuple[Field[OfAgent], ...] = (
    Field("density", "density", "changed / all weights", lambda a: a.density),
    Field("update_sparsity", "update sparsity", "share with |Δ| ≤ 1e-5 (arXiv:2505.11711)",
          lambda a: a.update_sparsity, high=1.0),
    Field("unique_share", "unique", "of the changed weights those that no other agent changed",
          lambda a: a.unique_share, high=1.0),
    Field("overlap_ratio", "overlap ratio", "shared / unique changed weights, rho of RAM+", lambda a: a.overlap_ratio,
          number),
    Field("scale", "RAM+ scale", "factor on the unique part that RAM+ takes from the overlap ratio", lambda a: a.scale,
          lambda value: number(value, 4), 1.0),
    Field("relative_norm", "|Δ| / |base|", "norm of the delta / norm of the base", lambda a: a.relative_norm, number),
    Field("largest", "largest |Δ|", "largest change of a weight", lambda a: a.largest, number),
)  # fmt: skip

PAIR: tuple[Field[OfPair], ...] = (
    Field("overlap", "overlap", "changed by both / changed by either", lambda p: p.overlap),
    Field("sign_agreement", "sign agreement", "of what both changed the share that moved the same way; 50 % is chance",
          lambda p: p.sign_agreement, high=1.0),
    Field("cosine", "cosine", "of the angle between the deltas", lambda p: p.cosine, number, -1.0, 1.0),
)  # fmt: skip
