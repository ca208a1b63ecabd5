"""Whether files lie in the page cache, and how to get them in and out."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bench.process import BenchError

_CHUNK = 8 * 2**20


def warm(files: Iterable[Path]) -> None:
    """Read files once, so that they lie in the page cache as far as it holds them."""
    buffer = bytearray(_CHUNK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def evict(files: Iterable[Path]) -> None:
    """Take files out of the page cache. Raises BenchError if more than 1 % of one stays."""
    for path in files:
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if (share := cached(path)) > 0.01:
            raise BenchError(f"{path.name}: {share:.0%} of it stayed in the page cache")


def cached(path: Path) -> float:
    """The share of a file's pages in the page cache, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        arguments = (ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), ctypes.c_void_p(pages.ctypes.data))
        if libc.mincore(*arguments) != 0:
            raise BenchError(f"{path.name}: mincore failed with error {ctypes.get_errno()}")
        return float((pages & 1).mean())
