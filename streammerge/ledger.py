"""What is done of a run: digests of what was written, what was counted in it, and so what is left to do.

A tensor in flight has an entry for each chunk, a finished one a single entry: so it does not grow with the model.
With a journal every entry is written there, too, and a ledger can begin with those of an earlier run.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checksum
from .errors import OutputError
from .jobs import TensorJob
from .journal import Journal, Record
from .methods.base import State
from .planning import Plan


@dataclass
class Outcome:
    """What a run or a chunk found out. ``tally`` (agents, 2): changed and unique weights of counted tensors;
    ``observed``: of every tensor that was blended what was observed in it, for --report."""

    tally: NDArray[np.int64]
    state: State = None
    observed: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_written: int = 0
    non_finite_inputs: int = 0
    non_finite_outputs: int = 0
    waiting: float = 0.0  # seconds that workers spent in reading and writing, together
    computing: float = 0.0  # seconds that they spent in kernels, together

    def add(self, other: "Outcome") -> None:
        """Add the numbers of another part."""
        self.tally += other.tally
        self.bytes_read += other.bytes_read
        self.bytes_written += other.bytes_written
        self.non_finite_inputs += other.non_finite_inputs
        self.non_finite_outputs += other.non_finite_outputs
        self.waiting += other.waiting
        self.computing += other.computing


@dataclass(frozen=True, slots=True)
class Entry:
    """Finished segments of a job: ``count`` of them from ``first``, their digests one after another (of a ``whole``
    tensor the digest of these), and what was counted in them."""

    first: int
    count: int
    digests: bytes
    tally: NDArray[np.int64]
    non_finite: tuple[int, int]
    whole: bool = False

    def to_record(self, job: int) -> Record:
        """For the journal."""
        numbers = {"tally": self.tally.tolist(), "non_finite": self.non_finite, "digests": self.digests.hex()}
        return {"job": job, "segments": [self.first, self.count], "whole": self.whole, **numbers}


def _entry(record: Record, job: TensorJob, agents: int) -> Entry | None:
    """What a record tells of a job; None if no run can have written it."""
    try:
        digests, whole = bytes.fromhex(record["digests"]), record["whole"]
        (first, count), (inputs, outputs) = record["segments"], record["non_finite"]
        possible = (
            _are_counts([first, count], (2,), job.segments)
            and _are_counts([inputs, outputs], (2,), (agents + 1) * job.elements)
            and _are_counts(record["tally"], (agents, 2), job.elements)
            and (count == job.segments if whole else 0 < count <= job.segments - first)
            and len(digests) == (1 if whole else count) * checksum.SIZE
        )
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
    return Entry(first, count, digests, np.array(record["tally"]), (inputs, outputs), bool(whole)) if possible else None


def _are_counts(numbers: Any, shape: tuple[int, ...], most: int) -> bool:
    """Whether plain data are integers from 0 to ``most`` in this shape. Raises ValueError where they have none."""
    found = np.array(numbers)
    return found.shape == shape and found.dtype == np.int64 and bool(((found >= 0) & (found <= most)).all())


@dataclass
class _Flight:
    """A tensor that is not finished: its entries by first segment, and how many segments these have."""

    entries: dict[int, Entry] = field(default_factory=dict)
    segments: int = 0

    def add(self, entry: Entry) -> None:
        self.entries[entry.first] = entry
        self.segments += entry.count

    def is_seamless(self) -> bool:
        """Whether each entry begins where the one before it ends."""
        stops = accumulate(self.entries[first].count for first in sorted(self.entries))
        return all(first == stop for first, stop in zip(sorted(self.entries), chain((0,), stops)))

    def landed(self) -> Entry:
        """One entry for the whole tensor."""
        entries = [self.entries[first] for first in sorted(self.entries)]
        digest = checksum.digest(b"".join(entry.digests for entry in entries))
        inputs, outputs = (sum(entry.non_finite[side] for entry in entries) for side in (0, 1))
        tally = np.sum([entry.tally for entry in entries], axis=0)
        return Entry(0, self.segments, digest, tally, (inputs, outputs), True)


class Ledger:
    """What is done of the jobs of a plan, by their number in ``plan.jobs``. Thread-safe."""

    def __init__(self, plan: Plan, earlier: Iterable[Record] = ()) -> None:
        """``earlier`` is the journal of an interrupted run of the same plan. Its chunks may have had another size: a
        tensor in flight whose chunks were cut otherwise than now is made anew."""
        self.total = Outcome(np.zeros((len(plan.agents), 2), np.int64))
        self.journal: Journal | None = None
        self._plan = plan
        self._lock = threading.Lock()
        self._flights: dict[int, _Flight] = {}
        self._finished: dict[int, Entry] = {}
        self._constants: dict[str, bytes] = {}
        self._measured: dict[tuple[int, str], NDArray[np.int64]] = {}
        nothing = Entry(0, 0, checksum.digest(b""), np.zeros_like(self.total.tally), (0, 0), True)
        self._finished.update({number: nothing for number, job in enumerate(plan.jobs) if not job.elements})
        for record in earlier:
            self._restore(record)
        self._flights = {job: flight for job, flight in self._flights.items() if self._is_cut_as_now(job, flight)}
        for _, entry in self._entries():
            self.total.tally += entry.tally
            self.total.non_finite_inputs += entry.non_finite[0]
            self.total.non_finite_outputs += entry.non_finite[1]

    def is_done(self, job: int, start: int) -> bool:
        """Whether the chunk that begins at element ``start`` need not be made."""
        first = self._plan.jobs[job].segment_at(start)
        return job in self._finished or (job in self._flights and first in self._flights[job].entries)

    def is_finished(self, job: int) -> bool:
        """Whether the whole tensor is written."""
        return job in self._finished

    def add(self, job: int, start: int, stop: int, digests: bytes, found: Outcome) -> None:
        """A chunk is written, and that is what was found in it. Raises OutputError if the journal cannot be written."""
        made = self._plan.jobs[job]
        bad = (found.non_finite_inputs, found.non_finite_outputs)
        count = -(-(stop - start) // made.segment)
        entry = Entry(made.segment_at(start), count, digests, found.tally, bad)
        with self._lock:
            self._add(job, entry)
        self._write(entry.to_record(job))

    def measured(self, measure: int, job: TensorJob) -> NDArray[np.int64] | None:
        """What a measure pass over the model found in a tensor, if it is known."""
        found = self._measured.get((measure, job.name))
        shape = self._plan.method_of(job).measures()[measure].shape(len(self._plan.agents))
        return found if found is not None and _are_counts(found, shape, job.elements) else None

    def add_measured(self, measure: int, tensor: str, numbers: NDArray[np.int64]) -> None:
        """A measure pass over the model is through with a tensor. Raises OutputError if that cannot be written."""
        self._measured[measure, tensor] = numbers
        self._write({"measured": [measure, tensor], "numbers": numbers.tolist()})

    def add_constant(self, name: str, digests: bytes) -> None:
        """A tensor that comes from no checkpoint is written."""
        self._constants[name] = checksum.digest(digests)

    def count(self, found: Outcome) -> None:
        """Add what was found in a chunk of any pass to the total."""
        with self._lock:
            self.total.add(found)

    @property
    def share(self) -> float:
        """How much of the output is written, from 0 to 1."""
        sizes = [job.segment for job in self._plan.jobs]
        done = sum(entry.count * sizes[job] for job, entry in self._entries())
        return done / sum(job.segments * job.segment for job in self._plan.jobs)

    def checksums(self) -> dict[str, str]:
        """The checksum of every tensor of the output, by its name. Raises OutputError if one is not whole."""
        parts: dict[str, dict[int, bytes]] = {name: {0: digest} for name, digest in self._constants.items()}
        for number, job in enumerate(self._plan.jobs):
            if number not in self._finished:
                raise OutputError(f"tensor {job.name!r} is not whole: a defect of streammerge; please report it")
            name, first = (job.target.name, job.target.first) if job.target else (job.name, 0)
            parts.setdefault(name, {})[first + job.start] = self._finished[number].digests
        return {name: checksum.stacked([digest for _, digest in sorted(of.items())]) for name, of in parts.items()}

    @property
    def is_empty(self) -> bool:
        """Whether nothing is written yet."""
        return not self._flights and not any(entry.count for entry in self._finished.values())

    def measurements(self) -> Iterator[Record]:
        """What measure passes over the model found, as records of a journal."""
        for (measure, tensor), numbers in self._measured.items():
            yield {"measured": [measure, tensor], "numbers": numbers.tolist()}

    def records(self) -> Iterator[Record]:
        """Everything, as records of a journal."""
        yield from self.measurements()
        for job, entry in self._entries():
            yield entry.to_record(job)

    def _entries(self) -> Iterator[tuple[int, Entry]]:
        yield from self._finished.items()
        for job, flight in self._flights.items():
            yield from ((job, entry) for entry in flight.entries.values())

    def _add(self, job: int, entry: Entry) -> None:
        flight = self._flights.setdefault(job, _Flight())
        flight.add(entry)
        if flight.segments == self._plan.jobs[job].segments and flight.is_seamless():
            self._finished[job] = self._flights.pop(job).landed()

    def _restore(self, record: Record) -> None:
        """Take over a record, unless it is one that no run can have written: then that work is done anew."""
        if "measured" in record:
            self._restore_measured(record)
        elif type(job := record.get("job")) is int and 0 <= job < len(self._plan.jobs) and job not in self._finished:
            entry = _entry(record, self._plan.jobs[job], len(self._plan.agents))
            if entry is None or (job in self._flights and entry.first in self._flights[job].entries):
                return
            if entry.whole:
                self._flights.pop(job, None)
                self._finished[job] = entry
            else:
                self._add(job, entry)

    def _restore_measured(self, record: Record) -> None:
        with suppress(KeyError, OverflowError, TypeError, ValueError):
            measure, tensor = record["measured"]
            numbers = np.array(record["numbers"])
            if numbers.dtype == np.int64:
                self._measured[measure, tensor] = numbers

    def _is_cut_as_now(self, job: int, flight: _Flight) -> bool:
        made = self._plan.jobs[job]
        chunks = {made.segment_at(start): -(-(stop - start) // made.segment) for start, stop in self._plan.chunks(made)}
        return all(chunks.get(entry.first) == entry.count for entry in flight.entries.values())

    def _write(self, record: Record) -> None:
        if self.journal is not None:
            self.journal.append(record)
