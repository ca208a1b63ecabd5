"""One worker: carries chunks from read to write, in buffers that are allocated once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from . import checksum
from .demand import encoded_size, input_widths, output_width, piece_size
from .errors import NonFiniteError
from .formats import codecs
from .formats.contract import Bytes, Reader, Sink
from .formats.dtypes import DTYPES
from .jobs import TensorJob
from .kernels.contract import BLOCK, Block, Kernels
from .kernels.stored import Stored
from .ledger import Outcome
from .methods.base import Measure
from .planning import Plan
from .schedule import Task, storage

if TYPE_CHECKING:
    from .gguf.encode import Encoder
    from .gguf.output import GgufOutput

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Carried:
    """What became of a chunk: what was found out, the numbers of a measure pass or the digests of what was written."""

    found: Outcome
    numbers: NDArray[Any] | None
    digests: bytes


class Worker:
    """Carries chunks from read to write. All memory it will use is allocated here."""

    def __init__(self, plan: Plan, kernels: Kernels, readers: Sequence[Reader], sink: Sink) -> None:
        self._plan = plan
        self._kernels = kernels
        self._readers = readers
        self._sink = sink
        self._models = (plan.base, *plan.agents)
        chunk = plan.memory.chunk
        self._raw = [self.room(chunk * width) for width in input_widths(plan.base, plan.agents, plan.jobs)]
        self._packed = self.room(chunk * output_width(plan.jobs))
        self._encoder = None if plan.gguf is None else self._new_encoder(plan.gguf)
        self._base = np.empty(BLOCK, np.float32)
        self._agents = np.empty(len(plan.agents) * BLOCK, np.float32)
        self._out = np.empty(BLOCK, np.float32)
        self._found = Outcome(np.zeros((len(plan.agents), 2), np.int64))
        self._unused = np.zeros_like(self._found.tally)
        self._digests = b""

    def room(self, count: int) -> Bytes:
        """A buffer of so many bytes."""
        return np.empty(count, np.uint8)

    def _new_encoder(self, output: "GgufOutput") -> "Encoder":
        from .gguf.encode import Encoder

        jobs = self._plan.jobs
        return Encoder(output.weights, piece_size(jobs), self.room(encoded_size(jobs, self._plan.memory.chunk)))

    def carry(self, task: Task) -> Carried:
        """Take one chunk from read to write."""
        self._found, self._digests = Outcome(np.zeros_like(self._unused)), b""
        numbers = None
        if task.running.job.action == "merge":
            numbers = self._merge(task)
        else:
            self._copy(task)
        return Carried(self._found, numbers, self._digests)

    def filled(self, raws: Sequence[Bytes]) -> list[Bytes]:
        """These bytes of the models in the worker's own buffers, as if they had been read."""
        for raw, buffer in zip(raws, self._raw):
            buffer[: raw.size] = raw
        return [buffer[: raw.size] for raw, buffer in zip(raws, self._raw)]

    def _read(self, model: int, name: str, start: int, stop: int) -> Bytes:
        began = time.perf_counter()
        info = self._models[model].tensors[name]
        width = DTYPES[info.dtype].itemsize
        raw = self._readers[model].read(info, start * width, stop * width, self._raw[model])
        self._found.bytes_read += len(raw)
        self._found.waiting += time.perf_counter() - began
        return raw

    def _write(self, job: TensorJob, start: int, data: Bytes) -> None:
        """Write what elements from ``start`` on have become."""
        name, position = job.name, start * DTYPES[job.dtype].itemsize
        if job.target is not None:
            name, position = job.target.name, job.target.nbytes(job.target.first + start)
        began = time.perf_counter()
        self._digests = checksum.digests(data.data, job.written(job.segment))
        self._found.computing += time.perf_counter() - began
        began = time.perf_counter()
        self._sink.write(name, position, data)
        self._found.bytes_written += len(data)
        self._found.waiting += time.perf_counter() - began

    def _release(self, models: Sequence[int], name: str, start: int, stop: int) -> None:
        for model in models:
            info = self._models[model].tensors[name]
            width = DTYPES[info.dtype].itemsize
            self._readers[model].release(info, start * width, stop * width)

    def _merge(self, task: Task) -> NDArray[Any] | None:
        job = task.running.job
        models = job.models(len(self._models))
        raws = [self._read(model, job.name, task.start, task.stop) for model in models]
        began = time.perf_counter()
        numbers, data = self.compute(task, raws)
        self._found.computing += time.perf_counter() - began
        if data is not None:
            self._write(job, task.start, data)
        self._release(models, job.name, task.start, task.stop)
        return numbers

    def compute(self, task: Task, raws: Sequence[Bytes]) -> tuple[NDArray[Any] | None, Bytes | None]:
        """One chunk of a merged tensor: what its pass measured, and what the blend gives as it is written."""
        running, job, plan = task.running, task.running.job, self._plan
        measure = running.passes[running.position]
        measuring = plan.measuring(job, measure)
        blocks = -(-(task.stop - task.start) // BLOCK)
        numbers = None if measuring is None else storage(measuring, blocks, len(plan.agents))
        if (measuring is not None and not measuring.stored) or not self._as_stored(task, raws, measure, numbers):
            self._in_float32(task, raws, measure, numbers)
        return numbers, None if measure is not None else self._encoded(task, self._packed)

    def _encoded(self, task: Task, packed: Bytes) -> Bytes:
        """A chunk as it is written; ``packed`` begins with its elements in the job's type."""
        job = task.running.job
        packed = packed[: (task.stop - task.start) * DTYPES[job.dtype].itemsize]
        return packed if self._encoder is None else self._encoder.encode(job, task.start, task.stop, packed)

    def _as_stored(
        self, task: Task, raws: Sequence[Bytes], measure: Measure | None, numbers: NDArray[Any] | None
    ) -> bool:
        """The whole chunk in one go, tile by tile. False, and nothing done, if it is to be done over float32: where
        something is not finite, which is counted and named there, and where float64 may keep the base's bits."""
        running, job = task.running, task.running.job
        if measure is None and job.dtype == "F64":
            return False
        dtypes = [self._models[model].tensors[job.name].dtype for model in job.models(len(self._models))]
        packed = self._packed[: (task.stop - task.start) * DTYPES[job.dtype].itemsize if measure is None else 0]
        index = slice(task.first_block, task.first_block + -(-(task.stop - task.start) // BLOCK))
        block = Block(job.name, index, task.start, raws[0], raws[1:], packed, self._tally(job))
        stored, before = Stored(block, (*dtypes, job.dtype)), self._found.tally.copy()
        if measure is None:
            self._plan.method_of(job).blend(cast(Kernels, stored), block, running.state)
        else:
            assert numbers is not None
            target = numbers if measure.kind == "counts" else np.moveaxis(numbers, 0, -1)
            measure.block(cast(Kernels, stored), block, running.state, target)
        if stored.run():
            return True
        self._found.tally[:] = before
        if numbers is not None:
            numbers[:] = 0
        return False

    def _in_float32(
        self, task: Task, raws: Sequence[Bytes], measure: Measure | None, numbers: NDArray[Any] | None
    ) -> None:
        """The chunk block by block, each of them decoded as a whole."""
        for offset in range(0, task.stop - task.start, BLOCK):
            block = self._decode(task, raws, offset, min(BLOCK, task.stop - task.start - offset))
            if measure is None:
                self._blend(task, block, raws[0], offset, None if numbers is None else numbers[offset // BLOCK])
            else:
                assert numbers is not None
                target = numbers if measure.kind == "counts" else numbers[offset // BLOCK]
                measure.block(self._kernels, block, task.running.state, target)

    def _blend(self, task: Task, block: Block, base_raw: Bytes, offset: int, row: NDArray[Any] | None) -> None:
        """One block of the result, encoded into its place among the packed bytes of the chunk. It is observed into
        ``row``, if there is one, before the method makes its own use of it."""
        job = task.running.job
        if row is not None and self._plan.observer is not None:
            self._plan.observer.block(self._kernels, block, None, row)
        self._plan.method_of(job).blend(self._kernels, block, task.running.state)
        self._encode(job, block, base_raw, offset)

    def _block(self, task: Task, offset: int, base: Any, agents: Any, out: Any) -> Block:
        job, tally = task.running.job, self._tally(task.running.job)
        return Block(job.name, task.first_block + offset // BLOCK, task.start + offset, base, agents, out, tally)

    def _tally(self, job: TensorJob) -> NDArray[np.int64]:
        return self._found.tally if job.counted else self._unused

    def _decode(self, task: Task, raws: Sequence[Bytes], offset: int, count: int) -> Block:
        """One block of every model that is read as float32, the first as the base. Non-finite inputs are counted in the
        first pass that sees them."""
        job = task.running.job
        agents = self._agents[: (len(raws) - 1) * count].reshape(-1, count)
        for model, raw, row in zip(job.models(len(self._models)), raws, (self._base[:count], *agents), strict=True):
            dtype = self._models[model].tensors[job.name].dtype
            width = DTYPES[dtype].itemsize
            found = codecs.decode(dtype, raw[offset * width : (offset + count) * width], row)
            if found:
                self._found_non_finite(task, model, row, task.start + offset, found)
        return self._block(task, offset, self._base[:count], agents, self._out[:count])

    def _encode(self, job: TensorJob, block: Block, base_raw: Bytes, offset: int) -> None:
        width, count = DTYPES[job.dtype].itemsize, len(block.out)
        packed = self._packed[offset * width : (offset + count) * width]
        found = codecs.encode(job.dtype, block.out, packed)
        if job.dtype == job.source_dtype == "F64":  # decoding rounded: where nothing changed keep the base's bits
            begin = offset * width
            codecs.decode("F64", base_raw[begin : begin + count * width], self._base[:count])
            codecs.keep_base(block.out, self._base[:count], base_raw[begin : begin + count * width], packed)
        if found:
            self._found.non_finite_outputs += found
            if not self._plan.recipe.allow_non_finite:
                raise self._bad_output(job, block.out, packed, block.start)

    def _copy(self, task: Task) -> None:
        """What is not merged: a model's bytes, its values in another type, or the mean of several models."""
        job, start, stop = task.running.job, task.start, task.stop
        raws = [self._read(model, job.name, start, stop) for model in job.donors]
        began = time.perf_counter()
        packed = raws[0]
        if job.action != "copy":
            packed = self._packed
            for offset in range(0, stop - start, BLOCK):
                block = self._decode(task, raws, offset, min(BLOCK, stop - start - offset))
                self._average(block)
                self._encode(job, block, raws[0], offset)
        data = self._encoded(task, packed)
        self._found.computing += time.perf_counter() - began
        self._write(job, start, data)
        self._release(job.donors, job.name, start, stop)

    def _average(self, block: Block) -> None:
        """The mean of all rows, added up in their order; where all are equal, their very bits."""
        block.out[:] = block.base
        if len(block.agents):
            with np.errstate(all="ignore"):  # what is not finite is counted where it is encoded
                for row in block.agents:
                    block.out += row
                block.out /= np.float32(1 + len(block.agents))
            self._kernels.keep_unchanged(block.base, block.agents, block.out)

    def _found_non_finite(self, task: Task, model: int, row: Floats, start: int, found: int) -> None:
        """Any pass may meet them first; they are counted in the blend, which sees every value once."""
        job = task.running.job
        if task.running.passes[task.running.position] is None:
            self._found.non_finite_inputs += found
        if not self._plan.recipe.allow_non_finite:
            place = int(np.flatnonzero(~np.isfinite(row))[0])
            path = self._models[model].path
            raise NonFiniteError(
                f"{path}: tensor {job.name!r} holds {row[place]} at index {_index(job, start + place)}; "
                "repair the checkpoint, or go on with --allow-non-finite"
            )

    def _bad_output(self, job: TensorJob, values: Floats, packed: Bytes, start: int) -> NonFiniteError:
        check = np.empty(len(values), np.float32)
        codecs.decode(job.dtype, packed, check)
        place = int(np.flatnonzero(~np.isfinite(check))[0])
        where = f"{self._plan.recipe.output}: tensor {job.name!r}, index {_index(job, start + place)}"
        if np.isfinite(values[place]):
            return NonFiniteError(
                f"{where}: {values[place]:g} is too large for {job.dtype}; choose another --dtype, such as bf16"
            )
        return NonFiniteError(f"{where}: the result is {values[place]}; to go on all the same: --allow-non-finite")

    def read_ahead(self, task: Task) -> None:
        """Hint at what the next chunk will read."""
        for model in task.running.job.models(len(self._readers)):
            info = self._models[model].tensors[task.running.job.name]
            width = DTYPES[info.dtype].itemsize
            self._readers[model].ahead(info, task.start * width, task.stop * width)


def _index(job: TensorJob, flat: int) -> list[int]:
    return [int(i) for i in np.unravel_index(flat, job.shape)] if job.shape else []
