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

# Around a fault the kernel maps up to 64 KiB of neighbours that are in the page cache (Linux's
# fault_around_bytes); rounding what is given back to the same grid leaves none of them behind.
FAULT_AROUND = 64 * 1024


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


class MapReader:
    """Each file mapped once, read-only; ranges are views of the mapping until they are released."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._views: dict[Path, Bytes] = {}
        for file in files:
            descriptor = _open(file)
            try:
                self._maps[file] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise FormatError(f"{file}: cannot be mapped: {error}; try --io pread") from error
            finally:
                os.close(descriptor)
            self._views[file] = np.frombuffer(self._maps[file], np.uint8)

    def read(self, tensor: TensorInfo, start: int, stop: int, buffer: Bytes) -> Bytes:
        """See ``Reader``."""
        begin, end = tensor.offset + start, tensor.offset + stop
        view = self._views[tensor.file]
        if end > view.size:
            raise FormatError(f"{tensor.file}: the file ends at byte {view.size}, inside tensor {tensor.name!r}")
        if begin % DTYPES[tensor.dtype].itemsize == 0:
            return view[begin:end]
        aligned = buffer[: end - begin]  # compiled code wants aligned elements
        aligned[:] = view[begin:end]
        return aligned

    def ahead(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """See ``Reader``."""
        self._advise("MADV_WILLNEED", tensor, start, stop)

    def release(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """See ``Reader``."""
        self._advise("MADV_DONTNEED", tensor, start, stop)

    def _advise(self, name: str, tensor: TensorInfo, start: int, stop: int) -> None:
        advice = getattr(mmap, name, None)
        mapped = self._maps[tensor.file]
        if advice is None or not hasattr(mapped, "madvise"):
            return
        begin = (tensor.offset + start) // FAULT_AROUND * FAULT_AROUND
        end = min(-(-(tensor.offset + stop) // FAULT_AROUND) * FAULT_AROUND, len(mapped))
        if end > begin:
            mapped.madvise(advice, begin, end - begin)

    def close(self) -> None:
        """See ``Reader``."""
        self._views.clear()
        for mapped in self._maps.values():
            try:
                mapped.close()
            except BufferError:  # a view outlived an error; the mapping goes with it
                continue
        self._maps.clear()


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise FormatError(f"{file}: cannot be opened: {error.strerror}") from error
