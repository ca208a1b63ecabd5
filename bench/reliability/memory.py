"""Merges in a control group whose limit is the budget and 64 MiB: nothing is killed, page cache included."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from bench.cache import evict
from bench.reliability.cgroup import MemoryGroup, memory_group
from streammerge.budget import MIB, format_size, parse_size

_ROOM = 64 * MIB
_METHODS = ("ram", "ram+", "ties")
_UNLIMITED = 1 << 50


@dataclass(frozen=True)
class Row:
    """One merge in the group, and its time without a limit."""

    method: str
    output: str
    io: str
    inputs: str
    peak: int
    charged: int
    limit: int
    seconds: float
    without: float

    def cells(self) -> tuple[str, ...]:
        """As texts."""
        sizes = (format_size(size) for size in (self.peak, self.charged, self.limit))
        return (self.method, self.output, self.io, self.inputs, *sizes, f"{self.seconds:.1f}", f"{self.without:.1f}")


def measure(data: Path, work: Path, budget: str) -> Iterator[Row]:
    """Every method, output and way of reading, with cold and with warm inputs. Raises NoGroup, RuntimeError."""
    models = [data / "base", *sorted(data.glob("agent-*"))]
    limit = parse_size(budget) + _ROOM
    for method, output, io, inputs in product(_METHODS, ("safetensors", "Q4_K_M"), ("pread", "mmap"), ("cold", "warm")):
        options = ["-m", method, "--io", io, "--max-ram", budget]
        if output != "safetensors":
            options += ["--quantize", output]
        found = []
        for most in (limit, _UNLIMITED):
            for file in (file for model in models for file in model.glob("*.safetensors")):
                if inputs == "cold":
                    evict([file])
            group = memory_group(most)
            try:
                found.append((*_merge(models, work, options, group), group.peak()))
            finally:
                group.remove()
        (seconds, peak, charged), (without, _, _) = found
        yield Row(method, output, io, inputs, peak, charged, limit, seconds, without)


def _merge(models: Sequence[Path], work: Path, options: Sequence[str], group: MemoryGroup) -> tuple[float, int]:
    """Seconds and peak of one merge in the group. Raises RuntimeError if it fails or is killed."""
    output = work / ("out.gguf" if "--quantize" in options else "out")
    command = [sys.executable, "-m", "streammerge", *map(str, models), "-o", str(output), *options, "--json", "-q"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=group.enter)
    seconds = time.perf_counter() - began
    shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
    if done.returncode != 0 or group.killed():
        raise RuntimeError(f"{' '.join(options)} ended with {done.returncode}: {done.stderr}")
    return seconds, int(json.loads(done.stdout)["memory"]["peak"])
