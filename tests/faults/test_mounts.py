"""Mounts that are gone while they are read or written, and come back."""

import time

import pytest

from tests.faults.conftest import SLOWLY, check_nothing_final, check_resumed, check_said, has_begun, start, wait_for

_A_WHILE = 0.2  # seconds: the merge takes about one


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_inputs_on_a_mount_that_vanishes(slow, tmp_path, fuse, io):
    place, server = fuse(slow[0].parent)
    child = start(*(place / path.name for path in slow), "-o", tmp_path / "out", *SLOWLY, "--io", io)
    wait_for(lambda: has_begun(tmp_path / "out"))
    time.sleep(_A_WHILE)
    server.kill()
    _, said = child.communicate(timeout=60)
    wanted = r"fuse0/.*(not connected; is it still mounted|connection abort|cannot be read where it is mapped|mapped)"
    check_said((child.returncode, said), wanted)
    check_nothing_final(tmp_path / "out")
    if io == "pread":  # mapped it is the same
        check_resumed(tmp_path, slow, *SLOWLY)


def test_a_target_on_a_mount_that_vanishes(slow, tmp_path, fuse):
    behind = tmp_path / "behind"
    behind.mkdir()
    place, server = fuse(behind)
    child = start(*slow, "-o", place / "out", *SLOWLY)
    wait_for(lambda: has_begun(behind / "out"))
    time.sleep(_A_WHILE)
    server.kill()
    _, said = child.communicate(timeout=60)
    check_said((child.returncode, said), r"fuse0/out.partial.*(not connected; is it still mounted|connection abort)")
    check_nothing_final(behind / "out")
    check_resumed(behind, slow, *SLOWLY)
