"""Inputs that are cut, written to or replaced while they are read."""

import os
import shutil
import subprocess
import sys

import pytest

from streammerge.errors import FormatError
from streammerge.events import PassStarted
from tests.faults.conftest import (
    MIB,
    SLOWLY,
    check_nothing_final,
    check_said,
    has_begun,
    merge,
    start,
    wait_for,
    when,
)


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_an_input_that_is_cut_by_another_process(slow, tmp_path, io):
    """Whenever the cut comes: the size is checked before a window is mapped, and a fault afterwards says the same."""
    base, agent = slow
    shutil.copytree(agent, tmp_path / "agent")
    file = tmp_path / "agent/model.safetensors"
    child = start(base, tmp_path / "agent", "-o", tmp_path / "out", *SLOWLY, "--io", io)
    wait_for(lambda: has_begun(tmp_path / "out"))
    subprocess.run([sys.executable, "-c", f"import os; os.truncate({str(file)!r}, 1 << 20)"], check=True)
    _, said = child.communicate(timeout=60)
    check_said((child.returncode, said), rf"{file}: .*(became shorter while it was|was changed while)")
    check_nothing_final(tmp_path / "out")


def test_an_input_that_another_process_writes_to(own_models, tmp_path):
    file = own_models.weights("agent-1")

    def write():
        with open(file, "r+b") as handle:
            handle.seek(3 * MIB)
            handle.write(b"other")

    said = f"{file}: changed while it was read; merge again once nobody writes to it"
    with pytest.raises(FormatError, match=said):
        merge(own_models, tmp_path / "out", listener=when(PassStarted, write))
    check_nothing_final(tmp_path / "out")


def test_an_input_that_is_written_to_between_header_and_weights(own_models, tmp_path):
    from streammerge.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(own_models.paths[0])
    os.utime(own_models.weights("base"))
    with pytest.raises(FormatError, match="was changed while it was read"):
        checkpoint.reader("pread")


def test_an_input_that_another_takes_the_place_of(own_models, tmp_path):
    """What is read is the old file to its end, but the manifest would name the new one."""
    shutil.copy(own_models.weights("agent-1"), own_models.folder / "other")

    def replace():
        (own_models.folder / "other").rename(own_models.weights("agent-0"))

    with pytest.raises(FormatError, match="agent-0/model.safetensors: changed while it was read"):
        merge(own_models, tmp_path / "out", listener=when(PassStarted, replace))
    check_nothing_final(tmp_path / "out")
