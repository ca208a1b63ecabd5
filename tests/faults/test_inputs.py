"""Inputs that fail, shrink, or are changed while they are read; files and folders that may not be read or written."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import streammerge
from bench.sample.generate import Shape, make_agent, make_base
from streammerge.errors import FormatError, OutputError
from streammerge.events import Finishing, PassStarted
from streammerge.formats.contract import TensorInfo
from streammerge.formats.reading import open_reader, stamps
from tests.faults.conftest import MIB, check_nothing_final, check_said, run, start, wait_for

EMBEDDING = "model.embed_tokens.weight"


def merge(models, output, **options):
    base, *agents = models.paths
    return streammerge.merge(base, agents, output, **{"method": "ram", **options})


def when(kind, act):
    """A listener that acts at the first event of a kind."""
    waiting = [act]

    def listen(event):
        if isinstance(event, kind) and waiting:
            waiting.pop()()

    return listen


# --- read errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_a_read_error_names_the_file(own_models, tmp_path, fuse, io):
    (tmp_path / "models/agent-0/model.safetensors").rename(tmp_path / "models/agent-0/bad.safetensors")
    place, _ = fuse(own_models.folder, "--read-error", "bad.safetensors")
    models = [place / "base", place / "agent-0"]
    said = {
        "pread": rf"agent-0/bad.safetensors: reading tensor '{EMBEDDING}' at byte \d+ failed: "
        "Input/output error; check the disk",
        "mmap": rf"agent-0/bad.safetensors: tensor '{EMBEDDING}' cannot be mapped: Bad address; a mapped input was cut, "
        "or its disk failed; --io pread says which",
    }
    check_said(run(*models, "-o", tmp_path / "out", "-m", "ram", "--io", io), said[io])
    check_nothing_final(tmp_path / "out")


def test_a_read_error_where_no_file_system_makes_one(models, tmp_path, monkeypatch):
    def fail(descriptor, buffers, position):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(FormatError, match=r"base/model.safetensors: reading tensor .* failed: Input/output error"):
        merge(models, tmp_path / "out")
    check_nothing_final(tmp_path / "out")


# --- changed while they are read ------------------------------------------------------------------------------------


def test_an_input_that_is_cut_by_another_process(tmp_path):
    """Whenever the cut comes: the size is checked before a window is mapped, and a fault afterwards says the same."""
    shape = Shape(layers=1, hidden=512, intermediate=512, heads=8, kv_heads=8, vocab=100_000, tied=True)
    base = make_base(tmp_path / "in/base", shape, sparse=True)
    agent = make_agent(tmp_path / "in/agent", base, index=0, sparse=True)
    file = agent / "model.safetensors"
    for io in ("mmap", "pread"):
        whole = file.stat().st_size
        child = start(base, agent, "-o", tmp_path / "out", "-m", "ties", "--threads", "1", "--io", io)
        wait_for(lambda: (tmp_path / "out.partial/model.safetensors").exists() or child.poll() is not None)
        subprocess.run([sys.executable, "-c", f"import os; os.truncate({str(file)!r}, 1 << 20)"], check=True)
        _, said = child.communicate(timeout=60)
        check_said((child.returncode, said), rf"{file}: .*(became shorter while it was|was changed while)")
        check_nothing_final(tmp_path / "out")
        os.truncate(file, whole)


def test_an_input_that_another_process_writes_to(own_models, tmp_path):
    file = own_models.weights("agent-1")

    def write():
        with open(file, "r+b") as handle:
            handle.seek(3 * MIB)
            handle.write(b"other")

    said = f"{file}: was changed while it was read: somebody wrote to it; start again when it stays as it is"
    with pytest.raises(FormatError, match=said):
        merge(own_models, tmp_path / "out", listener=when(PassStarted, write))
    check_nothing_final(tmp_path / "out")


def test_an_input_that_is_written_to_between_header_and_weights(own_models, tmp_path):
    from streammerge.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(own_models.paths[0])
    os.utime(own_models.weights("base"))
    with pytest.raises(FormatError, match="was changed while it was read"):
        checkpoint.reader("pread")


def test_an_input_that_another_takes_the_place_of_is_read_to_its_end(own_models, tmp_path):
    merge(own_models, tmp_path / "before.safetensors")
    shutil.copy(own_models.weights("agent-1"), own_models.folder / "other")

    def replace():
        (own_models.folder / "other").rename(own_models.weights("agent-0"))

    merge(own_models, tmp_path / "out.safetensors", listener=when(PassStarted, replace))
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "before.safetensors").read_bytes()


def test_what_is_changed_after_reading_does_not_matter(own_models, tmp_path):
    merge(own_models, tmp_path / "out", listener=when(Finishing, lambda: os.utime(own_models.weights("base"))))
    assert (tmp_path / "out").is_dir()


# --- a fault in a mapping -------------------------------------------------------------------------------------------

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
    from streammerge.formats import atomic

    file, write = own_models.weights("base"), atomic.PresizedFile.write

    def cut(self, position, data):
        if not isinstance(data, bytes):
            os.truncate(file, 1 << 20)
        write(self, position, data)

    atomic.PresizedFile.write = cut
    try:
        with pytest.raises(FormatError, match=f"{file}: was changed while it was read: {1 << 20} bytes found"):
            merge(own_models, tmp_path / "out", io="mmap", only=["norm"])
    finally:
        atomic.PresizedFile.write = write
    check_nothing_final(tmp_path / "out")


# --- permissions -----------------------------------------------------------------------------------------------------


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
        ("base/tokenizer.json", "base/tokenizer.json: cannot be read: Permission denied; check who may read"),
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

    from streammerge.formats import atomic

    close = atomic.FilesSink.close
    atomic.FilesSink.close = lambda self: (close(self), shut())
    try:
        with pytest.raises(OutputError, match="cannot be written: Read-only file system"):
            merge(models, place / "out")
    finally:
        atomic.FilesSink.close = close
    check_nothing_final(place / "out")


# --- a mount that is gone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_inputs_on_a_mount_that_vanishes(models, tmp_path, fuse, io):
    place, server = fuse(models.folder)
    inputs = [place / path.name for path in models.paths]
    child = start(*inputs, "-o", tmp_path / "out", "-m", "ties", "--threads", "1", "--io", io)
    wait_for(lambda: (tmp_path / "out.partial/model.safetensors").exists())
    server.kill()
    _, said = child.communicate(timeout=60)
    wanted = r"fuse0/.*(not connected; is it still mounted|connection abort|cannot be read where it is mapped|mapped)"
    check_said((child.returncode, said), wanted)
    check_nothing_final(tmp_path / "out")


def test_a_target_on_a_mount_that_vanishes(models, tmp_path, fuse):
    (tmp_path / "behind").mkdir()
    place, server = fuse(tmp_path / "behind")
    child = start(*models.paths, "-o", place / "out", "-m", "ties", "--threads", "1")
    wait_for(lambda: (tmp_path / "behind/out.partial/model.safetensors").exists())
    server.kill()
    _, said = child.communicate(timeout=60)
    check_said((child.returncode, said), r"fuse0/out.partial.*(not connected; is it still mounted|connection abort)")
    assert not (tmp_path / "behind/out").exists()


# --- more files than may be open ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory):
    """64 shards for each of 17 models: 1,088 files."""
    from tests.conftest import save_tensors

    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    names = [f"layers.{number:02d}.weight" for number in range(64)]
    for model in range(17):
        for number, name in enumerate(names):
            raw = rng.standard_normal(2048).astype("f4").tobytes()
            file = folder / f"m{model}" / f"model-{number + 1:05d}-of-00064.safetensors"
            save_tensors(file, {name: ("F32", (2048,), raw)})
    return [folder / f"m{model}" for model in range(17)]


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_more_files_than_may_be_open(many_shards, tmp_path, io):
    """1,088 inputs and 64 outputs by a process that may open a few files, and by one that may open them all."""
    least = 64 if io == "pread" else 128  # each window of each worker takes one more

    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, least))

    options = ["-m", "ties", "--io", io, "--threads", "2", "--max-shard-size", "8192", "--quiet"]
    assert run(*many_shards, "-o", tmp_path / "few", *options, preexec_fn=few) == (0, "")
    assert run(*many_shards, "-o", tmp_path / "many", *options) == (0, "")
    files = sorted(file.name for file in (tmp_path / "few").glob("*.safetensors"))
    assert len(files) == 64
    assert all((tmp_path / "few" / name).read_bytes() == (tmp_path / "many" / name).read_bytes() for name in files)


def test_a_file_that_was_closed_and_is_another_when_it_is_opened_again(many_shards, tmp_path, monkeypatch):
    from streammerge.formats import descriptors

    monkeypatch.setattr(descriptors, "_most_open", lambda: 1)
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(bytes(8))
    reader = open_reader(stamps(paths), "pread")
    tensors = [TensorInfo("w", "U8", (8,), path, 0) for path in paths]
    for info in (*tensors, *tensors):
        reader.read(info, 0, 8, np.empty(8, np.uint8))
    (tmp_path / "c").write_bytes(bytes(8))
    (tmp_path / "c").rename(tmp_path / "a")
    with pytest.raises(FormatError, match="a: was changed while it was read: another file has taken its place"):
        reader.read(tensors[0], 0, 8, np.empty(8, np.uint8))
    reader.close()
