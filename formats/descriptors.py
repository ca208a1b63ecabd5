"""Open files, fewer than the system allows: 16 agents of 64 shards are more than most processes may have open.

The limit is the process's, so all of them are in one pool. What was used longest ago is closed, and opened again when
it is wanted; what is in use stays open.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_ALWAYS = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_MOST = 4096
_MOST_ON_WINDOWS = 256


def _most_open() -> int:
    """Half of what the process may have open: the rest is for whatever else is in it."""
    try:
        import resource
    except ImportError:
        return _MOST_ON_WINDOWS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else min(soft // 2, _MOST)


@dataclass(eq=False, slots=True)
class PooledFile:
    """A file that exists and is opened when it is used. Thread-safe.

    ``check`` sees each newly opened descriptor, ``leave`` one that is closed because others are wanted more.
    """

    path: Path
    flags: int = os.O_RDONLY
    check: Callable[[int], None] = lambda descriptor: None
    leave: Callable[[int], None] = lambda descriptor: None
    _descriptor: int = -1
    _users: int = 0

    @contextmanager
    def use(self) -> Iterator[int]:
        """The descriptor, open at least until the end of the block. Raises OSError, and what ``check`` raises."""
        with _lock:
            if self._descriptor < 0:
                self._open()
            _opened[self] = _opened.pop(self)
            self._users += 1
        try:
            yield self._descriptor
        finally:
            with _lock:
                self._users -= 1

    def _open(self) -> None:
        for other in [file for file in _opened if file._users == 0]:
            if len(_opened) < _most_open():
                break
            other.leave(other._descriptor)
            other._close()
        descriptor = os.open(self.path, self.flags | _ALWAYS)
        try:
            self.check(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _opened[self] = None

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        del _opened[self]
        with suppress(OSError):  # the mount is gone; what was written has been synced, or is given up
            os.close(descriptor)

    def close(self) -> None:
        """Close the file, which nobody uses at the moment, if it is open."""
        with _lock:
            if self._descriptor >= 0:
                self._close()


_lock = threading.Lock()
_opened: dict[PooledFile, None] = {}  # in the order of their last use
