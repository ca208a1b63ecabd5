import mmap
import os
from types import SimpleNamespace

import numpy as np
import pytest

from streammerge.formats.contract import TensorInfo
from streammerge.formats.errors import FormatError
from streammerge.formats.reading import are_local, open_reader, stamps


@pytest.fixture
def weights(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8)
    path = tmp_path / "w"
    path.write_bytes(b"head123" + data.tobytes())
    return TensorInfo("w", "U8", (len(data),), path, 7), data


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("offset", [0, 1, 4095, 65_536, 2_999_000])
def test_both_ways_of_reading_give_the_same_bytes(weights, io, offset):
    info, data = weights
    reader = open_reader(stamps([info.file]), io)
    buffer = np.empty(100_000, np.uint8)
    stop = min(offset + 100_000, len(data))
    reader.ahead(info, offset, stop)
    assert np.array_equal(reader.read(info, offset, stop, buffer), data[offset:stop])
    reader.release(info, offset, stop)
    assert np.array_equal(reader.read(info, offset, stop, buffer), data[offset:stop])
    reader.close()


def test_elements_are_aligned_whatever_the_header_length(weights):
    info, data = weights
    for io in ("mmap", "pread"):
        reader = open_reader(stamps([info.file]), io)
        half = TensorInfo("w", "F16", (1000,), info.file, 7)
        got = reader.read(half, 10, 30, np.empty(64, np.uint8))
        assert got.view(np.uint16).flags.aligned
        assert np.array_equal(got, data[10:30])
        reader.close()


def test_a_file_that_shrinks_is_named(weights):
    info, _ = weights
    reader = open_reader(stamps([info.file]), "pread")
    os.truncate(info.file, 1000)
    with pytest.raises(FormatError, match=f"{info.file}: the file ends at byte 1000, inside tensor 'w'"):
        reader.read(info, 0, 5000, np.empty(5000, np.uint8))
    reader.close()
    reader = open_reader(stamps([info.file]), "mmap")
    with pytest.raises(FormatError, match="the file ends at byte 1000, inside tensor 'w'"):
        reader.read(info, 0, 5000, np.empty(5000, np.uint8))
    reader.close()


def test_what_cannot_be_mapped_is_read(weights, monkeypatch):
    info, data = weights
    reader, buffer, calls = open_reader(stamps([info.file]), "mmap"), np.empty(5000, np.uint8), []

    def fail(*arguments, **more):
        calls.append(arguments)
        raise OSError(24, os.strerror(24))

    mapped = reader.read(info, 0, 5000, buffer)
    assert not np.shares_memory(mapped, buffer)
    monkeypatch.setattr(mmap, "mmap", fail)
    for start in (10_000, 20_000):
        found = reader.read(info, start, start + 5000, buffer)
        assert np.array_equal(found, data[start : start + 5000]) and np.shares_memory(found, buffer)
        reader.release(info, start, start + 5000)
    assert len(calls) == 1, "once it is known, nobody tries again"
    reader.close()


@pytest.mark.skipif(not os.path.exists("/proc/mounts"), reason="only Linux tells")
def test_only_disks_of_this_machine_are_local(tmp_path, monkeypatch):
    def mounted(**kinds):
        parts = [SimpleNamespace(mountpoint=str(tmp_path / name), fstype=kind) for name, kind in kinds.items()]
        root = SimpleNamespace(mountpoint="/", fstype="ext4")
        monkeypatch.setattr("psutil.disk_partitions", lambda all: [root, *parts])

    for name in ("here", "there"):
        (tmp_path / name / "models").mkdir(parents=True)
    mounted(there="nfs4")
    here, there = tmp_path / "here/models/a", tmp_path / "there/models/a"
    assert are_local([here])
    assert not are_local([there]) and not are_local([here, there])
    (tmp_path / "here/link").symlink_to(tmp_path / "there/models")
    assert not are_local([tmp_path / "here/link/a"])
    mounted(there="fuse.sshfs", here="xfs")
    assert are_local([here]) and not are_local([there])


def resident_file_pages():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssFile"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_released_windows_leave_the_memory_of_the_process(tmp_path):
    path = tmp_path / "big"
    path.write_bytes(bytes(64 << 20))
    info = TensorInfo("w", "U8", (64 << 20,), path, 0)
    reader = open_reader(stamps([path]), "mmap")
    before, most = resident_file_pages(), 0
    for start in range(0, 64 << 20, 1 << 20):
        reader.read(info, start, start + (1 << 20), np.empty(0, np.uint8)).sum()
        most = max(most, resident_file_pages() - before)
        reader.release(info, start, start + (1 << 20))
    assert most < 4 << 20
    assert resident_file_pages() - before < 1 << 20
    reader.close()
