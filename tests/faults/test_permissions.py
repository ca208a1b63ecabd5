"""Files and folders that may not be read or written."""

import os
import shutil
import subprocess

import pytest

from streammerge.errors import OutputError
from streammerge.formats import writing
from tests.faults.conftest import MIB, check_nothing_final, check_said, merge, run


@pytest.fixture
def ordinary():
    """The words before a command that is to mind permissions, which root does not."""
    if os.geteuid() != 0:
        return []
    wrap = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*wrap, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs an ordinary user, or setpriv")
    return wrap


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (
            "agent-0/model.safetensors",
            "agent-0/model.safetensors: cannot be read: Permission denied; check who may read",
        ),
        ("agent-0", "agent-0.*: Permission denied; check who may read"),
        ("agent-0/config.json", "agent-0/config.json: .*Permission denied; check who may read"),
        ("base/tokenizer.json", "base/tokenizer.json: cannot be read: [Pp]ermission denied; "),
    ],
)
def test_an_input_that_may_not_be_read(own_models, tmp_path, ordinary, place, said):
    closed = own_models.folder / place
    mode = closed.stat().st_mode
    closed.chmod(0)
    try:
        check_said(run(*own_models.paths, "-o", tmp_path / "out", wrap=ordinary), said)
    finally:
        closed.chmod(mode)
    check_nothing_final(tmp_path / "out")


def test_a_target_that_may_not_be_written_to(models, tmp_path, ordinary):
    (tmp_path / "closed").mkdir(mode=0o555)
    said = "closed: is not a folder that can be written to"
    check_said(run(*models.paths, "-o", tmp_path / "closed/out", wrap=ordinary), said)
    assert os.listdir(tmp_path / "closed") == []


def test_a_target_that_is_mounted_read_only(models, mount):
    place = mount("tmpfs", ro=True)
    check_said(run(*models.paths, "-o", place / "out"), "is not a folder that can be written to")


def test_a_target_that_becomes_read_only(models, mount):
    """As ext4 does after an error of its disk."""
    image = mount("tmpfs", size=100 * MIB) / "image"
    image.touch()
    os.truncate(image, 90 * MIB)
    if shutil.which("mkfs.ext4") is None or subprocess.run(["mkfs.ext4", "-q", image]).returncode != 0:
        pytest.skip("needs mkfs.ext4")
    place = mount("ext4", image, loop=True)

    def shut():
        subprocess.run(["mount", "-o", "remount,abort", place], check=True, capture_output=True)

    close = writing.FilesSink.close
    writing.FilesSink.close = lambda self: (close(self), shut())
    try:
        with pytest.raises(OutputError, match="cannot be written: Read-only file system"):
            merge(models, place / "out")
    finally:
        writing.FilesSink.close = close
    check_nothing_final(place / "out")
