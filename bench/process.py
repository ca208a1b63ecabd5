"""A command as a process of its own: its time, its peak memory, its lines, and how much others disturbed it."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALM = 0.2  # cores that others may keep busy; the kernel's own writing takes up to half of this
_TICKS = os.sysconf("SC_CLK_TCK")
_PASS = re.compile(r"^(.+): \S+ \S+ to read$")


class BenchError(Exception):
    """A benchmark that cannot be trusted: a command failed, or its result is wrong."""


@dataclass(frozen=True)
class Run:
    """One process. Seconds and bytes; ``others`` is how many cores everything else on the machine kept busy.

    ``peak`` is ru_maxrss, which starts from the peak of the process that began this one: keep the benchmark small.
    """

    wall: float
    peak: int
    cpu: float
    others: float
    output: str
    lines: tuple[tuple[float, str], ...]

    def phases(self) -> dict[str, float]:
        """Seconds of start-up, of each pass and of the finish, by the times at which the program said so."""
        marks = [(0.0, "start")]
        for moment, line in self.lines:
            if match := _PASS.match(line):
                marks.append((moment, match.group(1)))
            elif line == "writing to disk":
                marks.append((moment, "fsync, rename, exit"))
        ends = [moment for moment, _ in marks[1:]] + [self.wall]
        return {name: end - moment for (moment, name), end in zip(marks, ends, strict=True)}


def run(command: Sequence[str | Path]) -> Run:
    """Run a command to its end. Raises BenchError if it fails."""
    before, began = busy(), time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        lines = tuple((time.perf_counter() - began, line.rstrip()) for line in child.stderr)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        out.seek(0)
        output = out.read()
    if child.returncode != 0:
        raise BenchError(f"{command[0]} ended with {child.returncode}: " + "\n".join(line for _, line in lines[-20:]))
    others = max(busy() - before - cpu, 0.0) / wall
    return Run(wall, usage.ru_maxrss * 1024, cpu, others, output, lines)


def streammerge(*arguments: str | Path) -> Run:
    """Run our command line."""
    return run([sys.executable, "-m", "streammerge", *arguments])


def compile_kernels() -> None:
    """Compile the kernels if that is still to be done, so that no measured process pays for it."""
    load = "from streammerge.kernels import load; load.load_cpu(); load.load_quants({'Q4_K'})"
    run([sys.executable, "-c", load])


@dataclass(frozen=True)
class Merge:
    """A merge by our command line: the process, and the report it printed."""

    run: Run
    report: dict[str, Any]


def merge(base: Path, agents: Sequence[Path], output: Path, method: str, max_ram: str, *options: str) -> Merge:
    """Merge by our command line; the base is touched before, so that nothing measured earlier is used again.
    Raises BenchError if it fails or breaks its promise about memory."""
    for file in base.glob("*.safetensors"):
        file.touch()
    found = streammerge(
        "merge", base, *agents, "-o", output, "--method", method, "--max-ram", max_ram, "--json", *options
    )
    report = json.loads(found.output)
    memory = report["memory"]
    if not max(memory["peak"], found.peak) <= memory["projected"] <= memory["allowed"]:
        raise BenchError(f"{method}: peak {found.peak}, but {memory}")
    return Merge(found, report)


def wait_for_calm(most: float = 120.0) -> None:
    """Wait until everything else leaves the machine alone for two seconds, but not for ever."""
    end = time.monotonic() + most
    calm = 0
    while calm < 2 and time.monotonic() < end:
        before = busy()
        time.sleep(1)
        calm = calm + 1 if busy() - before < CALM else 0


def busy() -> float:
    """Seconds that all cores together were busy since the machine started; what a hypervisor took counts."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system, _idle, _waiting, *rest = (int(word) for word in path.read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(rest)) / _TICKS
