"""Carries out a plan: the only place where bytes, float32 and methods meet.

    for each stage (a measure pass over the model; then, tensor by tensor, its passes and the blend):
        workers take chunks:  read -> decode -> measure or blend -> encode -> write
        the last chunk of a pass concludes it, and lets the next pass of that tensor begin

Each worker owns buffers for one chunk, allocated once; nothing else grows with the model. Chunks are handed out
in the order of the bytes on disk, a tensor's next pass before a new tensor, so that it finds its pages warm.
Not guaranteed: the order in which chunks are finished, and which of several errors is reported.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import Interrupted, NonFiniteError
from .events import Advanced, Listener, PassStarted
from .formats.contract import Bytes, Reader, Sink
from .formats.dtypes import DTYPES
from .kernels.contract import BLOCK, Block, Kernels
from .methods.base import Extent, Measure, State
from .planning import Plan, TensorJob, input_widths, output_width

Floats = NDArray[np.float32]


@dataclass
class Outcome:
    """What a run found out. ``tally`` (agents, 2): changed and unique weights of the counted tensors."""

    tally: NDArray[np.int64]
    state: State = None
    bytes_read: int = 0
    bytes_written: int = 0
    non_finite_inputs: int = 0
    non_finite_outputs: int = 0
    waiting: float = 0.0  # seconds that workers spent in reading and writing, together
    computing: float = 0.0  # seconds that they spent in kernels, together


@dataclass
class _Running:
    """One job on its way through its passes."""

    job: TensorJob
    passes: Sequence[Measure | None]  # None is the blend
    state: State
    position: int = 0
    left: int = 0
    measured: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class _Task:
    running: _Running
    start: int
    stop: int


class _Schedule:
    """Hands out chunks to workers and concludes passes. Thread-safe."""

    def __init__(self, plan: Plan, jobs: Sequence[_Running]) -> None:
        self._plan = plan
        self._waiting = deque(jobs)
        self._ready: deque[_Task] = deque()
        self._unfinished = 0
        self._condition = threading.Condition()
        self.stopped = False

    def take(self) -> _Task | None:
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

    def peek(self) -> _Task | None:
        """The chunk that will be taken next, if it is known: for reading ahead."""
        with self._condition:
            if self._ready:
                return self._ready[0]
            if self._waiting and (chunks := self._plan.chunks(self._waiting[0].job)):
                return _Task(self._waiting[0], *chunks[0])
            return None

    def done(self, task: _Task, numbers: NDArray[Any] | None) -> None:
        """A chunk is finished; ``numbers`` is what it measured."""
        running = task.running
        with self._condition:
            if numbers is not None:
                self._collect(task, numbers)
            running.left -= 1
            if running.left == 0:
                self._conclude(running)
            self._condition.notify_all()

    def stop(self) -> None:
        """Hand out nothing more."""
        with self._condition:
            self.stopped = True
            self._condition.notify_all()

    def _begin(self, running: _Running) -> None:
        """Put the chunks of a job's present pass at the front."""
        chunks = self._plan.chunks(running.job)
        if not chunks:
            return
        if running.position == 0 and running.left == 0:
            self._unfinished += 1
        running.left = len(chunks)
        running.measured = _storage(running, len(self._plan.agents))
        self._ready.extendleft(_Task(running, start, stop) for start, stop in reversed(chunks))

    def _collect(self, task: _Task, numbers: NDArray[Any]) -> None:
        measured, measure = task.running.measured, task.running.passes[task.running.position]
        assert measured is not None and measure is not None
        if measure.kind == "counts":
            measured += numbers
        else:
            first = task.start // BLOCK
            measured[first : first + len(numbers)] = numbers

    def _conclude(self, running: _Running) -> None:
        measure = running.passes[running.position]
        if measure is not None:
            assert running.measured is not None
            running.measured = _add_up(measure, running.measured)
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


def _storage(running: _Running, agents: int) -> NDArray[Any] | None:
    measure = running.passes[running.position]
    if measure is None:
        return None
    shape = measure.shape(agents)
    if measure.kind == "counts":
        return np.zeros(shape, np.int64)
    blocks = -(-running.job.elements // BLOCK)
    return np.zeros((blocks, *shape), np.float64 if measure.kind == "sums" else np.int64)


def _add_up(measure: Measure, measured: NDArray[Any]) -> NDArray[Any]:
    """Float sums of the blocks in index order; counts and rows of blocks as they are."""
    return np.add.accumulate(measured, axis=0)[-1] if measure.kind == "sums" else measured


class _Worker:
    """Carries chunks from read to write. All memory it will use is allocated here."""

    def __init__(self, execution: "_Execution") -> None:
        from .formats import codecs

        plan = execution.plan
        self._codecs = codecs
        self._run = execution
        chunk = plan.memory.chunk
        self._raw = [np.empty(chunk * width, np.uint8) for width in input_widths(plan.base, plan.agents, plan.jobs)]
        self._packed = np.empty(chunk * output_width(plan.jobs), np.uint8)
        self._base = np.empty(BLOCK, np.float32)
        self._agents = np.empty(len(plan.agents) * BLOCK, np.float32)
        self._out = np.empty(BLOCK, np.float32)
        self.outcome = Outcome(np.zeros((len(plan.agents), 2), np.int64))
        self._unused = np.zeros_like(self.outcome.tally)

    def carry(self, task: _Task) -> NDArray[Any] | None:
        """Take one chunk from read to write; returns what a measure pass found."""
        job = task.running.job
        if job.action == "merge":
            return self._merge(task)
        self._copy(job, task.start, task.stop)
        return None

    def _read(self, model: int, name: str, start: int, stop: int) -> Bytes:
        began = time.perf_counter()
        info = self._run.tensors[model][name]
        width = DTYPES[info.dtype].itemsize
        raw = self._run.readers[model].read(info, start * width, stop * width, self._raw[model])
        self.outcome.bytes_read += len(raw)
        self.outcome.waiting += time.perf_counter() - began
        return raw

    def _write(self, job: TensorJob, start: int, data: Bytes) -> None:
        began = time.perf_counter()
        self._run.sink.write(job.name, start * DTYPES[job.dtype].itemsize, data)
        self.outcome.bytes_written += len(data)
        self.outcome.waiting += time.perf_counter() - began

    def _release(self, models: int, name: str, start: int, stop: int) -> None:
        for model in range(models):
            info = self._run.tensors[model][name]
            width = DTYPES[info.dtype].itemsize
            self._run.readers[model].release(info, start * width, stop * width)

    def _merge(self, task: _Task) -> NDArray[Any] | None:
        running, job, plan = task.running, task.running.job, self._run.plan
        models = len(plan.agents) + 1
        raws = [self._read(model, job.name, task.start, task.stop) for model in range(models)]
        began = time.perf_counter()
        measure = running.passes[running.position]
        numbers = None if measure is None else _chunk_storage(measure, task, len(plan.agents))
        for offset in range(0, task.stop - task.start, BLOCK):
            count = min(BLOCK, task.stop - task.start - offset)
            block = self._decode(job, raws, task.start, offset, count, first_pass=running.position == 0)
            if measure is None:
                plan.method.blend(self._run.kernels, block, running.state)
                self._encode(job, block, raws[0], offset)
            else:
                assert numbers is not None
                target = numbers if measure.kind == "counts" else numbers[offset // BLOCK]
                measure.block(self._run.kernels, block, running.state, target)
        self.outcome.computing += time.perf_counter() - began
        if measure is None:
            packed = (task.stop - task.start) * DTYPES[job.dtype].itemsize
            self._write(job, task.start, self._packed[:packed])
        self._release(models, job.name, task.start, task.stop)
        return numbers

    def _decode(
        self, job: TensorJob, raws: Sequence[Bytes], start: int, offset: int, count: int, *, first_pass: bool
    ) -> Block:
        """One block of every model as float32. Non-finite inputs are counted in the first pass that sees them."""
        agents = self._agents[: len(self._run.plan.agents) * count].reshape(-1, count)
        rows = [self._base[:count], *agents]
        for model, raw in enumerate(raws):
            dtype = self._run.tensors[model][job.name].dtype
            width = DTYPES[dtype].itemsize
            found = self._codecs.decode(dtype, raw[offset * width : (offset + count) * width], rows[model])
            if found and first_pass:
                self._found_non_finite(job, model, rows[model], start + offset, found)
        tally = self.outcome.tally if job.counted else self._unused
        return Block(
            job.name, (start + offset) // BLOCK, start + offset, self._base[:count], agents, self._out[:count], tally
        )

    def _encode(self, job: TensorJob, block: Block, base_raw: Bytes, offset: int) -> None:
        width, count = DTYPES[job.dtype].itemsize, len(block.out)
        packed = self._packed[offset * width : (offset + count) * width]
        found = self._codecs.encode(job.dtype, block.out, packed)
        if job.dtype == job.source_dtype == "F64":  # decoding rounded: where nothing changed keep the base's bits
            begin = offset * width
            self._codecs.decode("F64", base_raw[begin : begin + count * width], self._base[:count])
            self._codecs.keep_base(block.out, self._base[:count], base_raw[begin : begin + count * width], packed)
        if found:
            self.outcome.non_finite_outputs += found
            if not self._run.plan.recipe.allow_non_finite:
                raise self._bad_output(job, block.out, packed, block.start)

    def _copy(self, job: TensorJob, start: int, stop: int) -> None:
        raw = self._read(0, job.name, start, stop)
        if job.action == "copy":
            self._write(job, start, raw)
        else:
            for offset in range(0, stop - start, BLOCK):
                count = min(BLOCK, stop - start - offset)
                block = self._decode(job, [raw], start, offset, count, first_pass=True)
                block.out[:] = block.base
                self._encode(job, block, raw, offset)
            self._write(job, start, self._packed[: (stop - start) * DTYPES[job.dtype].itemsize])
        self._release(1, job.name, start, stop)

    def _found_non_finite(self, job: TensorJob, model: int, row: Floats, start: int, found: int) -> None:
        self.outcome.non_finite_inputs += found
        if not self._run.plan.recipe.allow_non_finite:
            place = int(np.flatnonzero(~np.isfinite(row))[0])
            path = (self._run.plan.base, *self._run.plan.agents)[model].path
            raise NonFiniteError(
                f"{path}: tensor {job.name!r} holds {row[place]} at index {_index(job, start + place)}; "
                "repair the checkpoint, or go on with --allow-non-finite"
            )

    def _bad_output(self, job: TensorJob, values: Floats, packed: Bytes, start: int) -> NonFiniteError:
        check = np.empty(len(values), np.float32)
        self._codecs.decode(job.dtype, packed, check)
        place = int(np.flatnonzero(~np.isfinite(check))[0])
        where = f"{self._run.plan.recipe.output}: tensor {job.name!r}, index {_index(job, start + place)}"
        if np.isfinite(values[place]):
            return NonFiniteError(
                f"{where}: {values[place]:g} is too large for {job.dtype}; choose another --dtype, such as bf16"
            )
        return NonFiniteError(f"{where}: the result is {values[place]}; to go on all the same: --allow-non-finite")

    def read_ahead(self, task: _Task) -> None:
        """Hint at what the next chunk will read."""
        models = len(self._run.readers) if task.running.job.action == "merge" else 1
        for model in range(models):
            info = self._run.tensors[model][task.running.job.name]
            width = DTYPES[info.dtype].itemsize
            self._run.readers[model].ahead(info, task.start * width, task.stop * width)


def _chunk_storage(measure: Measure, task: _Task, agents: int) -> NDArray[Any]:
    shape = measure.shape(agents)
    if measure.kind == "counts":
        return np.zeros(shape, np.int64)
    blocks = -(-(task.stop - task.start) // BLOCK)
    return np.zeros((blocks, *shape), np.float64 if measure.kind == "sums" else np.int64)


def _index(job: TensorJob, flat: int) -> list[int]:
    return [int(i) for i in np.unravel_index(flat, job.shape)] if job.shape else []


@dataclass
class _Execution:
    plan: Plan
    kernels: Kernels
    sink: Sink
    listener: Listener
    stop: threading.Event
    readers: list[Reader] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tensors = [model.tensors for model in (self.plan.base, *self.plan.agents)]

    def run(self) -> Outcome:
        workers: list[_Worker] = []
        with ExitStack() as stack:
            for model in (self.plan.base, *self.plan.agents):
                self.readers.append(model.reader(self.plan.io))
                stack.callback(self.readers[-1].close)
            workers = [_Worker(self) for _ in range(self.plan.memory.workers)]
            state = self._measure_model(workers)
            self._blend(workers, state)
        return _total([worker.outcome for worker in workers], state)

    def _measure_model(self, workers: Sequence[_Worker]) -> State:
        """Measure passes over the whole model, each a stage of its own."""
        state: State = None
        if self.plan.method.scope != "model":
            return state
        jobs = [job for job in self.plan.jobs if job.action == "merge" and job.counted]
        for measure in self.plan.method.measures():
            if not measure.needed(state):
                continue
            self.listener(PassStarted(measure.title, self.plan.merged_input_bytes))
            stage = [_Running(job, [measure], state) for job in jobs]
            self._stage(workers, stage)
            results = [running.measured for running in stage if running.measured is not None]
            total = np.add.accumulate(np.stack(results), axis=0)[-1]
            extent = Extent("", sum(job.elements for job in jobs), len(self.plan.agents))
            state = measure.conclude(state, total, extent)
        return state

    def _blend(self, workers: Sequence[_Worker], state: State) -> None:
        local = self.plan.method.measures() if self.plan.method.scope == "tensor" else ()
        reading = self.plan.merged_input_bytes * (1 + len(local)) + self.plan.copied_bytes
        self.listener(PassStarted("merging", reading))
        merging: list[Measure | None] = [*local, None]
        stage = [_Running(job, merging if job.action == "merge" else [None], state) for job in self.plan.jobs]
        self._stage(workers, stage)

    def _stage(self, workers: Sequence[_Worker], jobs: Sequence[_Running]) -> None:
        """Let all workers loose on these jobs and wait. Raises the first error, or Interrupted."""
        schedule = _Schedule(self.plan, jobs)
        errors: list[BaseException] = []

        def work(worker: _Worker) -> None:
            try:
                while (task := schedule.take()) is not None:
                    following = schedule.peek()
                    if following is not None:
                        worker.read_ahead(following)
                    read, written = worker.outcome.bytes_read, worker.outcome.bytes_written
                    schedule.done(task, worker.carry(task))
                    self.listener(Advanced(worker.outcome.bytes_read - read, worker.outcome.bytes_written - written))
            except BaseException as error:
                errors.append(error)
                schedule.stop()

        threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(timeout=0.1)
                    if self.stop.is_set():
                        schedule.stop()
        except BaseException:
            schedule.stop()
            for thread in threads:
                thread.join()
            raise
        if self.stop.is_set():
            raise Interrupted("interrupted; nothing was written under the final name")
        if errors:
            raise errors[0]


def _total(outcomes: Sequence[Outcome], state: State) -> Outcome:
    first = outcomes[0]
    for other in outcomes[1:]:
        first.tally += other.tally
        first.bytes_read += other.bytes_read
        first.bytes_written += other.bytes_written
        first.non_finite_inputs += other.non_finite_inputs
        first.non_finite_outputs += other.non_finite_outputs
        first.waiting += other.waiting
        first.computing += other.computing
    first.state = state
    return first


def execute(
    plan: Plan,
    kernels: Kernels,
    sink: Sink,
    listener: Listener = lambda event: None,
    stop: threading.Event | None = None,
) -> Outcome:
    """Carry out a plan into a sink. ``stop`` may be set from a signal handler or another thread.

    Raises FormatError, OutputError, NonFiniteError, Interrupted.
    """
    return _Execution(plan, kernels, sink, listener, stop or threading.Event()).run()
