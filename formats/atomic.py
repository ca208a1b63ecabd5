"""Output that is either whole or not there: everything is written aside and renamed at the end.

``OUT.partial/`` stands beside ``OUT``, so that the rename stays on one file system. Files are pre-sized
(a full disk shows before the work), written in place from any thread, and leave the page cache again.
"""

import ctypes
import errno
import json
import os
import shutil
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from .contract import Bytes, OutputFile
from .descriptors import PooledFile
from .errors import FormatError, OutputError, why

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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
_PIECE = 1024 * 1024  # of a file that is copied
# In OUT.partial while its output gets its name: the files that are moved, and what stood in their place.
_MOVED, _REPLACED = ".moved", ".replaced"


class Staging:
    """The folder ``OUT.partial`` while an output is made. Leaving the ``with`` block unfinished removes it, unless
    ``keep`` was set: then another run may go on with what it holds."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = partial_folder(target)
        self.keep = False
        self._finished = False
        self._parents: list[Path] = []

    def __enter__(self) -> "Staging":
        self._parents = [parent for parent in self.target.parents if not parent.exists()]
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(exist_ok=True)
            if self.folder.is_symlink():
                raise OutputError(f"{self.folder}: is a link, and would be written through; remove it")
            self._lock = _lock(self.folder / ".lock")
            self._undo()
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be created: {why(error)}") from error
        return self

    def _undo(self) -> None:
        """Where a run was killed while it gave several files their names, or had set aside what they replace: as if it
        had not begun to."""
        if not (self.folder / _MOVED).exists():
            return
        for place in half_named(self.target):
            place.rename(self.folder / place.name)
        for path in (self.folder / _REPLACED).glob("*"):
            place = self.target.with_name(path.name)
            if not (place.exists() or place.is_symlink()):
                path.rename(place)
        (self.folder / _MOVED).unlink()

    def clear(self, kept: Collection[str] = ()) -> None:
        """Remove what an earlier run left, but for the files that are ``kept``. Raises OutputError."""
        try:
            for entry in sorted(self.folder.iterdir()):  # hidden ones first: nothing vouches for what is gone
                if entry.name not in kept and entry.name != ".lock":
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be cleared: {why(error)}") from error

    def finish(self, files: Sequence[str] = (), replaced: Sequence[Path] = (), own: Sequence[str] = ()) -> None:
        """Give the output its final name: the whole folder, or ``files`` of it, beside each other where ``OUT`` lies.

        Every file must be durable already; the folder and its parent are synced here. Of several files the first
        comes last: no loader takes the others for a model without it. What is ``replaced`` is set aside before, and
        removed when all is in place; if anything fails, all is as it was, after a kill when the next run begins.
        ``own`` are files that only an unfinished output has: they are removed last.
        """
        places = [(self.folder / name, self.target.with_name(name)) for name in reversed(files)]
        aside = self.folder / _REPLACED
        moves = [(path, aside / path.name) for path in replaced] + (places or [(self.folder, self.target)])
        done: list[tuple[Path, Path]] = []
        try:
            aside.mkdir(exist_ok=True)
            replace_file(self.folder / _MOVED, [json.dumps(files).encode()])
            _sync_folder(self.folder)
            for source, place in moves:
                _move(source, place)
                done.append((source, place))
            _sync_folder(self.target.parent)
        except BaseException as error:
            for source, place in reversed(done):
                place.rename(source)
            (self.folder / _MOVED).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise OutputError(f"{self.target}: cannot be put in place: {why(error)}") from error
            raise
        self._finished = True
        self._unlock()
        left = self.folder if files else self.target
        for name in (_MOVED, *own, ".lock"):
            (left / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder if files else self.target / _REPLACED, ignore_errors=True)

    def _unlock(self) -> None:
        if self._lock is not None:
            with suppress(OSError):  # the mount is gone: no reason to hide what went wrong before
                os.close(self._lock)
            self._lock = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._finished:
            return
        if self.keep:
            self._unlock()
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._unlock()
            for parent in self._parents:
                with suppress(OSError):  # somebody else put something there
                    parent.rmdir()


def partial_folder(target: Path) -> Path:
    """Where an output is while it is made."""
    return target.with_name(target.name + ".partial")


def half_named(target: Path) -> list[Path]:
    """Files of an output that have their names already, though the run that gave them was killed meanwhile."""
    folder = partial_folder(target)
    try:
        names = json.loads((folder / _MOVED).read_bytes())
    except (OSError, ValueError):
        return []
    places = [(folder / name, target.with_name(name)) for name in names]
    return [place for source, place in places if place.is_file() and not source.exists()]


def _move(source: Path, target: Path) -> None:
    """Rename, but never onto anything but an empty folder."""
    if target.is_dir() and not target.is_symlink():
        target.rmdir()
    elif target.exists() or target.is_symlink():
        raise FileExistsError(errno.EEXIST, "it exists already")
    source.rename(target)


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
            raise _unwritten(self.path, position + done, error) from error

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
        and waited for later. Waiting at once was a tenth of a merge.
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
            raise _unwritten(self.path, 0, error) from error
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


def write_file(path: Path, data: bytes) -> None:
    """Write a small file durably."""
    replace_file(path, [data])


def replace_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file durably, in one step: what stood there stays until the new one is whole."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")  # in a cache another process may write the same
    try:
        with open(aside, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritten(path, 0, error) from error


def copy_file(source: Path, target: Path) -> None:
    """Copy a file durably. Raises FormatError where it cannot be read."""
    replace_file(target, _pieces(source))


def _pieces(source: Path) -> Iterator[bytes]:
    try:
        with open(source, "rb") as file:
            while piece := file.read(_PIECE):
                yield piece
    except OSError as error:
        raise FormatError(f"{source}: cannot be read: {why(error)}") from error


def _unwritten(path: Path, position: int, error: OSError) -> OutputError:
    where = f" at byte {position}" if position else ""
    return OutputError(f"{path}: cannot be written{where}: {why(error)}")


def _sync_folder(folder: Path) -> None:
    """Make names durable; only POSIX systems let a folder be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock(path: Path) -> int | None:
    """Keep a second run out of the same output; the lock dies with the process."""
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise OutputError(
            f"{path.parent}: another run is writing this output; wait for it or choose another"
        ) from error
    return descriptor
