"""Faults in mapped files: no bare SIGBUS."""

import os
import signal
import subprocess
import sys

import pytest

from streammerge.errors import FormatError
from streammerge.formats import writing
from streammerge.formats.reading import open_reader, stamps
from tests.faults.conftest import MIB, check_nothing_final, merge

_TOUCH = """
import os, sys, threading
import numpy as np
from pathlib import Path
from streammerge.formats import codecs
from streammerge.formats.contract import TensorInfo
from streammerge.formats.reading import open_reader, stamps

file = Path(sys.argv[1])
info = TensorInfo("w", "BF16", (file.stat().st_size // 2,), file, 0)
reader = open_reader(stamps([file]), "mmap")
view = reader.read(info, 0, info.nbytes, np.empty(info.nbytes, np.uint8))
out = np.empty(info.elements, np.float32)
codecs.decode("BF16", view, out)
os.truncate(file, 4096)

def touch():
    if sys.argv[2] == "kernel":
        codecs.decode("BF16", view, out)
    elif sys.argv[2] == "copy":
        view.copy()
    else:
        view[9000:9001].tobytes()

thread = threading.Thread(target=touch)
thread.start()
if sys.argv[3] == "busy":
    while thread.is_alive():
        sum(range(1000))
thread.join()
print("still alive")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's mappings")
@pytest.mark.parametrize("main_thread", ["waits", "busy"])
@pytest.mark.parametrize("touch", ["kernel", "copy", "bytes"])
def test_a_fault_says_which_file(tmp_path, touch, main_thread):
    """In compiled code without the GIL, and in numpy with it, while another thread wants it or does not."""
    file = tmp_path / "w"
    file.write_bytes(bytes(4 * MIB))
    command = [sys.executable, "-c", _TOUCH, file, touch, main_thread]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    wanted = f"Error: {file}: became shorter while it was mapped: 4096 bytes found, {4 * MIB} wanted; "
    assert done.stderr == wanted + "--io pread reports this as an error\n"


def test_faults_are_left_alone_where_nothing_is_mapped(tmp_path):
    """The handler that was there before is there again."""
    import ctypes

    def handler():
        kept = ctypes.create_string_buffer(512)
        ctypes.CDLL(None).sigaction(signal.SIGBUS, None, kept)
        return kept.raw[:8]

    (tmp_path / "w").write_bytes(bytes(4096))
    before = handler()
    readers = [open_reader(stamps([tmp_path / "w"]), "mmap") for _ in range(2)]
    assert handler() != before
    for reader in readers:
        reader.close()
    assert handler() == before


def test_what_is_copied_straight_from_a_mapping_names_the_input(own_models, tmp_path):
    """The system cannot read a page on our behalf either, and says so without a signal."""
    file, write = own_models.weights("base"), writing.PresizedFile.write

    def cut(self, position, data):
        if not isinstance(data, bytes):
            os.truncate(file, 1 << 20)
        write(self, position, data)

    writing.PresizedFile.write = cut
    try:
        with pytest.raises(FormatError, match=f"{file}: was changed while it was read: {1 << 20} bytes found"):
            merge(own_models, tmp_path / "out", io="mmap", only=["norm"], threads=1)
    finally:
        writing.PresizedFile.write = write
    check_nothing_final(tmp_path / "out")
