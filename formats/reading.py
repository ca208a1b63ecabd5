"""Reading ranges of files from many threads: by positional reads, or by mapping with windows that are given back.

Both give the same bytes. Positional reads fill the worker's own buffer, so that their memory is known
exactly, and an error of the disk is an exception; a fault in a mapping is a signal that kills the process.
"""

import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .contract import IO, Bytes, Reader, TensorInfo
from .dtypes import DTYPES
from .errors import FormatError

WINDOW_GRAIN = mmap.ALLOCATIONGRANULARITY  # a mapping begins at a multiple of this


def open_reader(files: Sequence[Path], io: IO) -> Reader:
    """A reader over the files of one source."""
    return MapReader(files) if io == "mmap" else PositionalReader(files)


class PositionalReader:
    """Positional reads into the caller's buffer (``preadv``; seek and read under a lock where there is none)."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._descriptors = {file: _open(file) for file in files}
        self._seek = threading.Lock()

    def read(self, tensor: TensorInfo, start: int, stop: int, buffer: Bytes) -> Bytes:
        """See ``Reader``."""
        wanted = buffer[: stop - start]
        view, position, done = wanted.data, tensor.offset + start, 0
        while done < len(view):
            try:
                got = self._read_some(self._descriptors[tensor.file], view[done:], position + done)
            except OSError as error:
                raise FormatError(f"{tensor.file}: reading tensor {tensor.name!r} failed: {error.strerror}") from error
            if got == 0:
                raise FormatError(
                    f"{tensor.file}: the file ends at byte {position + done}, inside tensor {tensor.name!r}; "
                    "it became shorter while it was read"
                )
            done += got
        return wanted

    def _read_some(self, descriptor: int, view: memoryview, position: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(descriptor, [view], position)
        with self._seek:  # Windows has no positional read
            os.lseek(descriptor, position, os.SEEK_SET)
            data = os.read(descriptor, len(view))
        view[: len(data)] = data
        return len(data)

    def ahead(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """See ``Reader``."""
        if hasattr(os, "posix_fadvise"):
            position = tensor.offset + start
            os.posix_fadvise(self._descriptors[tensor.file], position, stop - start, os.POSIX_FADV_WILLNEED)

    def release(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Nothing to give back: the bytes are in the caller's buffer."""

    def close(self) -> None:
        """See ``Reader``."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


class MapReader(PositionalReader):
    """Each range mapped by itself, read-only, until it is released.

    A mapping of the whole file would let the kernel map neighbours of a window (up to a huge page of them), and
    nobody would give these back; a window's own mapping cannot grow.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(files)
        self._windows: dict[tuple[str, int, int], mmap.mmap] = {}

    def read(self, tensor: TensorInfo, start: int, stop: int, buffer: Bytes) -> Bytes:
        """See ``Reader``."""
        if start == stop:
            return buffer[:0]
        begin, end = tensor.offset + start, tensor.offset + stop
        first = begin // WINDOW_GRAIN * WINDOW_GRAIN
        descriptor = self._descriptors[tensor.file]
        size = os.fstat(descriptor).st_size
        if end > size:
            raise FormatError(
                f"{tensor.file}: the file ends at byte {size}, inside tensor {tensor.name!r}; "
                "it became shorter while it was read"
            )
        try:
            window = _map(descriptor, end - first, first)
        except (OSError, ValueError) as error:
            raise FormatError(f"{tensor.file}: cannot be mapped: {error}; try --io pread") from error
        self._windows[tensor.name, start, stop] = window
        view = np.frombuffer(window, np.uint8)[begin - first :]
        if begin % DTYPES[tensor.dtype].itemsize == 0:
            return view
        aligned = buffer[: end - begin]  # compiled code wants aligned elements
        aligned[:] = view
        return aligned

    def release(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """See ``Reader``: the pages go at once, the empty mapping when its last view does."""
        window = self._windows.pop((tensor.name, start, stop), None)
        if window is not None and hasattr(window, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            window.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """See ``Reader``."""
        self._windows.clear()
        super().close()


def _map(descriptor: int, length: int, start: int) -> mmap.mmap:
    """A window for reading. Linux maps all its pages at once, which is much cheaper than one fault after another."""
    if hasattr(mmap, "MAP_POPULATE"):
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        return mmap.mmap(descriptor, length, flags=flags, prot=mmap.PROT_READ, offset=start)
    return mmap.mmap(descriptor, length, offset=start, access=mmap.ACCESS_READ)


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise FormatError(f"{file}: cannot be opened: {error.strerror}") from error
