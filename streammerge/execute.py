"""Carries out a plan: the only place where bytes, float32 and methods meet.

    for each stage (a measure pass over the model; then, tensor by tensor, its passes and the blend):
        workers take chunks:  read -> decode -> measure or blend -> encode -> checksum -> write -> ledger
        the last chunk of a pass concludes it, and lets the next pass of that tensor begin

What the ledger has already, from a run that was interrupted, is not made again.

Each worker owns buffers for one chunk, allocated once; nothing else grows with the model. Chunks are handed out
in the order of the bytes on disk, a tensor's next pass before a new tensor, so that it finds its pages warm.
Not guaranteed: the order in which chunks are finished, and which of several errors is reported.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from . import checksum
from .errors import Interrupted, NonFiniteError, OutputError
from .events import Advanced, Listener, PassStarted
from .formats.contract import Bytes, Reader, Sink
from .jobs import TensorJob
from .kernels.contract import Kernels
from .ledger import Ledger, Outcome
from .methods.base import Extent, Measure, State
from .planning import Plan
from .schedule import Running, Schedule, Task
from .worker import Carried, Worker


class NoSink:
    """For passes that write nothing."""

    def write(self, name: str, start: int, data: Bytes) -> None:
        """See ``Sink``."""
        raise AssertionError(name)

    def sync(self) -> None:
        """See ``Sink``."""

    def close(self) -> None:
        """See ``Sink``."""


@dataclass
class _Execution:
    plan: Plan
    kernels: Kernels
    sink: Sink
    ledger: Ledger
    listener: Listener
    stop: threading.Event

    def run(self) -> Outcome:
        with self._workers() as workers:
            for name, values in (self.plan.gguf.constants if self.plan.gguf else {}).items():
                raw = values.view(np.uint8).ravel()
                self.sink.write(name, 0, raw)
                self.ledger.add_constant(name, checksum.digest(raw.data))
            state = self._measure_model(workers)
            self._blend(workers, state)
        self.ledger.total.state = state
        return self.ledger.total

    def measure_tensors(self) -> Outcome:
        """The method's measure passes over every tensor that is counted, and no blend."""
        jobs = [(n, job) for n, job in enumerate(self.plan.jobs) if job.action == "merge" and job.counted]
        measures = self.plan.method.measures()
        with self._workers() as workers:
            self.listener(PassStarted(measures[0].title, self.plan.input_bytes(job for _, job in jobs)))
            stage = [Running(number, job, measures, None) for number, job in jobs]
            self._stage(workers, stage)
        self.ledger.total.state = {running.job.name: running.state for running in stage}
        return self.ledger.total

    @contextmanager
    def _workers(self) -> Iterator[list[Worker]]:
        plan, readers = self.plan, list[Reader]()
        with ExitStack() as stack:
            for model in (plan.base, *plan.agents):
                readers.append(model.reader(plan.io))
                stack.callback(readers[-1].close)
            try:
                yield stack.enter_context(self._open_workers(readers))
            except (OutputError, NonFiniteError):
                for reader in readers:
                    reader.check()  # an input that was cut or rewritten meanwhile explains either
                raise

    @contextmanager
    def _open_workers(self, readers: Sequence[Reader]) -> Iterator[list[Worker]]:
        plan = self.plan
        if plan.placement.is_processor:
            yield [Worker(plan, self.kernels, readers, self.sink) for _ in range(plan.memory.workers)]
            return
        from .device.worker import open_workers

        with open_workers(plan, self.kernels, readers, self.sink) as workers:
            yield workers

    def _measure_model(self, workers: Sequence[Worker]) -> State:
        """Measure passes over the whole model, each a stage of its own."""
        state: State = None
        if self.plan.method.scope != "model":
            return state
        jobs = [(n, job) for n, job in enumerate(self.plan.jobs) if job.action == "merge" and job.counted]
        for index, measure in enumerate(self.plan.method.measures()):
            if not measure.needed(state):
                continue
            unknown = [(n, job) for n, job in jobs if self.ledger.measured(index, job) is None]
            stage = [Running(n, job, [self.plan.method_of(job).measures()[index]], state) for n, job in unknown]
            if stage:
                self.listener(PassStarted(measure.title, self.plan.input_bytes(running.job for running in stage)))
                self._stage(workers, stage, partial(self._measured, index))
            results = [self.ledger.measured(index, job) for _, job in jobs]
            total = np.add.accumulate(np.stack([found for found in results if found is not None]), axis=0)[-1]
            extent = Extent("", sum(job.elements for _, job in jobs), len(self.plan.agents))
            state = measure.conclude(state, total, extent)
        return state

    def _measured(self, index: int, running: Running) -> None:
        assert isinstance(running.measured, np.ndarray)
        self.ledger.add_measured(index, running.job.name, running.measured)

    def _blend(self, workers: Sequence[Worker], state: State) -> None:
        left = [(number, job) for number, job in enumerate(self.plan.jobs) if not self.ledger.is_finished(number)]
        stage = [Running(number, job, [*self._local(job), None], state) for number, job in left]
        reading = self.plan.input_bytes(running.job for running in stage for _ in running.passes)
        self.listener(PassStarted("merging", reading))
        self._stage(workers, stage, self._blended)

    def _blended(self, running: Running) -> None:
        if isinstance(running.measured, np.ndarray) and self.plan.measuring(running.job, None) is not None:
            self.ledger.total.observed[running.job.name] = running.measured

    def _local(self, job: TensorJob) -> tuple[Measure, ...]:
        """Measure passes over this tensor alone."""
        merged = job.action == "merge" and self.plan.method.scope == "tensor"
        return self.plan.method_of(job).measures() if merged else ()

    def _stage(
        self,
        workers: Sequence[Worker],
        jobs: Sequence[Running],
        concluded: Callable[[Running], None] = lambda running: None,
    ) -> None:
        """Let all workers loose on these jobs and wait; ``concluded`` is told of each job that is through.
        Raises the first error, or Interrupted."""
        schedule = Schedule(self.plan, jobs, self.ledger.is_done)
        errors: list[BaseException] = []

        def work(worker: Worker) -> None:
            try:
                while (task := schedule.take()) is not None:
                    following = schedule.peek()
                    if following is not None:
                        worker.read_ahead(following)
                    carried = worker.carry(task)
                    self._enter(task, carried)
                    if schedule.done(task, carried.numbers):
                        concluded(task.running)
                    self.listener(Advanced(carried.found.bytes_read, carried.found.bytes_written))
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
        if errors:
            raise errors[0]
        if self.stop.is_set():
            raise Interrupted("interrupted; nothing was written under the final name")

    def _enter(self, task: Task, carried: Carried) -> None:
        """What is done goes into the ledger, once it is written."""
        self.ledger.count(carried.found)
        running = task.running
        if running.passes[running.position] is None:
            self.ledger.add(running.number, task.start, task.stop, carried.digests, carried.found)


def execute(
    plan: Plan,
    kernels: Kernels,
    sink: Sink,
    listener: Listener = lambda event: None,
    stop: threading.Event | None = None,
    ledger: Ledger | None = None,
) -> Outcome:
    """Carry out a plan into a sink, as far as ``ledger`` says that it is not done. ``stop`` may be set from a signal
    handler or another thread.

    Raises FormatError, OutputError, NonFiniteError, Interrupted.
    """
    return _Execution(plan, kernels, sink, ledger or Ledger(plan), listener, stop or threading.Event()).run()


def measure_tensors(
    plan: Plan,
    kernels: Kernels,
    listener: Listener = lambda event: None,
    stop: threading.Event | None = None,
) -> Outcome:
    """Carry out the measure passes of a plan, tensor by tensor, and write nothing. ``state`` of the outcome: by the
    name of the tensor what the last pass concluded.

    Raises FormatError, NonFiniteError, Interrupted.
    """
    return _Execution(plan, kernels, NoSink(), Ledger(plan), listener, stop or threading.Event()).measure_tensors()
