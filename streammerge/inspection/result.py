"""What an inspection found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import budget
from ..jobs import TensorJob
from ..ledger import Outcome
from ..planning import Plan
from ..report import model_name
from .numbers import Numbers
from .observing import Columns, Row
from .places import Place, places_of


@dataclass(frozen=True, slots=True)
class Inspected:
    """One tensor that was compared."""

    name: str
    shape: tuple[int, ...]
    place: Place


@dataclass(frozen=True)
class Inspection:
    """Statistics of every tensor (``rows``, read-only) and of all ways to put them together.

    ``agents`` are names to show, unique; ``left_out`` says why a tensor was not compared. Times in seconds, sizes in
    bytes.
    """

    base: str
    agents: tuple[str, ...]
    epsilon: float
    tensors: tuple[Inspected, ...]
    rows: Row
    left_out: Mapping[str, str]
    seconds: float = 0.0
    bytes_read: int = 0
    peak: int = 0

    @property
    def columns(self) -> Columns:
        """Where numbers lie in a row."""
        return Columns(len(self.agents))

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Positions of every two agents."""
        return self.columns.pairs

    def pair_name(self, first: int, second: int) -> str:
        """How two agents are shown."""
        return f"{self.agents[first]} × {self.agents[second]}"  # noqa: RUF001

    @cached_property
    def total(self) -> Numbers:
        """Of all tensors together."""
        return self._sum(range(len(self.tensors)))

    @cached_property
    def matrices(self) -> Numbers:
        """Of all tensors that are no vectors."""
        return self._sum(i for i, tensor in enumerate(self.tensors) if len(tensor.shape) > 1)

    @property
    def each(self) -> Numbers:
        """Of every tensor, in the order of ``tensors``."""
        return Numbers(self.rows, self.columns)

    @cached_property
    def layers(self) -> dict[int | None, Numbers]:
        """By layer, in order; None, if there, is what lies outside the layers."""
        found = sorted({t.place.layer for t in self.tensors if t.place.layer is not None})
        outside: list[int | None] = [None] if any(t.place.layer is None for t in self.tensors) else []
        return {layer: self._where(layer=layer) for layer in (*found, *outside)}

    @cached_property
    def modules(self) -> dict[str, Numbers]:
        """By kind of module, those of the layers first."""
        ordered = sorted(self.tensors, key=lambda tensor: tensor.place.layer is None)
        return {module: self._where(module=module) for module in dict.fromkeys(t.place.module for t in ordered)}

    @cached_property
    def grid(self) -> tuple[list[int | None], list[str], list[list[int]]]:
        """Layers, modules, and for each layer the number of each module's cell, -1 where there is none."""
        layers, modules = list(self.layers), list(self.modules)
        number = {place: i for i, place in enumerate(dict.fromkeys(t.place for t in self.tensors))}
        return layers, modules, [[number.get(Place(layer, m), -1) for m in modules] for layer in layers]

    @cached_property
    def cells(self) -> Numbers:
        """By layer and module together, in the order of their numbers in ``grid``."""
        number = {place: i for i, place in enumerate(dict.fromkeys(t.place for t in self.tensors))}
        rows = np.zeros((len(number), self.columns.width))
        for tensor, row in zip(self.tensors, self.rows):
            cell = number[tensor.place]
            rows[cell] = self.columns.combine(rows[cell], row)
        return Numbers(rows, self.columns)

    def _where(self, **wanted: Any) -> Numbers:
        chosen = [i for i, t in enumerate(self.tensors) if all(getattr(t.place, k) == v for k, v in wanted.items())]
        return self._sum(chosen)

    def _sum(self, numbers: Any) -> Numbers:
        total = np.zeros(self.columns.width)
        for number in numbers:
            total = self.columns.combine(total, self.rows[number])
        return Numbers(total, self.columns)


def inspection_of(plan: Plan, outcome: Outcome, seconds: float) -> Inspection:
    """Name what the blend of a merge observed. The plan has an observer."""
    assert plan.observer is not None
    return make_inspection(plan, plan.observer.epsilon, outcome.observed, outcome.bytes_read, seconds)


def make_inspection(plan: Plan, epsilon: float, rows: Mapping[str, Row], bytes_read: int, seconds: float) -> Inspection:
    """Name what was observed: ``rows`` by tensor, those of ``plan`` that are counted."""
    names = [name for name in dict.fromkeys(job.name for job in plan.jobs) if name in rows]  # some take several jobs
    places = places_of(names)
    shapes = {job.name: job.shape for job in plan.jobs}
    stacked = np.zeros((len(names), Columns(len(plan.agents)).width))
    for number, name in enumerate(names):
        stacked[number] = rows[name]
    stacked.flags.writeable = False
    return Inspection(
        base=str(plan.recipe.base),
        agents=_names(plan.recipe.agents),
        epsilon=epsilon,
        tensors=tuple(Inspected(name, shapes[name], places[name]) for name in names),
        rows=stacked,
        left_out={job.name: _reason(job) for job in plan.jobs if job.name not in rows},
        seconds=seconds,
        bytes_read=bytes_read,
        peak=budget.peak(),
    )


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Short names where these are unique, else whole paths."""
    short = [model_name(path) for path in paths]
    return tuple(name if short.count(name) == 1 else str(path) for name, path in zip(short, paths))


def _reason(job: TensorJob) -> str:
    return job.reason if job.counted else "repeats the embedding, and is counted there"
