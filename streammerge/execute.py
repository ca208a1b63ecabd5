"""Carries out a plan: the only place where bytes, float32 and methods meet.

    for each stage (a measure pass over the model; then, tensor by tensor, its passes and the blend):
        workers take chunks:  read -> decode -> measure or blend -> encode -> write
        the last chunk of a pass concludes it, and lets the next pass of that tensor begin

Each worker owns buffers for one chunk, allocated once; nothing else grows with the model. Chunks are handed out
in the order of the bytes on disk, a tensor's next pass before a new tensor, so that it finds its pages warm.
Not guaranteed: the order in which chunks are finished, and which of several errors is reported.
"""

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from .errors import Interrupted, NonFiniteError, OutputError
from .events import Advanced, Listener, PassStarted
from .formats.contract import Reader, Sink
from .kernels.contract import Kernels
from .methods.base import Extent, Measure, State
from .planning import Plan
from .schedule import Running, Schedule
from .worker import Outcome, Worker


@dataclass
class _Execution:
    plan: Plan
    kernels: Kernels
    sink: Sink
    listener: Listener
    stop: threading.Event

    def run(self) -> Outcome:
        plan, readers = self.plan, []
        with ExitStack() as stack:
            for model in (plan.base, *plan.agents):
                readers.append(model.reader(plan.io))
                stack.callback(readers[-1].close)
            for name, values in (plan.gguf.constants if plan.gguf else {}).items():
                self.sink.write(name, 0, values.view(np.uint8).ravel())
            workers = [Worker(plan, self.kernels, readers, self.sink) for _ in range(plan.memory.workers)]
            try:
                state = self._measure_model(workers)
                self._blend(workers, state)
            except (OutputError, NonFiniteError):
                _check(readers)  # an input that was cut or rewritten meanwhile explains either
                raise
            _check(readers)
        return _total([worker.outcome for worker in workers], state)

    def _measure_model(self, workers: Sequence[Worker]) -> State:
        """Measure passes over the whole model, each a stage of its own."""
        state: State = None
        if self.plan.method.scope != "model":
            return state
        jobs = [job for job in self.plan.jobs if job.action == "merge" and job.counted]
        for measure in self.plan.method.measures():
            if not measure.needed(state):
                continue
            self.listener(PassStarted(measure.title, self.plan.merged_input_bytes))
            stage = [Running(job, [measure], state) for job in jobs]
            self._stage(workers, stage)
            results = [running.measured for running in stage if running.measured is not None]
            total = np.add.accumulate(np.stack(results), axis=0)[-1]
            extent = Extent("", sum(job.elements for job in jobs), len(self.plan.agents))
            state = measure.conclude(state, total, extent)
        return state

    def _blend(self, workers: Sequence[Worker], state: State) -> None:
        local = self.plan.method.measures() if self.plan.method.scope == "tensor" else ()
        reading = self.plan.merged_input_bytes * (1 + len(local)) + self.plan.copied_bytes
        self.listener(PassStarted("merging", reading))
        merging: list[Measure | None] = [*local, None]
        stage = [Running(job, merging if job.action == "merge" else [None], state) for job in self.plan.jobs]
        self._stage(workers, stage)

    def _stage(self, workers: Sequence[Worker], jobs: Sequence[Running]) -> None:
        """Let all workers loose on these jobs and wait. Raises the first error, or Interrupted."""
        schedule = Schedule(self.plan, jobs)
        errors: list[BaseException] = []

        def work(worker: Worker) -> None:
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


def _check(readers: Sequence[Reader]) -> None:
    for reader in readers:
        reader.check()


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
