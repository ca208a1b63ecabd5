"""A FUSE file system that shows a folder as it is, except for the faults that it is asked for.

    python -m bench.reliability.passthrough FOLDER MOUNTPOINT [--read-error NAME] [--full-after BYTES]

It cannot reserve space, as NFS before 4.2, FAT and many others cannot. Killed, it leaves a mount that is gone.
"""

import argparse
import errno
import os
from pathlib import Path

from mfusepy import FUSE, FuseOSError, Operations

_STATUS = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size")
_TIMES = ("st_atime", "st_mtime", "st_ctime")
_SPACE = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_namemax")

_BAD = (28, 35)  # from where to where a file cannot be read, in percent: neither its header nor what is sampled of it


class Passthrough(Operations):  # type: ignore[misc, unused-ignore]  # mfusepy has no types
    """The calls that a merge makes, each made once more on the folder behind."""

    use_ns = True

    def __init__(self, folder: Path, faults: argparse.Namespace) -> None:
        self._folder, self._faults, self._written = folder, faults, 0

    def _at(self, path: str) -> Path:
        return self._folder / path.lstrip("/")

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        """See Operations."""
        status = self._at(path).lstat()
        times = {name: getattr(status, f"{name}_ns") for name in _TIMES}
        return {**{name: getattr(status, name) for name in _STATUS}, **times}

    def readdir(self, path: str, fh: int) -> list[str]:
        """See Operations."""
        return [".", "..", *(entry.name for entry in self._at(path).iterdir())]

    def open(self, path: str, flags: int) -> int:
        """See Operations."""
        return os.open(self._at(path), flags)

    def create(self, path: str, mode: int, fi: object = None) -> int:
        """See Operations."""
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """See Operations."""
        if self._faults.read_error and path.endswith(self._faults.read_error):
            first, last = (os.fstat(fh).st_size * place // 100 for place in _BAD)
            if offset < last and offset + size > first:
                raise FuseOSError(errno.EIO)
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """See Operations."""
        self._written += len(data)
        if self._written > self._faults.full_after:
            raise FuseOSError(errno.ENOSPC)
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        """See Operations."""
        os.truncate(self._at(path), length)
        return 0

    def release(self, path: str, fh: int) -> int:
        """See Operations."""
        os.close(fh)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        """See Operations."""
        os.fsync(fh)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        """See Operations."""
        space = os.statvfs(self._at(path))
        return {name: getattr(space, name) for name in _SPACE}

    def mkdir(self, path: str, mode: int) -> int:
        """See Operations."""
        self._at(path).mkdir(mode)
        return 0

    def rmdir(self, path: str) -> int:
        """See Operations."""
        self._at(path).rmdir()
        return 0

    def unlink(self, path: str) -> int:
        """See Operations."""
        self._at(path).unlink()
        return 0

    def rename(self, old: str, new: str) -> int:
        """See Operations."""
        self._at(old).rename(self._at(new))
        return 0


def main() -> None:
    """Mount, and serve until it is unmounted or killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("--read-error", metavar="NAME", help="a part of the file of this ending cannot be read")
    parser.add_argument("--full-after", type=int, default=1 << 62, metavar="BYTES", help="then the disk is full")
    faults = parser.parse_args()
    FUSE(Passthrough(faults.folder, faults), os.fspath(faults.mountpoint), foreground=True)


if __name__ == "__main__":
    main()
