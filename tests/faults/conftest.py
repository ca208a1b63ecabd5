"""What is needed to make the faults: mounts, limits, and models whose bytes must be the same afterwards."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import streammerge
from bench.sample.generate import Shape, make_agent, make_base
from streammerge.kernels.load import load_cpu

MIB = 1 << 20
SHAPE = Shape(layers=2, hidden=512, intermediate=1024, heads=8, kv_heads=8, vocab=12_000, tied=True)


@dataclass(frozen=True)
class Models:
    """Base and agents on disk, 22 MB each."""

    folder: Path

    @property
    def paths(self):
        return [self.folder / "base", self.folder / "agent-0", self.folder / "agent-1"]

    def weights(self, name):
        return self.folder / name / "model.safetensors"

    def digest(self):
        digest = hashlib.sha256()
        for file in sorted(self.folder.rglob("*")):
            if file.is_file():
                digest.update(f"{file}".encode() + file.read_bytes())
        return digest.hexdigest()


@pytest.fixture(scope="session")
def shared_models(tmp_path_factory):
    load_cpu()  # compiled here, if it has to be, and not under a limit
    folder = tmp_path_factory.mktemp("models")
    base = make_base(folder / "base", SHAPE)
    for index in range(2):
        make_agent(folder / f"agent-{index}", base, index=index)
    (base / "tokenizer.json").write_text("{}")
    return Models(folder)


@pytest.fixture
def models(shared_models):
    """Models that must be as they were when the test ends."""
    before = shared_models.digest()
    yield shared_models
    assert shared_models.digest() == before, "the inputs were touched"


@pytest.fixture(scope="session")
def slow(tmp_path_factory):
    """Base and agent of 415 MB, all holes, which take most of a second to merge ``SLOWLY``."""
    folder = tmp_path_factory.mktemp("slow")
    shape = Shape(layers=1, hidden=512, intermediate=512, heads=8, kv_heads=8, vocab=400_000, tied=True)
    base = make_base(folder / "base", shape, sparse=True)
    return [base, make_agent(folder / "agent", base, index=0, sparse=True)]


SLOWLY = ["-m", "ties", "--threads", "1"]


def has_begun(output):
    """Whether a merge into ``output`` is under way."""
    journal = output.with_name(output.name + ".partial") / ".journal"
    return journal.exists() and journal.stat().st_size > 0


@pytest.fixture
def own_models(shared_models, tmp_path):
    """Models that the test may spoil."""
    return Models(Path(shutil.copytree(shared_models.folder, tmp_path / "models")))


_PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def start(*arguments, wrap=(), **options):
    """The command line as a process; ``wrap`` is the command that runs it."""
    command = [*wrap, sys.executable, "-m", "streammerge", *arguments]
    return subprocess.Popen(list(map(str, command)), text=True, **{**_PIPES, **options})


def run(*arguments, **options):
    """The command line to its end: exit code and what it said to standard error."""
    child = start(*arguments, **options)
    _, said = child.communicate(timeout=60)
    return child.returncode, said


def merge(models, output, **options):
    """The merge in this process, for faults that need no other."""
    base, *agents = models.paths
    return streammerge.merge(base, agents, output, **{"method": "ram", **options})


def when(kind, act):
    """A listener that acts at the first event of a kind."""
    waiting = [act]

    def listen(event):
        if isinstance(event, kind) and waiting:
            waiting.pop()()

    return listen


def check_said(outcome, wanted, code=1):
    """A clear end: the exit code, one line that says what is wanted, no traceback."""
    found, said = outcome
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert (found, len(errors)) == (code, 1), said
    assert re.search(wanted, errors[0]), errors[0]
    assert "Traceback" not in said


def check_nothing_final(output):
    """Nothing under the final name, and beside it nothing but what was written aside."""
    assert not output.exists()
    left = [entry.name for entry in output.parent.glob(output.name + "*")] if output.parent.exists() else []
    assert set(left) <= {output.name + ".partial"}


def check_resumed(folder, models, *options):
    """What was left under ``folder/out`` is not touched by another run, and resumed it ends as if nothing had been."""
    check_said(run(*models, "-o", folder / "out", *options), "holds an unfinished run of this merge; to start anew")
    ended, said = run(*models, "-o", folder / "out", *options, "--resume")
    assert ended == 0, said
    with TemporaryDirectory() as other:
        assert run(*models, "-o", Path(other) / "out", *options)[0] == 0
        check_same_files(folder / "out", Path(other) / "out")


def check_same_files(found, wanted):
    """Two folders with the same files."""
    files = {file.relative_to(wanted) for file in wanted.rglob("*") if file.is_file()}
    assert files == {file.relative_to(found) for file in found.rglob("*") if file.is_file()}
    for file in files:
        assert (found / file).read_bytes() == (wanted / file).read_bytes(), file


def wait_for(condition, seconds=30):
    """Wait until something is the case."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.002)


def _can(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    return done.returncode == 0, done.stderr.strip()


@pytest.fixture
def mount(tmp_path):
    """``mount("tmpfs", size="8m")``: a file system of its own below the test's folder. Skips where none can be made."""
    mounted = []

    def make(kind, source="none", **options):
        place = tmp_path / f"mount{len(mounted)}"
        place.mkdir()
        words = ",".join(f"{name}={value}" if value is not True else name for name, value in options.items())
        done, said = _can("mount", "-t", kind, *(["-o", words] if words else []), source, place)
        if not done:
            pytest.skip(f"cannot mount {kind} here: {said}")
        mounted.append(place)
        return place

    yield make
    for place in reversed(mounted):
        assert _can("umount", "--lazy", place)[0]


@pytest.fixture
def fuse(tmp_path):
    """``fuse(folder, "--read-error", ...)``: the mount of passthrough.py and its process. Skips without FUSE."""
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError) as error:
        pytest.skip(f"needs mfusepy and libfuse: {error}")
    running = []

    def make(folder, *faults):
        place = tmp_path / f"fuse{len(running)}"
        place.mkdir()
        command = [sys.executable, "-m", "bench.reliability.passthrough", folder, place, *faults]
        child = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
        running.append((place, child))
        deadline = time.monotonic() + 10
        while not os.path.ismount(place):
            if child.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"cannot mount FUSE here: {child.stderr.read() if child.poll() is not None else ''}")
            time.sleep(0.01)
        return place, child

    yield make
    for place, child in running:
        _can("umount", "--lazy", place)
        child.send_signal(signal.SIGKILL)
        child.wait()
