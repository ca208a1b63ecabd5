"""Seeded Llama-shaped checkpoints of any size, and agents that look like the outcome of reinforcement learning.

A base holds N(0, 0.02) weights and norms around 1. An agent moves a sparse part of every tensor by 1 to 4 bf16 steps;
part of the moved positions comes from a mask that all agents of a seed share, the rest is its own. Every value is a
function of (seed, tensor name, agent, position): blocks, threads and shards never change it.
"""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial as bind
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.sample.checkpoint import ITEM, Place, create, data_start, files, places
from bench.sample.folders import aside, copy_others
from bench.sample.moves import Moves
from bench.sample.noise import normal_pool, step_pool, stream_key
from bench.sample.shapes import SHAPES, Shape

__all__ = ["SHAPES", "Shape", "make_agent", "make_base"]

BLOCK = 1 << 21
"""Elements a worker reads and writes at a time: few large calls, where each call has its price."""

CACHED = 1 << 16
"""Elements computed at a time: the handful of arrays stays in the CPU's cache."""

WORKERS = min(os.cpu_count() or 1, 8)
"""Threads, each with one block: more would cost memory and gain nothing on the disk."""

SPAN = 1 << 26
"""Elements of one piece of work, so that an embedding of a billion values keeps every thread busy."""

Fill = Callable[[NDArray[Any], int], None]
"""Turns the bits of a block, which begins at the given element of its tensor, into what shall be there."""


def make_base(
    folder: Path,
    shape: Shape,
    *,
    seed: int = 0,
    dtype: str = "BF16",
    max_shard_bytes: int | None = None,
    sparse: bool = False,
    block: int = BLOCK,
) -> Path:
    """Write a checkpoint folder: weights (sharded above `max_shard_bytes`), index, config.json; no tokenizer.

    `sparse` leaves every weight a hole: files of full length that take no disk and read as zeros.
    """
    with aside(folder) as partial:
        written = create(partial, shape.tensors(dtype), max_shard_bytes)
        if not sparse:
            _run([piece for place in written for piece in _pieces(place, _base_fill(place, seed), block)])
        (partial / "config.json").write_text(json.dumps(shape.config(dtype), indent=2) + "\n")
    return folder


def make_agent(
    folder: Path,
    base: Path,
    *,
    index: int,
    seed: int = 0,
    density: tuple[float, float] = (0.03, 0.35),
    shared: float = 0.5,
    sparse: bool = False,
    block: int = BLOCK,
) -> Path:
    """Write agent number `index` of a base folder: same files, same headers, finite weights moved here and there.

    Each tensor changes a share drawn uniformly from `density`; the part `shared` of it lies in the common mask.
    """
    with aside(folder) as partial:
        copy_others(base, partial)
        for path in files(base):
            _copy_header(path, partial / path.name)
            if not sparse:
                _run(_agent_work(path, partial / path.name, Moves(seed, index, density, shared), block))
    return folder


def _base_fill(place: Place, seed: int) -> Fill:
    mean = 1.0 if len(place.tensor.shape) == 1 else 0.0
    pool = normal_pool(place.tensor.dtype, mean, 0.02)
    stream = stream_key(seed, "base", place.tensor.name)
    return lambda bits, start: pool.fill(stream, start, bits)


def _agent_work(source: Path, target: Path, moves: Moves, block: int) -> list[Callable[[], None]]:
    step_pool()  # made here once, not by every thread at the same moment
    work: list[Callable[[], None]] = []
    for place in places(source):
        fill = bind(moves.fill, place.tensor.name, place.tensor.dtype)
        work += _pieces(Place(place.tensor, target, place.offset), fill, block, source)
    return work


def _pieces(place: Place, fill: Fill, block: int, source: Path | None = None) -> Iterator[Callable[[], None]]:
    for begin in range(0, place.tensor.elements, SPAN):
        end = min(begin + SPAN, place.tensor.elements)
        yield bind(_write, place, begin, end, block, fill, source)


def _write(place: Place, begin: int, end: int, block: int, fill: Fill, source: Path | None) -> None:
    """Fill elements begin to end of a tensor block by block; `source` has the bits to start from at the same place."""
    item = ITEM[place.tensor.dtype]
    buffer = np.empty(min(block, end - begin), dtype=item)
    with place.path.open("r+b", buffering=0) as target, (source or place.path).open("rb", buffering=0) as origin:
        for start in range(begin, end, block):
            bits = buffer[: min(block, end - start)]
            offset = place.offset + start * item.itemsize
            if source is not None:
                _exactly(os.preadv(origin.fileno(), [bits.data], offset), bits, source)
            for done in range(0, len(bits), CACHED):
                fill(bits[done : done + CACHED], start + done)
            _exactly(os.pwrite(target.fileno(), bits.data, offset), bits, place.path)


def _exactly(count: int, bits: NDArray[Any], path: Path) -> None:
    if count != bits.nbytes:
        raise OSError(f"{path}: {count} of {bits.nbytes} bytes went through; is the file cut short or the disk full?")


def _run(work: list[Callable[[], None]]) -> None:
    """Do all pieces of work in threads; the first error is raised and ends the rest."""
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(piece) for piece in work]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _copy_header(source: Path, target: Path) -> None:
    with source.open("rb") as file:
        target.write_bytes(file.read(data_start(source)))
    os.truncate(target, source.stat().st_size)
