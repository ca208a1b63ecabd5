"""The least a merge can take: read every input byte once, write every output byte once, durably.

The plain floor lets what it writes pile up in the page cache. Where fresh memory is slow to come by, as in some virtual
machines, that alone can cost seconds, so that it is no lower bound. The tight floor drops what it has written, as the
engine does, and so uses the same pages again and again: goals are judged against it.
"""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.process import busy

_PIECE = 4 * 2**20
_BEHIND = 64 * 2**20  # bytes written that may wait in the page cache of the tight floor


@dataclass(frozen=True)
class Floor:
    """Seconds for reading by ``cat``, for writing from memory, and for the fsync after it; ``others`` as in ``Run``."""

    read: float
    write: float
    sync: float
    others: float

    @property
    def wall(self) -> float:
        """All three, one after the other."""
        return self.read + self.write + self.sync


def floor(inputs: Sequence[Path], target: Path, size: int, *, tight: bool) -> Floor:
    """Read ``inputs``, then write ``size`` bytes to ``target``, a new file that is removed again."""
    own, others, began = _cpu(), busy(), time.perf_counter()
    subprocess.run(["cat", *inputs], stdout=subprocess.DEVNULL, check=True)
    read = time.perf_counter()
    try:
        with target.open("xb", buffering=0) as file:
            _fill(file.fileno(), size, os.urandom(_PIECE), tight)
            written = time.perf_counter()
            os.fsync(file.fileno())
        ended = time.perf_counter()
        disturbed = max(busy() - others - (_cpu() - own), 0.0) / (ended - began)
        return Floor(read - began, written - read, ended - written, disturbed)
    finally:
        target.unlink(missing_ok=True)


def _cpu() -> float:
    """Processor seconds of this process and of those it has waited for."""
    return sum(os.times()[:4])


def _fill(descriptor: int, size: int, piece: bytes, tight: bool) -> None:
    view, done = memoryview(piece), 0
    while done < size:
        if tight and done > _BEHIND:
            os.posix_fadvise(descriptor, 0, done - _BEHIND, os.POSIX_FADV_DONTNEED)
        done += os.write(descriptor, view[: size - done])
