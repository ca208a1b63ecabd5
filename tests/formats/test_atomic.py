import os

import pytest

from streammerge.formats.atomic import PresizedFile, Staging
from streammerge.formats.errors import OutputError


def test_the_output_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "out"
    with Staging(target) as staging:
        (staging.folder / "a").write_text("1")
        assert not target.exists()
        staging.finish()
    assert (target / "a").read_text() == "1"
    assert [entry.name for entry in target.iterdir()] == ["a"]
    assert os.listdir(target.parent) == ["out"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "out") as staging:
        (staging.folder / "a").write_text("1")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_single_file(tmp_path):
    target = tmp_path / "out.safetensors"
    with Staging(target) as staging:
        (staging.folder / "out.safetensors").write_text("1")
        staging.finish(["out.safetensors"])
    assert target.read_text() == "1"
    assert os.listdir(tmp_path) == ["out.safetensors"]


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "stale").write_text("old")
    with Staging(tmp_path / "out") as staging:
        assert [entry.name for entry in staging.folder.iterdir()] == [".lock"]
        staging.finish()
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_overwriting_replaces_only_at_the_end(tmp_path, kind):
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
        (target / "old").write_text("old")
    else:
        target.write_text("old")
    with Staging(target) as staging:
        (staging.folder / "out").write_text("new")
        assert target.exists()
        staging.finish(["out"] if kind == "file" else (), overwrite=True)
    assert os.listdir(tmp_path) == ["out"]
    assert (target / "out" if kind == "folder" else target).read_text() == "new"


def test_two_runs_cannot_write_the_same_output(tmp_path):
    with Staging(tmp_path / "out"):
        with pytest.raises(OutputError, match="another run is writing this output"), Staging(tmp_path / "out"):
            pass
        assert (tmp_path / "out.partial").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/out"), Staging(tmp_path / "file" / "out"):
        pass


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
