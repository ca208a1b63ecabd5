"""Chunks of made-up values on their way through a worker: to load what is loaded late, and to measure."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NonFiniteError
from ..formats import codecs
from ..formats.contract import Bytes
from ..formats.dtypes import DTYPES
from ..jobs import TensorJob
from ..methods.base import Extent, Measure, State
from ..planning import Plan
from ..schedule import Running, Task
from ..tree import Tree
from ..worker import Worker


def kinds(plan: Plan) -> dict[TensorJob, int]:
    """The largest merged tensor of each kind, and how many weights all of its kind have together."""
    largest: dict[object, TensorJob] = {}
    weights: dict[object, int] = {}
    for job in plan.jobs:
        if job.action == "merge":
            kind = plan.kind(job)[:-1]  # parameters that vary change little
            known = largest.setdefault(kind, job)
            largest[kind] = max(known, job, key=lambda one: one.elements)
            weights[kind] = weights.get(kind, 0) + job.elements
    return {largest[kind]: weights[kind] for kind in largest}


def made_up(plan: Plan, job: TensorJob) -> list[Bytes]:
    """The first chunk of a tensor, with values as weights have them, for base and agents, of which each changed every
    sixth or so."""
    start, stop = plan.chunks(job)[0]
    count = stop - start
    random = np.random.default_rng(0)
    base = random.standard_normal(count, np.float32) * np.float32(0.02)
    raws = [_encoded(plan.base.tensors[job.name].dtype, base)]
    for agent in plan.agents:
        moved = np.where(random.random(count, np.float32) < 1 / 6, base + np.float32(1e-3), base)
        raws.append(_encoded(agent.tensors[job.name].dtype, moved))
    return raws


def _encoded(dtype: str, values: NDArray[np.float32]) -> Bytes:
    raw = np.empty(values.size * DTYPES[dtype].itemsize, np.uint8)
    codecs.encode(dtype, values, raw)
    return raw


def carry(plan: Plan, job: TensorJob, raws: Sequence[Bytes], worker: Worker) -> None:
    """All passes over the first chunk, taken for the whole tensor. A result that is not finite is no matter here."""
    start, stop = plan.chunks(job)[0]
    extent = Extent(job.name, stop - start, len(plan.agents))
    running = Running(0, job, [*plan.method_of(job).measures(), None], None)
    with suppress(NonFiniteError):
        for position, measure in enumerate(running.passes):
            running.position = position
            if measure is None or measure.needed(running.state):
                numbers, _ = worker.compute(Task(running, start, stop, 0), worker.filled(raws))
                if measure is not None:
                    running.state = _concluded(measure, running.state, numbers, extent)


def _concluded(measure: Measure, state: State, numbers: Any, extent: Extent) -> State:
    if measure.kind == "sums":
        tree = Tree(measure.combine)
        for number, row in enumerate(numbers):
            tree.add(number, row)
        numbers = tree.total()
    return measure.conclude(state, numbers, extent)


def seconds(plan: Plan, workers: Sequence[Worker]) -> float:
    """How long all workers together compute at the whole model, from a chunk of each kind of tensor."""
    total = 0.0
    for job, weights in kinds(plan).items():
        start, stop = plan.chunks(job)[0]
        raws = made_up(plan, job)
        carry(plan, job, raws, workers[0])  # the first time is not like others
        with ThreadPoolExecutor(len(workers)) as pool:
            began = time.perf_counter()
            list(pool.map(partial(carry, plan, job, raws), workers))
        total += (time.perf_counter() - began) * weights / ((stop - start) * len(workers))
    return total
