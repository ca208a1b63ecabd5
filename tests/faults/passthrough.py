"""A FUSE file system that shows a folder as it is, except for the faults that it is asked for.

    python -m tests.faults.passthrough FOLDER MOUNTPOINT [--read-error NAME] [--full-after BYTES]

It cannot reserve space, as NFS before 4.2, FAT and many others cannot. Killed, it leaves a mount that is gone.
"""

import argparse
import errno
import os
from pathlib import Path

from mfusepy import FUSE, FuseOSError, Operations

_STATUS = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_atime", "st_mtime", "st_ctime")
_SPACE = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_namemax")


class Passthrough(Operations):
    def __init__(self, folder, faults):
        self.folder, self.faults, self.written = folder, faults, 0

    def _at(self, path):
        return os.fspath(self.folder) + path

    def getattr(self, path, fh=None):
        status = os.lstat(self._at(path))
        return {name: getattr(status, name) for name in _STATUS}

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(self._at(path))]

    def open(self, path, flags):
        return os.open(self._at(path), flags)

    def create(self, path, mode, fi=None):
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path, size, offset, fh):
        # The header can be read: a disk rarely fails at the first byte.
        if self.faults.read_error and path.endswith(self.faults.read_error) and offset > 1 << 20:
            raise FuseOSError(errno.EIO)
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        self.written += len(data)
        if self.written > self.faults.full_after:
            raise FuseOSError(errno.ENOSPC)
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        os.truncate(self._at(path), length)

    def release(self, path, fh):
        os.close(fh)
        return 0

    def fsync(self, path, datasync, fh):
        os.fsync(fh)
        return 0

    def statfs(self, path):
        space = os.statvfs(self._at(path))
        return {name: getattr(space, name) for name in _SPACE}

    def mkdir(self, path, mode):
        os.mkdir(self._at(path), mode)
        return 0

    def rmdir(self, path):
        os.rmdir(self._at(path))
        return 0

    def unlink(self, path):
        os.unlink(self._at(path))
        return 0

    def rename(self, old, new):
        os.rename(self._at(old), self._at(new))
        return 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("--read-error", metavar="NAME", help="reading the file of this ending fails past 1 MiB")
    parser.add_argument("--full-after", type=int, default=1 << 62, metavar="BYTES", help="then the disk is full")
    faults = parser.parse_args()
    FUSE(Passthrough(faults.folder, faults), os.fspath(faults.mountpoint), foreground=True)


if __name__ == "__main__":
    main()
