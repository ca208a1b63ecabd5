"""A Linux control group with a memory limit, version 1 or 2, as a context for one process."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


class NoGroup(Exception):
    """No control group with a memory limit can be made here; the text says why."""


@dataclass(frozen=True)
class _Names:
    """What the files of a version are called; ``kills`` is the file and the word in it that counts them."""

    limit: str
    peak: str
    kills: tuple[str, str]


_V1 = _Names("memory.limit_in_bytes", "memory.max_usage_in_bytes", ("memory.oom_control", "oom_kill"))
_V2 = _Names("memory.max", "memory.peak", ("memory.events", "oom_kill"))


@dataclass(frozen=True)
class MemoryGroup:
    """One group. A process enters it by ``enter``, called in the child before it becomes the command."""

    folder: Path
    names: _Names

    def enter(self) -> None:
        """Move the calling process into the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self) -> int:
        """The most that was charged to the group, page cache included, in bytes."""
        return int((self.folder / self.names.peak).read_text())

    def killed(self) -> int:
        """How many processes the system has killed for want of memory."""
        file, word = self.names.kills
        facts = dict(line.split() for line in (self.folder / file).read_text().splitlines())
        return int(facts[word])

    def remove(self) -> None:
        """Remove the group, once its last process is gone."""
        for _ in range(100):
            with suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.05)


def memory_group(limit: int) -> MemoryGroup:
    """A new group below this process's own, with a limit in bytes. Raises NoGroup."""
    problems = []
    for parent, names in _parents():
        folder = parent / f"streammerge-{os.getpid()}-{time.monotonic_ns()}"
        try:
            folder.mkdir()
        except OSError as error:
            problems.append(f"{parent}: {error.strerror}")
            continue
        group = MemoryGroup(folder, names)
        if (folder / names.peak).exists():
            (folder / names.limit).write_text(str(limit))
            return group
        group.remove()
        problems.append(f"{parent}: no memory limit below it")
    raise NoGroup("no control group can be made: " + "; ".join(problems or ["this system has none"]))


def _parents() -> Iterator[tuple[Path, _Names]]:
    membership = Path("/proc/self/cgroup")
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, group = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield _ROOT / "memory" / group.lstrip("/"), _V1
        elif controllers == "" and (_ROOT / "cgroup.controllers").exists():
            parent = _ROOT / group.lstrip("/")
            with suppress(OSError):
                (parent / "cgroup.subtree_control").write_text("+memory")
            yield parent, _V2
