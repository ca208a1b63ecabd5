"""Which chunk is next: hands chunks to workers, puts together what they measured, concludes passes.

Chunks go out in the order of the bytes on disk, a tensor's next pass before a new tensor, so that it finds its
pages warm. What blocks measured is added up so that neither the order nor the chunk can change a bit.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jobs import TensorJob
from .methods.base import Extent, Measure, State
from .planning import Plan
from .tree import Tree


@dataclass
class Running:
    """One job on its way through its passes; ``number`` is its place in the plan."""

    number: int
    job: TensorJob
    passes: Sequence[Measure | None]  # None is the blend
    state: State
    position: int = 0
    left: int = 0
    measured: NDArray[Any] | Tree | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One chunk of one pass: elements ``start`` to ``stop`` of the job's tensor; ``first_block`` is the number of its
    first block among all blocks of the pass."""

    running: Running
    start: int
    stop: int
    first_block: int


class Schedule:
    """Hands out chunks to workers and concludes passes. Thread-safe."""

    def __init__(self, plan: Plan, jobs: Sequence[Running], is_done: Callable[[int, int], bool]) -> None:
        """``is_done(number, start)`` says whether the result of a chunk is written already."""
        self._plan = plan
        self._is_done = is_done
        self._waiting = deque(jobs)
        self._ready: deque[Task] = deque()
        self._unfinished = 0
        self._condition = threading.Condition()
        self.stopped = False

    def take(self) -> Task | None:
        """The next chunk, or None when there will be no more."""
        with self._condition:
            while not self.stopped:
                if self._ready:
                    return self._ready.popleft()
                if self._waiting:
                    self._begin(self._waiting.popleft())
                elif self._unfinished == 0:
                    return None
                else:
                    self._condition.wait()
            return None

    def peek(self) -> Task | None:
        """The chunk that will be taken next, if it is known: for reading ahead."""
        with self._condition:
            if self._ready:
                return self._ready[0]
            return next(iter(self._tasks(self._waiting[0])), None) if self._waiting else None

    def done(self, task: Task, numbers: NDArray[Any] | None) -> bool:
        """A chunk is finished; ``numbers`` is what it measured. Returns whether it was the last of its job."""
        running = task.running
        with self._condition:
            if numbers is not None:
                self._collect(task, numbers)
            running.left -= 1
            if running.left == 0:
                self._conclude(running)
            self._condition.notify_all()
            return running.position == len(running.passes)

    def stop(self) -> None:
        """Hand out nothing more."""
        with self._condition:
            self.stopped = True
            self._condition.notify_all()

    def _begin(self, running: Running) -> None:
        """Put the chunks of a job's present pass at the front."""
        tasks = self._tasks(running)
        if not tasks:
            return
        if running.position == 0 and running.left == 0:
            self._unfinished += 1
        running.left = len(tasks)
        step = running.passes[running.position]
        measure = self._plan.measuring(running.job, step)
        if measure is not None:
            blocks = self._plan.blocks(running.job, step)
            sums = measure.kind == "sums"
            running.measured = Tree(measure.combine) if sums else storage(measure, blocks, len(self._plan.agents))
        self._ready.extendleft(reversed(tasks))

    def _tasks(self, running: Running) -> list[Task]:
        """The chunks of a job's present pass."""
        job, measure = running.job, running.passes[running.position]
        each = self._plan.blocks_of_chunk(job, measure)
        chunks = enumerate(self._plan.chunks(job, measure))
        left = (pair for pair in chunks if measure is not None or not self._is_done(running.number, pair[1][0]))
        return [Task(running, *chunk, number * each) for number, chunk in left]

    def _collect(self, task: Task, numbers: NDArray[Any]) -> None:
        measured, measure = task.running.measured, task.running.passes[task.running.position]
        if isinstance(measured, Tree):
            for number, row in enumerate(numbers, task.first_block):
                measured.add(number, row)
            return
        assert measured is not None and measure is not None
        if measure.kind == "counts":
            measured += numbers
        else:
            measured[task.first_block : task.first_block + len(numbers)] = numbers

    def _conclude(self, running: Running) -> None:
        measure = running.passes[running.position]
        if isinstance(running.measured, Tree):
            running.measured = running.measured.total()
        if measure is not None:
            assert running.measured is not None
            if self._plan.method.scope == "tensor":
                extent = Extent(running.job.name, running.job.elements, len(self._plan.agents))
                running.state = measure.conclude(running.state, running.measured, extent)
        following = running.position + 1
        while following < len(running.passes) and not _needed(running.passes[following], running.state):
            following += 1
        running.position = following
        if following < len(running.passes):
            self._begin(running)
        else:
            self._unfinished -= 1


def _needed(step: Measure | None, state: State) -> bool:
    return step is None or step.needed(state)


def storage(measure: Measure, blocks: int, agents: int) -> NDArray[Any]:
    """Zeros for what a pass measures in so many blocks: one array of counts, or a row for each block."""
    shape = measure.shape(agents)
    if measure.kind == "counts":
        return np.zeros(shape, np.int64)
    return np.zeros((blocks, *shape), np.float64 if measure.kind == "sums" else np.int64)
