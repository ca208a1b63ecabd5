"""The memory promise: *allowed*, *reserved*, *projected*, *peak* (see docs/design.md).

    projected = reserved + fixed + kept + tensor x (workers + 1) + workers x per_worker     <= allowed
    per_worker(chunk) = chunk x (input bytes of base and agents + output bytes)
                        + BLOCK x 4 x (agents + 2) + counters + 512 KiB

``reserved`` is measured before any data is touched (interpreter, Numba, compiled kernels, headers, GGUF metadata); all
the rest is arithmetic on the plan. A GGUF output adds its bytes to those of a chunk and two pieces of BLOCK elements
(or two rows) to a worker; its chunks are whole rows or heads, which a model's width sets. Nothing depends on the
size of the model or of its largest tensor, except rows of integers that a method keeps for each block of 65,536
elements, and ``kept``: the entry of every tensor in ledger and manifest, and its numbers where these are asked for.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from .errors import BudgetError, RecipeError
from .kernels.contract import BLOCK

KIB, MIB = 1024, 1024**2
_UNITS = {
    "": 1,
    "K": KIB,
    "M": MIB,
    "G": 1024**3,
    "T": 1024**4,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?B)?", re.IGNORECASE)

# Threads, progress display, report, the allocator's own rounding: measured at 2 to 5 MB, held back in full.
_FIXED = 8 * MIB
_THREAD = 512 * KIB
# What is reserved differs by some MB from run to run; what is told to be enough must be enough the next time.
_VARIES = 4 * MIB
# Beyond this a chunk gains no speed (measured), it only takes memory.
_LARGEST_CHUNK = 64 * BLOCK
# The same where inputs are read into buffers, which had better stay in the last cache. Smaller windows are not worth
# mapping.
_LARGEST_READ = 16 * BLOCK
_DEFAULT_SHARE = 0.5


def parse_size(text: str) -> int:
    """Bytes: ``8G`` = ``8GiB`` = 8 x 2^30, ``500MB`` = 500 x 10^6, ``123`` = 123. Raises RecipeError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise RecipeError(f"{text!r} is not a size; write for example 8G, 512M or 500MB")
    number, unit, suffix = match.group(1), match.group(2).upper(), (match.group(3) or "").upper()
    return int(float(number) * _UNITS[unit + "B" if suffix == "B" and unit else unit])


def format_size(size: float) -> str:
    """``512 MiB``, ``2.3 GiB``: binary units, three digits."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1024
    raise AssertionError


def counted(number: int, thing: str) -> str:
    """``1 agent``, ``3 agents``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


@dataclass(frozen=True, slots=True)
class Demand:
    """What a merge needs for each element of a chunk and beside it, all in bytes."""

    inputs: int  # for each element: base and agents together
    output: int  # for each element
    floats: int  # for each element of a block: base, agents and result in float32
    worker: int  # for each worker: counters of the measure passes, ends of windows, pieces that are quantized
    tensor: int  # for each tensor in flight, one more than workers: its sums and counters
    numbers: int = 0  # for each block of a chunk: what it measured, where that is kept by block
    kept: int = 0  # once: numbers of every tensor that are kept to the end
    grain: int = 1  # elements that must stay together in a chunk

    @property
    def block(self) -> int:
        """Bytes that each block of a chunk takes."""
        return BLOCK * (self.inputs + self.output) + self.numbers

    def per_worker(self, chunk: int) -> int:
        """Bytes of one worker that carries chunks of this many elements."""
        blocks = chunk // BLOCK
        return blocks * self.block + BLOCK * self.floats + self.worker + _THREAD


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory side of a plan, in bytes; ``chunk`` in elements."""

    allowed: int
    reserved: int
    projected: int
    least: int
    workers: int
    chunk: int


def fit(demand: Demand, *, allowed: int, reserved: int, threads: int, largest: int) -> Memory:
    """As many workers as asked, with chunks as large as the budget lets them be, at most ``largest`` elements: first
    smaller chunks, then fewer workers. Raises BudgetError naming the least budget that would do."""
    fixed = reserved + _FIXED + demand.kept + demand.tensor
    fewest = -(-demand.grain // BLOCK)  # blocks of the smallest chunk
    smallest = fixed + demand.tensor + demand.per_worker(fewest * BLOCK)
    least = -(-(smallest + _VARIES) // (4 * MIB)) * 4 * MIB
    if smallest > allowed:
        unit = "" if allowed >= MIB else f"; a number without a unit is bytes, write {allowed}G"
        raise BudgetError(
            f"--max-ram {format_size(allowed)} is too small{unit}: it needs at least {format_size(least)} "
            f"({format_size(reserved)} reserved by the process, the rest for one worker); try --max-ram {least // MIB}M"
        )
    for workers in range(threads, 0, -1):
        room = (allowed - fixed) // workers - demand.tensor - demand.per_worker(0)
        blocks = room // demand.block
        if blocks >= fewest:
            break
    chunk = min(blocks * BLOCK, max(largest, fewest * BLOCK))
    projected = fixed + workers * (demand.tensor + demand.per_worker(chunk))
    return Memory(allowed, reserved, projected, least, workers, chunk)


def largest_chunk(*, mapped: bool) -> int:
    """Elements, beyond which a chunk gains no speed."""
    return _LARGEST_CHUNK if mapped else min(_LARGEST_CHUNK, _LARGEST_READ)


def is_worth_mapping(chunk: int) -> bool:
    """Whether chunks of so many elements are merged faster mapped than read."""
    return chunk >= _LARGEST_READ


def peak() -> int:
    """The largest resident memory of this process so far, as the operating system counts it (VmHWM on Linux)."""
    if sys.platform.startswith("linux"):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIB
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(largest if sys.platform == "darwin" else largest * KIB)


def allowed(asked: int | None) -> int:
    """What the user granted, or a share of what is free."""
    return default_allowed() if asked is None else asked


def default_allowed() -> int:
    """Half of what the machine, or the control group this process is in, has free."""
    return int(
        min(psutil.virtual_memory().available, *_cgroup_free(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))
        * _DEFAULT_SHARE
    )


def _cgroup_free(membership: Path, root: Path) -> Iterator[int]:
    """Free bytes under every memory limit above this process, version 1 and 2; page cache counts as free."""
    yield sys.maxsize
    if not membership.exists():
        return
    for line in membership.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            names, top = ("memory.max", "memory.current"), root
        elif "memory" in controllers.split(","):
            names, top = ("memory.limit_in_bytes", "memory.usage_in_bytes"), root / "memory"
        else:
            continue
        folder = top / group.lstrip("/")
        for level in (folder, *folder.parents):
            if level.is_relative_to(top):
                free = _free_below(level, *names)
                if free is not None:
                    yield free


def _free_below(folder: Path, limit_name: str, usage_name: str) -> int | None:
    try:
        limit = (folder / limit_name).read_text().strip()
        usage = int((folder / usage_name).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max" or int(limit) >= 2**60:
        return None
    cache = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    return max(int(limit) - usage + cache, 0)
