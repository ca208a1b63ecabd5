"""Every fault for real, one after the other: what it says, what it leaves, and whether a resumed run ends the same.

A fault is a function from a stage to the end of a merge. When it returns, its cause has been taken away again, as a
user would have done before resuming.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.reliability.cgroup import NoGroup, memory_group
from bench.reliability.stage import MIB, Ended, Impossible, Stage, as_ordinary_user
from bench.sample.generate import Shape, make_agent, make_base

_SHAPE = Shape(layers=1, hidden=512, intermediate=512, heads=8, kv_heads=8, vocab=200_000, tied=True)
_OPTIONS = ["-m", "ties", "--threads", "1", "--max-ram", "256M"]
_GROUP_LIMIT = 320 * MIB


@dataclass(frozen=True)
class Row:
    """One fault of the table."""

    name: str
    how: str
    ended: Ended
    left: str
    resumed: str

    def cells(self) -> tuple[str, ...]:
        """As texts."""
        return (self.name, self.how, self.ended.said, str(self.ended.code), self.left, self.resumed)


FAULTS: dict[str, Callable[[Stage], Ended]] = {}
"""By name; the docstring says how it is provoked."""


def _fault(name: str) -> Callable[[Callable[[Stage], Ended]], Callable[[Stage], Ended]]:
    def add(provoke: Callable[[Stage], Ended]) -> Callable[[Stage], Ended]:
        FAULTS[name] = provoke
        return provoke

    return add


@_fault("disk too small")
def _too_small(stage: Stage) -> Ended:
    """a tmpfs of 8 MB"""
    place = stage.mount("tmpfs", size="8m")
    stage.output = place / "out"
    ended = stage.end(stage.start())
    subprocess.run(["mount", "-o", "remount,size=400m", str(place)], check=True)
    return ended


@_fault("disk full while writing")
def _full(stage: Stage) -> Ended:
    """a FUSE file system that cannot reserve space and is full after 60 MB"""
    behind = stage.folder / "behind"
    behind.mkdir()
    place, _ = stage.fuse(behind, "--full-after", str(60 * MIB))
    stage.output = place / "out"
    ended = stage.end(stage.start())
    stage.undo.close()
    stage.output = behind / "out"
    return ended


@_fault("file-size limit")
def _file_size(stage: Stage) -> Ended:
    """`ulimit -f`, 8 MB"""
    return stage.end(stage.start(before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, 8 * MIB))))


@_fault("read error, positional reads")
def _read_error(stage: Stage) -> Ended:
    """a FUSE file system that answers EIO for a part of one agent"""
    return _read_error_by(stage, "pread")


@_fault("read error, mapped")
def _read_error_mapped(stage: Stage) -> Ended:
    """the same with `--io mmap`"""
    return _read_error_by(stage, "mmap")


def _read_error_by(stage: Stage, io: str) -> Ended:
    good = stage.models
    place, _ = stage.fuse(stage.folder / "models", "--read-error", "agent-0/model.safetensors")
    stage.models = [place / model.name for model in good]
    ended = stage.end(stage.start("--io", io))
    stage.undo.close()
    stage.models = good
    return ended


@_fault("input cut, positional reads")
def _cut(stage: Stage) -> Ended:
    """another process truncates an agent while it is merged"""
    return _cut_by(stage, "pread")


@_fault("input cut, mapped")
def _cut_mapped(stage: Stage) -> Ended:
    """the same with `--io mmap`"""
    return _cut_by(stage, "mmap")


def _cut_by(stage: Stage, io: str) -> Ended:
    file = stage.weights(1)
    times, kept = file.stat(), shutil.copy2(file, stage.folder / "kept")
    child = stage.start_and_wait("--io", io)
    subprocess.run([sys.executable, "-c", f"import os; os.truncate({str(file)!r}, 1 << 20)"], check=True)
    ended = stage.end(child)
    shutil.copyfile(kept, file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    return ended


@_fault("input written to")
def _written_to(stage: Stage) -> Ended:
    """another process changes five bytes of an agent while it is merged"""
    file = stage.weights(1)
    times, size = file.stat(), file.stat().st_size
    child = stage.start_and_wait()
    with open(file, "r+b") as handle:
        handle.seek(size - 1000)
        before = handle.read(5)
        handle.seek(size - 1000)
        handle.write(b"other")
    ended = stage.end(child)
    with open(file, "r+b") as handle:
        handle.seek(size - 1000)
        handle.write(before)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    return ended


@_fault("input may not be read")
def _unreadable(stage: Stage) -> Ended:
    """`chmod 0`, as an ordinary user"""
    wrap, file = as_ordinary_user(), stage.weights(1)
    file.chmod(0)
    ended = stage.end(stage.start(wrap=wrap))
    file.chmod(0o644)
    return ended


@_fault("target may not be written to")
def _unwritable(stage: Stage) -> Ended:
    """a folder of mode 555, as an ordinary user"""
    wrap, place = as_ordinary_user(), stage.folder / "closed"
    place.mkdir(mode=0o555)
    stage.output = place / "out"
    ended = stage.end(stage.start(wrap=wrap))
    place.chmod(0o755)
    return ended


@_fault("target mounted read-only")
def _read_only(stage: Stage) -> Ended:
    """a tmpfs mounted `ro`"""
    place = stage.mount("tmpfs", ro=True)
    stage.output = place / "out"
    ended = stage.end(stage.start())
    subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
    return ended


@_fault("mount of the inputs vanishes")
def _inputs_vanish(stage: Stage) -> Ended:
    """the process behind a FUSE mount is killed while weights are read"""
    good = stage.models
    place, server = stage.fuse(stage.folder / "models")
    stage.models = [place / model.name for model in good]
    child = stage.start_and_wait()
    server.kill()
    ended = stage.end(child)
    stage.undo.close()
    stage.models = good
    return ended


@_fault("mount of the target vanishes")
def _target_vanishes(stage: Stage) -> Ended:
    """the process behind a FUSE mount is killed while weights are written"""
    behind = stage.folder / "behind"
    behind.mkdir()
    place, server = stage.fuse(behind)
    stage.output = place / "out"
    child = stage.start_and_wait()
    server.kill()
    ended = stage.end(child)
    stage.undo.close()
    stage.output = behind / "out"
    return ended


@_fault("killed for memory")
def _killed(stage: Stage) -> Ended:
    """a neighbour takes all memory of the control group"""
    try:
        group = memory_group(_GROUP_LIMIT)
    except NoGroup as error:
        raise Impossible(str(error)) from error
    stage.undo.callback(group.remove)
    child = stage.start_and_wait(before=group.enter)
    os.kill(child.pid, signal.SIGSTOP)
    Path(f"/proc/{child.pid}/oom_score_adj").write_text("1000")  # of the two, this one is killed
    neighbour = [sys.executable, "-S", "-c", f"memory = b'x' * {_GROUP_LIMIT - 20 * MIB}; input()"]
    other = subprocess.Popen(neighbour, preexec_fn=group.enter, stdin=subprocess.PIPE)
    os.kill(child.pid, signal.SIGCONT)
    try:
        return stage.end(child)
    finally:
        other.kill()
        other.communicate()


@_fault("terminal closed")
def _hung_up(stage: Stage) -> Ended:
    """SIGHUP while weights are merged"""
    child = stage.start_and_wait()
    child.send_signal(signal.SIGHUP)
    return stage.end(child)


def provoke_all(work: Path) -> Iterator[Row]:
    """Every fault in turn, each on copies of its own. Faults that this system cannot make are in the table as well."""
    shared = work / "models"
    base = make_base(shared / "base", _SHAPE)
    make_agent(shared / "agent-0", base, index=0)
    wanted = _undisturbed(work, shared)
    for name, provoke in FAULTS.items():
        with tempfile.TemporaryDirectory(dir=work) as folder:
            stage = Stage(Path(folder), _OPTIONS)
            shutil.copytree(shared, stage.folder / "models")
            how = (provoke.__doc__ or "").strip()
            with stage.undo:
                try:
                    yield _row(stage, name, how, provoke(stage), wanted)
                except Impossible as error:
                    yield Row(name, how, Ended(0, f"(not made here: {error})"), "", "")


def _undisturbed(work: Path, shared: Path) -> str:
    stage = Stage(work / "undisturbed", _OPTIONS)
    shutil.copytree(shared, stage.folder / "models")
    ended = stage.end(stage.start())
    if ended.code != 0:
        raise RuntimeError(f"the merge without a fault failed: {ended.said}")
    found = stage.digest()
    shutil.rmtree(stage.folder)
    return found


def _row(stage: Stage, name: str, how: str, ended: Ended, wanted: str) -> Row:
    left = stage.left()
    began = left.endswith(".partial")
    again = stage.end(stage.start(*(["--resume"] if began else [])))
    same = "yes" if again.code == 0 and stage.digest() == wanted else f"no: {again.said}"
    return Row(name, how, ended, left, same if began else f"{same} (begun anew)")
