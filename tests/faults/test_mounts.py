"""Mounts that are gone while they are read or written."""

import pytest

from tests.faults.conftest import SLOWLY, check_nothing_final, check_said, has_begun, start, wait_for


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_inputs_on_a_mount_that_vanishes(models, tmp_path, fuse, io):
    place, server = fuse(models.folder)
    inputs = [place / path.name for path in models.paths]
    child = start(*inputs, "-o", tmp_path / "out", *SLOWLY, "--io", io)
    wait_for(lambda: has_begun(tmp_path / "out"))
    server.kill()
    _, said = child.communicate(timeout=60)
    wanted = r"fuse0/.*(not connected; is it still mounted|connection abort|cannot be read where it is mapped|mapped)"
    check_said((child.returncode, said), wanted)
    check_nothing_final(tmp_path / "out")


def test_a_target_on_a_mount_that_vanishes(models, tmp_path, fuse):
    (tmp_path / "behind").mkdir()
    place, server = fuse(tmp_path / "behind")
    child = start(*models.paths, "-o", place / "out", *SLOWLY)
    wait_for(lambda: has_begun(tmp_path / "behind/out"))
    server.kill()
    _, said = child.communicate(timeout=60)
    check_said((child.returncode, said), r"fuse0/out.partial.*(not connected; is it still mounted|connection abort)")
    assert not (tmp_path / "behind/out").exists()
