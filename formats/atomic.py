"""Output that is either whole or not there: everything is written aside and renamed at the end.

``OUT.partial/`` stands beside ``OUT``, so that the rename stays on one file system. Files are pre-sized
(a full disk shows before the work), written in place from any thread, and leave the page cache again.
"""

import ctypes
import errno
import os
import shutil
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from .contract import Bytes, OutputFile
from .errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_START, _START_AND_WAIT = 2, 7  # SYNC_FILE_RANGE_WRITE; with WAIT_BEFORE and WAIT_AFTER


def _find_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux's way to write out a range without waiting; Python has no name for it."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    found: Callable[[int, int, int, int], int] = function
    return found


_sync_file_range = _find_sync_file_range()

# How much written data may wait in the page cache before the oldest is dropped from it.
_WRITE_BEHIND = 64 * 1024 * 1024


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
            self._lock = _lock(self.folder / ".lock")
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be created: {error.strerror}") from error
        return self

    def clear(self, kept: Collection[str] = ()) -> None:
        """Remove what an earlier run left, but for the files that are ``kept``. Raises OutputError."""
        try:
            for entry in self.folder.iterdir():
                if entry.name not in kept and entry.name != ".lock":
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be cleared: {error.strerror}") from error

    def finish(self, files: Sequence[str] = (), replaced: Sequence[Path] = (), own: Sequence[str] = ()) -> None:
        """Give the output its final name: the whole folder, or ``files`` of it, beside each other where ``OUT`` lies.

        Every file must be durable already; the folder and its parent are synced here. Of several files the first
        comes last: no loader takes the others for a model without it. What is ``replaced`` is set aside before, and
        removed when all is in place; if anything fails, all is as it was. ``own`` are files that only an unfinished
        output has: of a folder they are removed last.
        """
        places = [(self.folder / name, self.target.with_name(name)) for name in reversed(files)]
        aside = self.folder.with_name(f"{self.target.name}.replaced-{os.getpid()}")
        moves = [(path, aside / path.name) for path in replaced] + (places or [(self.folder, self.target)])
        done: list[tuple[Path, Path]] = []
        try:
            _sync_folder(self.folder)
            if replaced:
                aside.mkdir()
            for source, place in moves:
                _move(source, place)
                done.append((source, place))
            _sync_folder(self.target.parent)
        except BaseException as error:
            for source, place in reversed(done):
                place.rename(source)
            if replaced and aside.exists():
                aside.rmdir()
            if isinstance(error, OSError):
                raise OutputError(f"{self.target}: cannot be put in place: {error.strerror or error}") from error
            raise
        self._finished = True
        self._unlock()
        if files:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            for name in (*own, ".lock"):
                (self.target / name).unlink(missing_ok=True)
        shutil.rmtree(aside, ignore_errors=True)

    def _unlock(self) -> None:
        if self._lock is not None:
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


def _move(source: Path, target: Path) -> None:
    """Rename, but never onto anything but an empty folder."""
    if target.is_dir() and not target.is_symlink():
        target.rmdir()
    elif target.exists() or target.is_symlink():
        raise FileExistsError(errno.EEXIST, "it exists already")
    source.rename(target)


class PresizedFile:
    """A file of known size that is written in place, in any order, from any thread; ``existing`` if it is there."""

    def __init__(self, path: Path, size: int, *, existing: bool = False) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._behind: deque[tuple[int, int]] = deque()
        self._waiting = 0
        self._is_new = True
        flags = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            self._descriptor = os.open(path, flags | (0 if existing else os.O_CREAT | os.O_EXCL), 0o666)
            if not existing:
                self._presize(size)
            elif (found := os.fstat(self._descriptor).st_size) != size:
                raise OutputError(f"{path}: has {found} bytes instead of {size}; start anew with --overwrite")
        except FileNotFoundError as error:
            raise OutputError(f"{path}: is missing; start anew with --overwrite") from error
        except OSError as error:
            raise _no_space(path, size, error) from error

    def _presize(self, size: int) -> None:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._descriptor, 0, size)
        else:
            os.truncate(self._descriptor, size)

    def write(self, position: int, data: Bytes | bytes) -> None:
        """Put ``data`` at ``position``."""
        view, done = memoryview(data) if isinstance(data, bytes) else data.data, 0
        try:
            while done < len(view):
                done += self._write_some(view[done:], position + done)
        except OSError as error:
            raise _no_space(self.path, len(view), error) from error
        self._leave_page_cache(position, len(view))

    def _write_some(self, view: memoryview, position: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._descriptor, view, position)
        with self._lock:  # Windows has no positional write
            os.lseek(self._descriptor, position, os.SEEK_SET)
            return os.write(self._descriptor, view)

    def _leave_page_cache(self, position: int, length: int) -> None:
        """Start writing this range to disk now, and drop the ones that have had time to get there.

        Dirty pages cannot be dropped: asking for it without waiting costs three times the write (measured).
        """
        if _sync_file_range is None:
            self._is_new = True
            return
        _sync_file_range(self._descriptor, position, length, _START)
        with self._lock:
            self._is_new = True
            self._behind.append((position, length))
            self._waiting += length
            late = []
            while self._waiting > _WRITE_BEHIND:
                late.append(self._behind.popleft())
                self._waiting -= late[-1][1]
        for start, size in late:
            _sync_file_range(self._descriptor, start, size, _START_AND_WAIT)
            os.posix_fadvise(self._descriptor, start, size, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Make the contents durable, if there is anything new."""
        with self._lock:
            is_new, self._is_new = self._is_new, False
        if not is_new:
            return
        try:
            os.fsync(self._descriptor)
            if _sync_file_range is not None:
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise _no_space(self.path, 0, error) from error

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


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
    aside = path.with_name(path.name + ".new")
    try:
        with open(aside, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _no_space(path, 0, error) from error


def copy_file(source: Path, target: Path) -> None:
    """Copy a file durably."""
    try:
        shutil.copyfile(source, target)
        with open(target, "rb+") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise _no_space(target, source.stat().st_size, error) from error


def _no_space(path: Path, size: int, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{path}: no space left on the device for {size} bytes; free some, or choose another place")
    return OutputError(f"{path}: cannot be written: {error.strerror}")


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
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise OutputError(
            f"{path.parent}: another run is writing this output; wait for it or choose another"
        ) from error
    return descriptor
