"""Where a fault is made to happen: models, mounts that are taken away again, the merge, and what it left."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
_INTO_IT = 0.1  # seconds: the merge takes about a half


class Impossible(Exception):
    """This system cannot make the fault; the text says why."""


@dataclass(frozen=True)
class Ended:
    """How a merge ended: exit code (negative: a signal), and the last thing it said."""

    code: int
    said: str


@dataclass
class Stage:
    """One fault's own folder, with its own copies of the models. ``output`` may be moved to a mount."""

    folder: Path
    options: list[str]
    undo: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.models = [self.folder / "models" / name for name in ("base", "agent-0")]
        self.output = self.folder / "out"

    def weights(self, model: int) -> Path:
        """The weight file of a model."""
        return self.models[model] / "model.safetensors"

    def start(
        self, *options: str, wrap: Sequence[str] = (), before: Callable[[], object] | None = None
    ) -> subprocess.Popen[str]:
        """Begin the merge; ``wrap`` is a command that runs it, ``before`` is called in the new process."""
        command = [*wrap, sys.executable, "-m", "streammerge", *map(str, self.models), "-o", str(self.output)]
        return subprocess.Popen(
            [*command, *self.options, *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            preexec_fn=before,
        )  # fmt: skip

    def end(self, child: subprocess.Popen[str]) -> Ended:
        """Wait for it."""
        _, said = child.communicate(timeout=300)
        lines = [line for line in said.splitlines() if line.startswith("Error: ")] or ["(nothing)"]
        return Ended(child.returncode, " / ".join(lines).replace(f"{self.folder}/", ""))

    def start_and_wait(self, *options: str, before: Callable[[], object] | None = None) -> subprocess.Popen[str]:
        """Begin the merge and come back when it is under way."""
        child = self.start(*options, before=before)
        partial = self.output.with_name(self.output.name + ".partial")
        deadline = time.monotonic() + 60
        while not (partial / ".journal").exists() and child.poll() is None:
            if time.monotonic() > deadline:
                raise Impossible("the merge did not begin within a minute")
            time.sleep(0.002)
        time.sleep(_INTO_IT)
        return child

    def left(self) -> str:
        """What stands beside the inputs."""
        if self.output.exists():
            return "the whole output"
        partial = self.output.with_name(self.output.name + ".partial")
        return partial.name if partial.exists() else "nothing"

    def mount(self, kind: str, source: str = "none", **options: object) -> Path:
        """Mount a file system, until the stage is cleared. Raises Impossible."""
        place = self.folder / f"mount-{kind}"
        place.mkdir(exist_ok=True)
        words = ",".join(name if value is True else f"{name}={value}" for name, value in options.items())
        _command("mount", "-t", kind, *(["-o", words] if words else []), source, str(place))
        self.undo.callback(_command, "umount", "--lazy", str(place))
        return place

    def fuse(self, behind: Path, *faults: str) -> tuple[Path, subprocess.Popen[bytes]]:
        """Mount passthrough.py; the mount and its process. Raises Impossible."""
        place = self.folder / "mount-fuse"
        place.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "bench.reliability.passthrough", str(behind), str(place), *faults]
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.undo.callback(child.wait)
        self.undo.callback(child.kill)
        deadline = time.monotonic() + 10
        while not os.path.ismount(place):
            if child.poll() is not None or time.monotonic() > deadline:
                raise Impossible("FUSE cannot be mounted: it needs root, mfusepy and libfuse")
            time.sleep(0.01)
        self.undo.callback(_command, "umount", "--lazy", str(place))
        return place, child

    def digest(self) -> str:
        """SHA-256 over what was merged."""
        digest = hashlib.sha256()
        for file in sorted(self.output.rglob("*.safetensors")):
            digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()


def _command(*words: str) -> None:
    if shutil.which(words[0]) is None:
        raise Impossible(f"{words[0]} is not installed")
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise Impossible(done.stderr.strip())


def as_ordinary_user() -> list[str]:
    """The words before a command that is to mind permissions, which root does not. Raises Impossible."""
    if os.geteuid() != 0:
        return []
    wrap = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    _command(*wrap, "true")
    return wrap
