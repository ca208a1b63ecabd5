"""Output that is either whole or not there: everything is written aside and renamed at the end.

``OUT.partial/`` stands beside ``OUT``, so that the rename stays on one file system. The large files in it are
``writing.py``'s.
"""

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from .errors import FormatError, OutputError, unwritten, why

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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
        raise unwritten(path, 0, error) from error


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
