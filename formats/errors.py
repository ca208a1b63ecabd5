"""The root of every error that streammerge raises on purpose, and the two that file formats raise.

The whole tree is drawn in ``streammerge/errors.py``.
"""

import errno
from pathlib import Path


class StreammergeError(Exception):
    """Something the user can act on; its text says where, what was found, what was wanted and what to do."""

    exit_code = 1


class FormatError(StreammergeError):
    """An input file is broken, or of a kind that is not read."""


class OutputError(StreammergeError):
    """The output cannot be written: it exists, there is no space, permission is missing."""


_WHAT_TO_DO = {
    errno.EIO: "check the disk",
    errno.ENOTCONN: "is it still mounted?",
    errno.ECONNABORTED: "is it still mounted?",
    errno.ESTALE: "is it still mounted?",
    errno.ETIMEDOUT: "is the network there?",
    errno.EACCES: "check who may read and write it",
    errno.EPERM: "check who may read and write it",
    errno.EMFILE: "raise ulimit -n",
    errno.ENFILE: "the whole system has too many open",
    errno.EDQUOT: "free some, or choose another place",
    errno.ENOSPC: "free some, or choose another place",
    errno.EFBIG: "ulimit -f or the file system allows no larger one: give a smaller --max-shard-size",
}


def why(error: OSError) -> str:
    """What the system says about a failed call, and what to do about it."""
    said = error.strerror or str(error)
    return f"{said}; {_WHAT_TO_DO[error.errno]}" if error.errno in _WHAT_TO_DO else said


def unwritten(path: Path, position: int, error: OSError) -> OutputError:
    """That a file cannot be written, from this byte on."""
    where = f" at byte {position}" if position else ""
    return OutputError(f"{path}: cannot be written{where}: {why(error)}")
