"""Disk full, quota and size limits: while space is reserved, while it is written, while it reaches the disk."""

import errno
import os
import resource
import shutil
import subprocess

import pytest

from streammerge.errors import OutputError
from streammerge.events import PassStarted, Planned
from streammerge.formats import atomic, writing
from tests.faults.conftest import MIB, check_nothing_final, check_resumed, check_said, merge, run, when

OUTPUT = 21 * MIB  # a little less than what a merge of the models writes


def test_a_disk_that_is_too_small_is_seen_before_the_work(models, mount):
    place = mount("tmpfs", size=8 * MIB)
    said = r"out: needs 21.* MiB, but .* has 8 MiB free"
    check_said(run(*models.paths, "-o", place / "out"), said)
    assert os.listdir(place) == []


def test_a_disk_that_fills_up_before_space_is_reserved(models, mount):
    place = mount("tmpfs", size=40 * MIB)

    def fill(event):
        if isinstance(event, Planned):
            (place / "other").write_bytes(bytes(30 * MIB))

    said = r"model.safetensors: cannot be written, \d+ bytes in all: No space left on device; free some"
    with pytest.raises(OutputError, match=said):
        merge(models, place / "out", listener=fill)
    check_nothing_final(place / "out")


def fill_up(place, spare):
    """Take all that is free but ``spare`` bytes."""
    with open(place / "other", "wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(MIB))
            file.flush()
    os.truncate(place / "other", (place / "other").stat().st_size - spare)


def test_what_is_reserved_cannot_be_taken_away(models, mount):
    """The journal, the manifest and the card are small, and need a little more."""
    place = mount("tmpfs", size=40 * MIB)
    fill = when(PassStarted, lambda: fill_up(place, spare=2 * MIB))
    assert merge(models, place / "out.safetensors", listener=fill).outcome.bytes_written > OUTPUT


def test_a_disk_without_room_for_the_journal(models, mount):
    place = mount("tmpfs", size=40 * MIB)
    with pytest.raises(OutputError, match=r"\.journal: cannot be written: No space left on device; free some"):
        merge(models, place / "out", listener=when(PassStarted, lambda: fill_up(place, spare=0)))
    check_nothing_final(place / "out")
    (place / "other").unlink()
    check_resumed(place, models.paths, "-m", "ram")


def test_a_disk_that_fills_up_where_space_cannot_be_reserved(models, tmp_path, fuse):
    """The C library would write into every block instead: a merge of 100 GB would begin with 25 million writes."""
    (tmp_path / "behind").mkdir()
    place, _ = fuse(tmp_path / "behind", "--full-after", 15 * MIB)
    said = r"model.safetensors: cannot be written at byte \d+: No space left on device; free some"
    check_said(run(*models.paths, "-o", place / "out", "-m", "ram"), said)
    check_nothing_final(place / "out")


def test_a_file_system_that_cannot_reserve_gets_the_same_bytes(models, tmp_path, fuse):
    (tmp_path / "behind").mkdir()
    place, _ = fuse(tmp_path / "behind")
    merge(models, place / "out.safetensors")
    merge(models, tmp_path / "local.safetensors")
    assert (place / "out.safetensors").read_bytes() == (tmp_path / "local.safetensors").read_bytes()


@pytest.fixture
def thin(mount):
    """A file system of 64 MB on a disk that has 8 MB; its folder and the one whose space it really has."""
    real = mount("tmpfs", size=8 * MIB)
    (real / "image").touch()
    os.truncate(real / "image", 64 * MIB)
    format_it = ["mkfs.ext4", "-q", "-O", "^has_journal", "-E", "nodiscard", real / "image"]
    if shutil.which("mkfs.ext4") is None or subprocess.run(format_it, capture_output=True).returncode != 0:
        pytest.skip("needs mkfs.ext4")
    return mount("ext4", real / "image", loop=True), real


_LOST = r"model.safetensors: cannot be written( at byte \d+)?: (Input/output error; check the disk|No space left)"


def test_space_that_was_promised_and_is_not_there(models, thin):
    """A thinly provisioned disk: the error comes when the data reach it, after the write that took them."""
    place, _ = thin
    with pytest.raises(OutputError, match=_LOST):
        merge(models, place / "out")
    check_nothing_final(place / "out")


def test_data_that_were_lost_on_the_way_to_the_disk(models, thin, monkeypatch):
    """The error is told once, to whoever waits first. That is sync_file_range, and fsync finds nothing to say: neither
    this run nor one that resumes it may take what was lost for written."""
    place, real = thin
    monkeypatch.setattr(writing, "_DROPPED_BEHIND", 0)
    monkeypatch.setattr(writing, "_WAITED_BEHIND", MIB)
    written = 0

    def mend(event):
        nonlocal written
        before, written = written, written + getattr(event, "bytes_written", 0)
        if before < 16 * MIB <= written:
            subprocess.run(["mount", "-o", "remount,size=100m", real], check=True)

    with pytest.raises(OutputError, match=_LOST):
        merge(models, place / "out", listener=mend, threads=1)
    check_nothing_final(place / "out")
    subprocess.run(["mount", "-o", "remount,size=100m", real], check=True)
    if (place / "out.partial").exists():
        check_resumed(place, models.paths, "-m", "ram")


def test_a_file_that_lost_data_stays_lost(tmp_path, monkeypatch):
    file, fsync, failed = writing.PresizedFile(tmp_path / "file", 8), os.fsync, []

    def fail_once(descriptor):
        if not failed:
            failed.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_once)
    for said in ("cannot be written: Input/output error; check the disk", "did not reach the disk", "did not reach"):
        with pytest.raises(OutputError, match=said):
            file.sync()
    file.close()


def test_a_quota_is_named(models, tmp_path, monkeypatch):
    """A stub: few systems have a quota to run into."""

    def over(descriptor, mode, start, size):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(writing, "_fallocate", over)
    with pytest.raises(OutputError, match=r"[Qq]uota exceeded; free some, or choose another place"):
        merge(models, tmp_path / "out")
    check_nothing_final(tmp_path / "out")


def test_a_file_size_limit_is_an_error_and_no_signal(models, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, 8 * MIB))

    said = r"cannot be written, \d+ bytes in all: File too large; ulimit -f or the file system allows no larger one"
    check_said(run(*models.paths, "-o", tmp_path / "out", preexec_fn=limit), said)
    check_nothing_final(tmp_path / "out")
    done = run(*models.paths, "-o", tmp_path / "out", "--max-shard-size", "13M", preexec_fn=limit)
    check_said(done, said)  # the embedding alone is 12 MB


@pytest.mark.parametrize("kind", ["config.json", "README.md", "tokenizer.json"])
def test_a_disk_that_fills_up_at_the_small_files(models, mount, monkeypatch, kind):
    place, write = mount("tmpfs", size=40 * MIB), atomic.replace_file

    def fill(path, pieces):
        if path.name == kind:
            with pytest.raises(OSError, match="No space"):
                (place / "other").write_bytes(bytes(40 * MIB))
        write(path, pieces)

    monkeypatch.setattr(atomic, "replace_file", fill)
    with pytest.raises(OutputError, match=rf"{kind}: cannot be written: No space left on device"):
        merge(models, place / "out")
    check_nothing_final(place / "out")
