"""python -m bench io: mapping against positional reads, by chunk size and threads, with everything in the page cache.

Each worker does what the executor's does with an input: read a chunk of every model, decode it block by block,
release it. Then whole merges with either, to see what is left of the difference.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import numpy as np

from bench import cache
from bench.process import BenchError, compile_kernels, merge
from bench.results import Result, Table, middle
from streammerge.checkpoint import Checkpoint, open_checkpoint
from streammerge.formats import codecs
from streammerge.formats.contract import Reader
from streammerge.kernels.contract import BLOCK
from streammerge.kernels.load import load_cpu

IO = Literal["mmap", "pread"]
CHUNKS = (1, 4, 16, 64, 256)  # in blocks of 65,536 elements
THREADS = (1, 2)
_METHOD, _BUDGET = "ram", "512M"
_MOST = 2**30  # bytes read for one figure


@dataclass(frozen=True)
class Case:
    """How to read: mapped or not, so many blocks at a time, in so many threads."""

    io: IO
    blocks: int
    threads: int


def bench_reading(data: Path, rounds: int) -> Result:
    """Every case once a round; then whole merges."""
    compile_kernels()
    paths = [data / "base", *sorted(data.glob("agent-*"))]
    cache.warm(file for path in paths for file in open_checkpoint(path).files)
    merges = _merges(data, rounds)  # first: a process inherits the peak memory of the one that began it
    models = [open_checkpoint(path) for path in paths]  # merges touch the base
    load_cpu()
    cases = [Case(io, blocks, threads) for blocks in CHUNKS for threads in THREADS for io in get_args(IO)]
    _check(models)
    speeds: dict[Case, list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            speeds[case].append(_speed(models, case))
    result = Result("io", "Mapping against positional reads", {"rounds": rounds, "models": len(models)})
    result.tables, result.notes = [_table(speeds), merges], list(_NOTES)
    result.runs = [{"io": c.io, "blocks": c.blocks, "threads": c.threads, "GB/s": found} for c, found in speeds.items()]
    return result


_NOTES = (
    "Reading: GB/s of bf16 read, decoded to float32 and released, the median over the rounds; up to 1 GiB a figure.",
    "Each figure begins with new buffers, whose first touch counts: at most 1 GiB is read, so it weighs on big chunks "
    "and on positional reads, which fill such buffers; mapped reads do not touch them.",
)


def _check(models: Sequence[Checkpoint]) -> None:
    """Both ways must give the same bytes."""
    name, stop = _pieces(models[0], BLOCK)[0][0], 2 * BLOCK
    for model in models:
        found = []
        for io in get_args(IO):
            reader = model.reader(io)
            found.append(reader.read(model.tensors[name], 0, stop, np.empty(stop, np.uint8)).tobytes())
            reader.close()
        if found[0] != found[1]:
            raise BenchError(f"{name}: mapped and positional reads differ")


def _pieces(model: Checkpoint, step: int) -> list[tuple[str, int, int]]:
    """(tensor, start, stop in elements): whole chunks only, in the order of the file."""
    pieces, room = [], _MOST // 8
    for info in model.tensors.values():
        if info.dtype != "BF16":
            raise BenchError(f"{info.name} is {info.dtype}; this benchmark wants BF16")
        for start in range(0, info.elements - step + 1, step):
            if room >= step:
                pieces.append((info.name, start, start + step))
                room -= step
    if not pieces:
        raise BenchError(f"no tensor has {step:,} elements: take larger models")
    return pieces


def _speed(models: Sequence[Checkpoint], case: Case) -> float:
    """GB/s of one case."""
    step = case.blocks * BLOCK
    pieces = _pieces(models[0], step)
    readers = [model.reader(case.io) for model in models]
    queue = iter(pieces)
    lock = threading.Lock()
    workers = [
        threading.Thread(target=_work, args=(models, readers, _shared(queue, lock), step)) for _ in range(case.threads)
    ]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - began
    for reader in readers:
        reader.close()
    return 2 * step * len(pieces) * len(models) / seconds / 1e9


def _shared(queue: Iterator[tuple[str, int, int]], lock: threading.Lock) -> Iterator[tuple[str, int, int]]:
    while True:
        with lock:
            piece = next(queue, None)
        if piece is None:
            return
        yield piece


def _work(
    models: Sequence[Checkpoint], readers: Sequence[Reader], pieces: Iterator[tuple[str, int, int]], step: int
) -> None:
    buffers = [np.empty(2 * step, np.uint8) for _ in models]
    out = np.empty(BLOCK, np.float32)
    for name, start, stop in pieces:
        for model, reader, buffer in zip(models, readers, buffers, strict=True):
            info = model.tensors[name]
            raw = reader.read(info, 2 * start, 2 * stop, buffer)
            for offset in range(0, len(raw), 2 * BLOCK):
                codecs.decode("BF16", raw[offset : offset + 2 * BLOCK], out)
            reader.release(info, 2 * start, 2 * stop)


def _table(speeds: dict[Case, list[float]]) -> Table:
    columns = ("chunk, elements", "threads", "pread, GB/s", "mmap, GB/s", "pread / mmap")
    table = Table("## Reading and decoding", columns)
    for blocks in CHUNKS:
        for threads in THREADS:
            pread, mapped = (speeds[Case(io, blocks, threads)] for io in ("pread", "mmap"))
            ratio = median(a / b for a, b in zip(pread, mapped, strict=True))
            table.rows.append((f"{blocks * BLOCK:,}", threads, middle(pread), middle(mapped), round(ratio, 2)))
    return table


def _merges(data: Path, rounds: int) -> Table:
    """Whole merges, in turn; the passes only, for the disk's fsync has nothing to do with how inputs are read."""
    table = Table("## Whole merges: seconds of reading and merging", ("threads", "pread", "mmap", "pread / mmap"))
    for threads in THREADS:
        times: dict[IO, list[float]] = {"pread": [], "mmap": []}
        for number in range(rounds):
            for io in get_args(IO)[:: 1 if number % 2 else -1]:
                times[io].append(_merge(data, io, threads))
        ratio = median(a / b for a, b in zip(times["pread"], times["mmap"], strict=True))
        table.rows.append((threads, middle(times["pread"]), middle(times["mmap"]), round(ratio, 2)))
    return table


def _merge(data: Path, io: IO, threads: int) -> float:
    agents = sorted(data.glob("agent-*"))
    with TemporaryDirectory(prefix="bench-", dir=data.parent) as work:
        output = Path(work) / "out"
        found = merge(data / "base", agents, output, _METHOD, _BUDGET, "--io", io, "--threads", str(threads))
        return found.run.phases()["merging"]
