"""What the journal and the checksums cost: whole merges with and without them, in turn."""

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.process import BenchError, wait_for_calm

_WAYS = {
    "as it is": "",
    "without the journal": (
        "import streammerge.journal as j; j.Journal.append = lambda self, record: None; "
        "j.Journal._write_now_and_then = lambda self: None"
    ),
    "without checksums": (
        "import streammerge.checksum as c; c.digests = lambda data, segment: bytes(16 * -(-len(data) // segment))"
    ),
}


def cost(models: Sequence[Path], work: Path, rounds: int) -> dict[str, float]:
    """Median seconds of a merge by RAM, by way; each round begins with another one. Raises BenchError."""
    seconds: dict[str, list[float]] = {way: [] for way in _WAYS}
    wait_for_calm()
    for number in range(rounds):
        ways = list(_WAYS)
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            seconds[way].append(_merge(models, work / "out", _WAYS[way]))
            shutil.rmtree(work / "out")
            time.sleep(1)
    return {way: median(found) for way, found in seconds.items()}


def _merge(models: Sequence[Path], output: Path, patch: str) -> float:
    run = [sys.executable, "-c", f"{patch}\nfrom streammerge.cli import main\nmain()", "merge"]
    began = time.perf_counter()
    done = subprocess.run([*run, *map(str, models), "-o", str(output), "-m", "ram", "-q"], stderr=subprocess.PIPE)
    if done.returncode != 0:
        raise BenchError(done.stderr.decode())
    return time.perf_counter() - began
