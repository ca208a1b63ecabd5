"""Files of known size, written in place from many threads, that leave the page cache again.

Files are pre-sized, so that a full disk shows before the work. Putting what was written under its final name is
``atomic.py``'s.
"""

import ctypes
import errno
import os
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .contract import Bytes, OutputFile
from .descriptors import PooledFile
from .errors import OutputError, unwritten, why

_START, _START_AND_WAIT = 2, 7  # SYNC_FILE_RANGE_WRITE; with WAIT_BEFORE and WAIT_AFTER
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ESPIPE)


def _linux(name: str, *types: Any) -> Callable[..., bool] | None:
    """A system call of Linux that Python has no name for, on (descriptor, ...). It returns whether the file system
    knows it, and raises OSError where it failed."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, *types)

    def call(*arguments: int) -> bool:
        while function(*arguments) != 0:
            number = ctypes.get_errno()
            if number in _UNSUPPORTED:
                return False
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
        return True

    return call


# Writes out a range without waiting. What it reports as failed, fsync does not report again.
_sync_file_range = _linux("sync_file_range", ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
# Not posix_fallocate: where the file system cannot reserve, the C library writes into every block of the file instead.
_fallocate = _linux("fallocate64", ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

# How much written data may be in the page cache before the oldest is dropped from it, as far as it is on the disk, and
# how much of it before the rest is waited for.
_DROPPED_BEHIND, _WAITED_BEHIND = 32 * 1024 * 1024, 64 * 1024 * 1024


class _Queue:
    """Ranges of a file, at most ``limit`` bytes of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ranges: deque[tuple[int, int]] = deque()
        self._bytes = 0

    def push(self, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Append ranges (position, length); those that are too many, the oldest, come out."""
        out = []
        for position, length in ranges:
            self._ranges.append((position, length))
            self._bytes += length
        while self._bytes > self._limit:
            out.append(self._ranges.popleft())
            self._bytes -= out[-1][1]
        return out


class PresizedFile:
    """A file of known size that is written in place, in any order, from any thread; ``existing`` if it is there.

    The system tells only once that data did not reach the disk, and whoever asks next hears that all is well. So it is
    remembered here: such a file cannot be synced any more, and nothing that it lost is taken for done.
    """

    def __init__(self, path: Path, size: int, *, existing: bool = False) -> None:
        self.path = path
        self._file = PooledFile(path, os.O_RDWR, leave=self._reach_the_disk)
        self._lock = threading.Lock()
        self._fresh, self._settling = _Queue(_DROPPED_BEHIND), _Queue(_WAITED_BEHIND - _DROPPED_BEHIND)
        self._is_new = True
        self._is_lost = False
        try:
            if not existing:
                path.touch(exist_ok=False)
            elif not stat.S_ISREG(path.lstat().st_mode):
                raise OutputError(f"{path}: is no regular file; start anew with --overwrite")
            with self._file.use() as descriptor:
                if not existing:
                    _presize(descriptor, size)
                elif (found := os.fstat(descriptor).st_size) != size:
                    raise OutputError(f"{path}: has {found} bytes instead of {size}; start anew with --overwrite")
        except FileNotFoundError as error:
            raise OutputError(f"{path}: is missing; start anew with --overwrite") from error
        except OSError as error:
            self.close()
            raise OutputError(f"{path}: cannot be written, {size} bytes in all: {why(error)}") from error

    def write(self, position: int, data: Bytes | bytes) -> None:
        """Put ``data`` at ``position``."""
        view, done = memoryview(data) if isinstance(data, bytes) else data.data, 0
        try:
            with self._file.use() as descriptor:
                while done < len(view):
                    done += self._write_some(descriptor, view[done:], position + done)
                self._leave_page_cache(descriptor, position, len(view))
        except OSError as error:
            raise unwritten(self.path, position + done, error) from error

    def _write_some(self, descriptor: int, view: memoryview, position: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(descriptor, view, position)
        with self._lock:  # Windows has no positional write
            os.lseek(descriptor, position, os.SEEK_SET)
            return os.write(descriptor, view)

    def _leave_page_cache(self, descriptor: int, position: int, length: int) -> None:
        """Start writing this range to disk now, and drop the ones that have had time to get there.

        Dirty pages cannot be dropped: asking for it at once costs three times the write (measured). The page that two
        ranges share may be dirty still, because it was on its way when the second of them came: it is asked for first,
        and waited for later. Waiting at the first try was a fifteenth of a merge.
        """
        if _sync_file_range is None:
            self._is_new = True
            return
        with self._lock:
            self._is_new = True
            settling = self._fresh.push([(position, length)])
            late = self._settling.push(settling)
        try:
            _sync_file_range(descriptor, position, length, _START)
            for start, size in settling:
                os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_DONTNEED)
            for start, size in late:
                _sync_file_range(descriptor, start, size, _START_AND_WAIT)
                os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_DONTNEED)
        except OSError:
            self._is_lost = True
            raise

    def sync(self) -> None:
        """Make the contents durable, if there is anything new."""
        with self._lock:
            is_new, self._is_new = self._is_new, False
        try:
            if is_new:
                with self._file.use() as descriptor:
                    self._reach_the_disk(descriptor)
        except OSError as error:
            raise unwritten(self.path, 0, error) from error
        if self._is_lost:
            raise OutputError(f"{self.path}: what was written did not reach the disk; check it")

    def _reach_the_disk(self, descriptor: int) -> None:
        try:
            os.fsync(descriptor)
            if _sync_file_range is not None:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            self._is_lost = True
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _presize(descriptor: int, size: int) -> None:
    """Reserve the space; where the file system cannot, set the size, and a full disk shows while it is written."""
    if not (size and _fallocate is not None and _fallocate(descriptor, 0, 0, size)):
        os.truncate(descriptor, size)


class FilesSink:
    """A sink over files whose headers and offsets are known: each pre-sized with zeros, ranges written in place."""

    def __init__(self, folder: Path, files: Sequence[OutputFile], *, existing: bool = False) -> None:
        self._files: list[PresizedFile] = []
        self._places: dict[str, tuple[PresizedFile, int]] = {}
        try:
            for file in files:
                opened = PresizedFile(folder / file.name, file.size, existing=existing)
                self._files.append(opened)
                opened.write(0, file.header)
                self._places.update({name: (opened, offset) for name, offset in file.offsets.items()})
        except BaseException:
            self.close()
            raise

    def write(self, name: str, start: int, data: Bytes) -> None:
        """See ``Sink``."""
        file, offset = self._places[name]
        file.write(offset + start, data)

    def sync(self) -> None:
        """See ``Sink``."""
        for file in self._files:
            file.sync()

    def close(self) -> None:
        """See ``Sink``."""
        for file in self._files:
            file.close()
