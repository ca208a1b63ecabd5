"""Reading ranges of files from many threads: by positional reads, or by mapping with windows that are given back.

Both give the same bytes. A mapping saves a copy of every byte, where windows are large. An error of the disk is an
exception either way; but a mapped file that is cut while it is used is a signal that ends the process (busfault.py),
and on a network disk that may be any file. A file that is not what it was when its header was read is an error,
whenever that is found out.
"""

import errno
import mmap
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from . import busfault
from .contract import IO, Bytes, Reader, TensorInfo
from .descriptors import PooledFile
from .dtypes import DTYPES
from .errors import FormatError, why

_MADV_POPULATE_READ = 22  # Python has no name for it
# File systems of a disk in this machine, as Linux calls them.
_LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "tmpfs", "xfs", "zfs"}
WINDOW_GRAIN = mmap.ALLOCATIONGRANULARITY  # a mapping begins at a multiple of this


@dataclass(frozen=True, slots=True)
class Stamp:
    """By what one tells whether a file is still the same: where it lies, its size, when it was last written."""

    device: int
    inode: int
    size: int
    written: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        """From what the system says about a file."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def stamps(files: Sequence[Path]) -> dict[Path, Stamp]:
    """How the files are now: to be taken before their headers are read. Raises FormatError."""
    found = {}
    for file in files:
        try:
            found[file] = Stamp.of(file.stat())
        except OSError as error:
            raise FormatError(f"{file}: cannot be read: {why(error)}") from error
    return found


def are_local(files: Iterable[Path]) -> bool:
    """Whether all lie on disks of this machine, as far as the system tells: False outside Linux."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        kinds = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    except OSError:  # no /proc
        return False
    folders = {file.resolve().parent for file in files}
    places = [next((place for place in (folder, *folder.parents) if place in kinds), None) for folder in folders]
    return all(place is not None and kinds[place] in _LOCAL for place in places)


def open_reader(files: Mapping[Path, Stamp], io: IO) -> Reader:
    """A reader over the files of one source, which must still be as their stamps say. Raises FormatError."""
    return MapReader(files) if io == "mmap" else PositionalReader(files)


class PositionalReader:
    """Positional reads into the caller's buffer (``preadv``; seek and read under a lock where there is none)."""

    def __init__(self, files: Mapping[Path, Stamp]) -> None:
        self._files = {file: PooledFile(file, check=partial(_check, file, stamp)) for file, stamp in files.items()}
        self._stamps = files
        self._seek = threading.Lock()
        try:
            self.check()
        except BaseException:
            PositionalReader.close(self)
            raise

    def check(self) -> None:
        """See ``Reader``."""
        for file, stamp in self._stamps.items():
            with self._opened(file) as descriptor:
                _check(file, stamp, descriptor)

    @contextmanager
    def _opened(self, file: Path) -> Iterator[int]:
        try:
            with self._files[file].use() as descriptor:
                yield descriptor
        except OSError as error:
            raise FormatError(f"{file}: cannot be opened: {why(error)}") from error

    def read(self, tensor: TensorInfo, start: int, stop: int, buffer: Bytes) -> Bytes:
        """See ``Reader``."""
        wanted = buffer[: stop - start]
        view, position, done = wanted.data, tensor.offset + start, 0
        with self._opened(tensor.file) as descriptor:
            while done < len(view):
                try:
                    got = self._read_some(descriptor, view[done:], position + done)
                except OSError as error:
                    raise FormatError(
                        f"{tensor.file}: reading tensor {tensor.name!r} at byte {position + done} failed: {why(error)}"
                    ) from error
                if got == 0:
                    raise _shorter(tensor, os.fstat(descriptor).st_size)  # a chunk may lie wholly behind the end
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
            with self._opened(tensor.file) as descriptor, suppress(OSError):
                os.posix_fadvise(descriptor, position, stop - start, os.POSIX_FADV_WILLNEED)

    def release(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Nothing to give back: the bytes are in the caller's buffer."""

    def close(self) -> None:
        """See ``Reader``."""
        for file in self._files.values():
            file.close()


class MapReader(PositionalReader):
    """Each range mapped by itself, read-only, until it is released.

    A mapping of the whole file would let the kernel map neighbours of a window (up to a huge page of them), and
    nobody would give these back; a window's own mapping cannot grow. Where a range cannot be mapped (its disk fails, or
    the process has no descriptor left) it is read, which says what is wrong or manages, and so is all that comes after
    it: a worker has the bytes of a model in a window or in its buffer, never in both.
    """

    def __init__(self, files: Mapping[Path, Stamp]) -> None:
        super().__init__(files)
        self._can_map = True
        self._windows: dict[tuple[str, int, int], tuple[Path, mmap.mmap]] = {}
        busfault.watch(id(self), self._mapped)

    def _mapped(self) -> list[tuple[Path, int]]:
        return [(file, self._stamps[file].size) for file, _ in list(self._windows.values())]

    def read(self, tensor: TensorInfo, start: int, stop: int, buffer: Bytes) -> Bytes:
        """See ``Reader``."""
        if start == stop:
            return buffer[:0]
        if not self._can_map:
            return super().read(tensor, start, stop, buffer)
        begin, end = tensor.offset + start, tensor.offset + stop
        first = begin // WINDOW_GRAIN * WINDOW_GRAIN
        with self._opened(tensor.file) as descriptor:
            size = os.fstat(descriptor).st_size
            if end > size:
                raise _shorter(tensor, size)
            try:
                window = mmap.mmap(descriptor, end - first, offset=first, access=mmap.ACCESS_READ)
                _touch(window)
            except (OSError, ValueError):
                self._can_map = False
                return super().read(tensor, start, stop, buffer)
        self._windows[tensor.name, start, stop] = tensor.file, window
        view = np.frombuffer(window, np.uint8)[begin - first :]
        if begin % DTYPES[tensor.dtype].itemsize == 0:
            return view
        aligned = buffer[: end - begin]  # compiled code wants aligned elements
        aligned[:] = view
        return aligned

    def release(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """See ``Reader``: the pages go at once, the empty mapping when its last view does."""
        _, window = self._windows.pop((tensor.name, start, stop), (None, None))
        if window is not None and hasattr(window, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            window.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """See ``Reader``."""
        busfault.unwatch(id(self))
        self._windows.clear()
        super().close()


def _touch(window: mmap.mmap) -> None:
    """Map all pages at once, which is much cheaper than one fault after another; one that cannot be read is an OSError.

    Not MAP_POPULATE: it says nothing about errors, and where reading fails, Linux 6 tries the same page for ever.
    """
    try:
        if sys.platform.startswith("linux"):
            window.madvise(_MADV_POPULATE_READ)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel before 5.14
            raise


def _check(file: Path, stamp: Stamp, descriptor: int) -> None:
    """Whether an open file is still what it was. Raises FormatError."""
    now = Stamp.of(os.fstat(descriptor))
    if now == stamp:
        return
    if (now.device, now.inode) != (stamp.device, stamp.inode):
        what = "another file has taken its place"
    elif now.size != stamp.size:
        what = f"{now.size} bytes found, {stamp.size} wanted"
    else:
        what = "somebody wrote to it"
    raise FormatError(f"{file}: was changed while it was read: {what}; start again when it stays as it is")


def _shorter(tensor: TensorInfo, end: int) -> FormatError:
    where = f"{tensor.file}: the file ends at byte {end}, inside tensor {tensor.name!r}"
    return FormatError(f"{where}; it became shorter while it was read")
