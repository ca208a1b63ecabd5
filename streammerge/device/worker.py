"""A worker whose arithmetic is done on a torch device.

    read -> pinned buffer -> up -> decode, measure or blend, encode, quantize -> down -> buffer -> checksum, write

Each worker has buffers of its own on both sides, so that while one copies another one computes; the room for values in
float32 is one, and workers take turns in it. What is unusual in a chunk (a value that is not finite or too large for
its type) is found out on the device, and such a chunk is computed again on the processor, which says what it is. The
first chunk of every kind is always computed on both and compared.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import checksum
from ..demand import encoded_size, output_width
from ..errors import WrongBytesError
from ..formats.contract import Bytes, Reader, Sink
from ..formats.device import codecs
from ..formats.dtypes import DTYPES
from ..kernels.contract import BLOCK, Block, Kernels
from ..kernels.cuda import Torch
from ..methods.base import Measure
from ..planning import Plan
from ..schedule import Task
from ..worker import Worker
from .encode import DeviceEncoder
from .limits import LARGEST, Limits
from .placement import shortest_run
from .torch_device import (
    Pinned,
    Streams,
    Workspace,
    download,
    hold_to,
    let_go,
    named_errors,
    open_device,
    settle,
    upload,
)

Numbers = NDArray[Any]

# Elements. What is smaller is done before the device has begun.
SMALL = BLOCK


class Device:
    """What the workers of one device share."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        vram = plan.placement.vram
        assert vram is not None
        self.name = plan.placement.device
        self.torch = device
        self.kernels = Torch(self.torch)
        self.streams = Streams(self.torch)
        hold_to(self.torch, vram.allowed)
        self.workspace = Workspace(self.torch, len(plan.agents), vram.run, shortest_run(plan.jobs))
        self.encoder = None if plan.gguf is None else DeviceEncoder(plan.gguf.weights, self.torch)
        self._known: set[object] = set()

    def bytes(self, count: int) -> Tensor:
        """Room for so many bytes."""
        return torch.empty(count, dtype=torch.uint8, device=self.torch)

    def is_new(self, kind: object) -> bool:
        """Whether there was no chunk of this kind before."""
        is_new = kind not in self._known
        self._known.add(kind)
        return is_new


@dataclass(frozen=True, slots=True)
class Run:
    """Elements ``start`` to ``stop`` of a chunk, ``shape`` (blocks, BLOCK) and ``place`` the slice of these blocks; or
    what is left behind the last whole block, ``shape`` (elements,) and ``place`` its number."""

    start: int
    stop: int
    shape: tuple[int, ...]
    place: slice | int


def runs(elements: int, longest: int) -> Iterator[Run]:
    """A chunk in runs of whole blocks of at most ``longest`` elements, and what is left."""
    whole = elements // BLOCK
    step = longest // BLOCK
    for first in range(0, whole, step):
        last = min(first + step, whole)
        yield Run(first * BLOCK, last * BLOCK, (last - first, BLOCK), slice(first, last))
    if elements % BLOCK:
        yield Run(whole * BLOCK, elements, (elements - whole * BLOCK,), whole)


@dataclass(frozen=True, slots=True)
class _Made:
    """What operations on the device will have made of a chunk, once they are through."""

    numbers: Tensor | None
    data: Tensor | None
    tally: Tensor
    exceeded: Tensor


@dataclass(frozen=True, slots=True)
class _Computed:
    numbers: Numbers | None
    data: Bytes | None
    tally: NDArray[np.int64]


class DeviceWorker(Worker):
    """As ``Worker``, with the arithmetic of merged tensors on a device."""

    def __init__(self, plan: Plan, kernels: Kernels, readers: Sequence[Reader], sink: Sink, device: Device) -> None:
        super().__init__(plan, kernels, readers, sink)
        self._device = device
        chunk = plan.memory.chunk
        self._inputs = [device.bytes(raw.size) for raw in self._raw]
        self._merged = device.bytes(chunk * output_width(plan.jobs))
        self._written = self._merged if plan.gguf is None else device.bytes(encoded_size(plan.jobs, chunk))
        self._result = self._packed if self._encoder is None else self._encoder.encoded
        self._pinned = Pinned(device.torch, [*self._raw, self._result])

    def room(self, count: int) -> Bytes:
        """Memory pages of its own: what is pinned must share none."""
        return np.frombuffer(mmap.mmap(-1, max(count, 1)), np.uint8)[:count]

    def close(self) -> None:
        """Let go of the memory that the device reads and writes."""
        self._pinned.release()

    def compute(self, task: Task, raws: Sequence[Bytes]) -> tuple[Numbers | None, Bytes | None]:
        """See ``Worker``. Raises DeviceError."""
        if task.stop - task.start < SMALL:
            return super().compute(task, raws)
        with named_errors(self._device.name):
            found = self._on_device(task, self._staged(raws))
        if found is None:
            return super().compute(task, raws)
        if self._device.is_new((task.running.position, self._plan.kind(task.running.job))):
            return self._compared(task, raws, found)
        self._found.tally += found.tally
        return found.numbers, found.data

    def _staged(self, raws: Sequence[Bytes]) -> list[Bytes]:
        """The bytes in pinned memory: positional reads have put them there, what is mapped is copied."""
        return self.filled(raws) if self._plan.io == "mmap" else list(raws)

    def _on_device(self, task: Task, raws: Sequence[Bytes]) -> _Computed | None:
        """None if something in the chunk is not usual."""
        streams, workspace = self._device.streams, self._device.workspace
        with streams.up():
            sources = [upload(target, raw) for target, raw in zip(self._inputs, raws)]
            there = streams.mark()
        with workspace.turn, streams.work(there):
            made = self._begin(task, sources)
            done = streams.mark()
        with streams.down(done):
            data = None if made.data is None else download(made.data, self._result)
            numbers = None if made.numbers is None else made.numbers.cpu().numpy()
            tally, exceeded = made.tally.cpu().numpy(), bool(made.exceeded.cpu())
            back = streams.mark()
        streams.wait(back)
        return None if exceeded else _Computed(numbers, data, tally)

    def _begin(self, task: Task, sources: Sequence[Tensor]) -> _Made:
        """Start all operations of a chunk; in shorter and shorter runs where the device is short of memory."""
        workspace = self._device.workspace
        while True:
            try:
                workspace.take()
                return self._make(task, sources)
            except torch.cuda.OutOfMemoryError:
                if not workspace.can_be_halved:
                    raise
            workspace.halve()  # only now: the error held on to what there was

    def _make(self, task: Task, sources: Sequence[Tensor]) -> _Made:
        running, job, plan = task.running, task.running.job, self._plan
        measure = running.passes[running.position]
        measuring = plan.measuring(job, measure)
        blocks = -(-(task.stop - task.start) // BLOCK)
        device, limits = self._device.torch, Limits(self._device.torch)
        numbers = None if measuring is None else _numbers(measuring, blocks, len(plan.agents), device)
        tally = torch.zeros(len(plan.agents), 2, dtype=torch.int64, device=device)
        by_block = measuring is not None and measuring.kind != "counts"
        for run in runs(task.stop - task.start, self._device.workspace.run):
            block = self._decoded(task, sources, run, tally, limits)
            target = cast(Any, numbers if numbers is None or not by_block else numbers[..., run.place])
            if measure is None:
                self._blended(task, block, target, limits, sources[0], run)
            else:
                measure.block(self._device.kernels, block, running.state, target)
        if numbers is not None and by_block:
            numbers = numbers.movedim(-1, 0).contiguous()
        data = None if measure is not None else self._whole(task, limits)
        return _Made(numbers, data, tally if job.counted else torch.zeros_like(tally), limits.exceeded)

    def _decoded(self, task: Task, sources: Sequence[Tensor], run: Run, tally: Tensor, limits: Limits) -> Block:
        """One run of base and agents as float32."""
        job = task.running.job
        inputs, out = self._device.workspace.floats(len(sources), *run.shape)
        for model, (raw, row) in enumerate(zip(sources, inputs)):
            dtype = self._models[model].tensors[job.name].dtype
            width = DTYPES[dtype].itemsize
            codecs.decode(dtype, raw[run.start * width : run.stop * width], row.view(-1))
        limits.check(inputs)
        first = task.first_block + run.start // BLOCK
        index = first if isinstance(run.place, int) else slice(first, first + run.shape[0])
        return Block(job.name, index, task.start + run.start, inputs[0], inputs[1:], out, tally)

    def _blended(self, task: Task, block: Block, observed: Any, limits: Limits, base_raw: Tensor, run: Run) -> None:
        """One run of the result, in the job's type, in its place among those of the chunk."""
        running, job, plan = task.running, task.running.job, self._plan
        kernels = self._device.kernels
        if observed is not None and plan.observer is not None:
            plan.observer.block(kernels, block, None, observed)
        plan.method_of(job).blend(kernels, block, running.state)
        values, width = block.out.view(-1), DTYPES[job.dtype].itemsize
        limits.check(values, LARGEST[job.dtype])
        packed = self._merged[run.start * width : run.stop * width]
        codecs.encode(job.dtype, values, packed)
        if job.dtype == job.source_dtype == "F64":
            raw, base = base_raw[run.start * width : run.stop * width], block.base.view(-1)
            codecs.decode("F64", raw, base)  # the method may have overwritten it
            codecs.keep_base(values, base, raw, packed)

    def _whole(self, task: Task, limits: Limits) -> Tensor:
        """A chunk as it is written."""
        job, encoder = task.running.job, self._device.encoder
        packed = self._merged[: (task.stop - task.start) * DTYPES[job.dtype].itemsize]
        if encoder is None:
            return packed
        run = self._device.workspace.run
        return encoder.encode(job, task.start, task.stop, packed, self._written, run, limits)

    def _compared(self, task: Task, raws: Sequence[Bytes], found: _Computed) -> tuple[Numbers | None, Bytes | None]:
        """The chunk once more on the processor. Raises DeviceError if that gives something else."""
        digest = None if found.data is None else checksum.digest(found.data.data)
        before = self._found.tally.copy()
        numbers, data = super().compute(task, raws)
        same = digest == (None if data is None else checksum.digest(data.data))
        if numbers is not None and found.numbers is not None:
            same &= numbers.tobytes() == found.numbers.tobytes()
        if not same or not np.array_equal(self._found.tally - before, found.tally):
            raise WrongBytesError(
                f"{self._device.name}: computes other bytes than the processor in tensor {task.running.job.name!r}; "
                "use --device cpu, and please report it with the versions of torch and of the driver"
            )
        return numbers, data


def _numbers(measure: Measure, blocks: int, agents: int, device: torch.device) -> Tensor:
    """Room for what a pass measures, the axis of blocks last."""
    shape = measure.shape(agents) if measure.kind == "counts" else (*measure.shape(agents), blocks)
    kind = torch.float64 if measure.kind == "sums" else torch.int64
    return torch.zeros(shape, dtype=kind, device=device)


@contextmanager
def open_workers(plan: Plan, kernels: Kernels, readers: Sequence[Reader], sink: Sink) -> Iterator[list[Worker]]:
    """As many workers as planned, on the device of the plan. Raises DeviceError."""
    workers: list[DeviceWorker] = []
    opened = open_device(plan.placement.device)
    try:
        with named_errors(plan.placement.device):
            device = Device(plan, opened)
            for _ in range(plan.memory.workers):
                workers.append(DeviceWorker(plan, kernels, readers, sink, device))
            settle(opened)
        yield list[Worker](workers)
    finally:
        with suppress(RuntimeError):  # a device that is lost has said so
            settle(opened)
        for worker in workers:
            worker.close()
        workers.clear()
        with suppress(RuntimeError):
            let_go(opened)
