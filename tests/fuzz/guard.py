"""What must hold of any input whatever: an error of ours or success, in time, in memory, with nothing touched."""

import hashlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from streammerge import budget
from streammerge.errors import StreammergeError
from streammerge.escape import printable

SECONDS, MEMORY, LONGEST = 5, 200 << 20, 3000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree"}
_RUNS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "socket.connect"}


class Broken(AssertionError):
    """A promise was not kept."""


class Hang(BaseException):
    """It took too long. Not an Exception, so that nobody catches it."""


class _Watch:
    """Listens to what Python tells auditors: every file that is opened, every change of a folder, every program."""

    def __init__(self) -> None:
        self.inside: Path | None = None
        self.unread: tuple[str, ...] = ()
        self.seen: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple) -> None:
        if self.inside is None:
            return
        if event in _RUNS and not _is_ours(event, arguments):
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event in _CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING):
            place = arguments[0]
            if isinstance(place, str | bytes | os.PathLike) and not self._allowed(os.fsdecode(place)):
                self.seen.append(f"{event} {place!r:.200}")
        elif event == "open" and isinstance(arguments[0], str) and os.path.abspath(arguments[0]) in self.unread:
            self.seen.append(f"read {arguments[0]!r:.200}")

    def _allowed(self, place: str) -> bool:
        return Path(os.path.abspath(place)).is_relative_to(self.inside) or not place.startswith("/")


def _is_ours(event: str, arguments: tuple) -> bool:
    """Whether a program is a module of streammerge, which reads a tokenizer in a process of its own."""
    command = arguments[1] if event == "subprocess.Popen" else ()
    return list(command[:3]) == [sys.executable, "-P", "-m"] and command[3].startswith("streammerge.")


_watch: _Watch | None = None


@contextmanager
def watched(output: Path, unread: Sequence[Path] = ()) -> Iterator[None]:
    """Raises Broken if anything is written outside of ``output``, or any program is run, or it hangs, or a file is read
    by a name that leads to one of ``unread``."""
    global _watch
    _watch = _watch or _Watch()

    def ring(number: int, frame: object) -> None:
        raise Hang(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    _watch.inside, _watch.unread, _watch.seen = output, tuple(map(str, unread)), []
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        _watch.inside = None
    if _watch.seen:
        raise Broken(f"touched what is not its own: {_watch.seen[:3]}")


def check_error(error: StreammergeError) -> None:
    """An error's text is short, and one line when printed."""
    text = str(error)
    if not text or len(text) > LONGEST or "\n" in printable(text):
        raise Broken(f"an error of {len(text)} characters: {text[:300]!r}")


def check_memory(before: int) -> None:
    """The peak has not grown by more than any input may take."""
    grown = budget.peak() - before
    if grown > MEMORY:
        raise Broken(f"the peak grew by {grown >> 20} MB")


def fingerprint(folder: Path) -> dict[str, str]:
    """Every name below a folder and what stands there."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*"))}


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    status = path.lstat()
    with suppress(OSError):
        if path.is_file() and status.st_size < 1 << 24:
            return hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{status.st_mode:o} {status.st_size}"


def check_outside(place: Path) -> None:
    """Beside the folders of input and output nothing was made or changed."""
    if {path.name for path in place.iterdir()} != {"in", "out", "outside"} or (place / "outside").read_text() != "{}":
        raise Broken("something outside was made or changed")
