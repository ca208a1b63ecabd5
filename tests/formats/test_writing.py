import os

import pytest

from streammerge.formats.errors import OutputError
from streammerge.formats.writing import PresizedFile


def test_files_are_presized_and_written_in_any_order(tmp_path):
    file = PresizedFile(tmp_path / "f", 6)
    assert (tmp_path / "f").stat().st_size == 6
    file.write(3, b"def")
    file.write(0, b"abc")
    file.sync()
    file.close()
    assert (tmp_path / "f").read_bytes() == b"abcdef"
    with pytest.raises(OutputError, match="cannot be written"):
        PresizedFile(tmp_path / "f", 6)


def cached_pages(path):
    """Bytes of a file in the page cache, by mincore through a mapping that touches nothing."""
    import ctypes
    import mmap

    size = path.stat().st_size
    with open(path, "rb+") as handle, mmap.mmap(handle.fileno(), size) as mapped:
        vector = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), vector) == 0
        return sum(page & 1 for page in vector) * mmap.PAGESIZE


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs Linux")
def test_what_is_written_leaves_the_page_cache(tmp_path):
    file = PresizedFile(tmp_path / "f", 200 << 20)
    piece = os.urandom(1 << 20)
    for start in range(0, 200 << 20, 1 << 20):
        file.write(start, piece)
    in_memory = os.statvfs(tmp_path).f_files == 0 or _is_tmpfs(tmp_path)
    if in_memory:
        pytest.skip("the temporary folder is in memory, its files are always cached")
    assert cached_pages(tmp_path / "f") <= 80 << 20
    file.sync()
    assert cached_pages(tmp_path / "f") <= 1 << 20
    file.close()


def _is_tmpfs(path):
    with open("/proc/mounts") as mounts:
        lines = [line.split() for line in mounts]
    best = max((line for line in lines if str(path).startswith(line[1])), key=lambda line: len(line[1]))
    return best[2] in ("tmpfs", "ramfs", "overlay")
