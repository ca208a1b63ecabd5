"""kill -9 at random moments of a merge, and power failures, each resumed: the checksums are those of a whole run."""

import hashlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import streammerge
from bench.process import BenchError
from streammerge.formats.contract import Source
from streammerge.journal import NAME, Record, read_journal
from streammerge.manifest import open_output
from streammerge.planning import Plan

# The journal is written as often as it can be, so that a merge of seconds has many moments of every kind.
_EAGER = "import streammerge.journal as j; j._LEAST, j._REST = 0.05, 0; from streammerge.cli import main; main()"
_LOST = b"\xa5"
# Name of the output, method, quantized type.
MERGES = (("out", "ram", None), ("out", "ram+", None), ("out.gguf", "ram", "Q4_K_M"))


@dataclass
class Tally:
    """What happened in one row of the table."""

    kills: int = 0
    before: int = 0  # killed before anything was in the journal
    within: int = 0  # with something in the journal
    named: int = 0  # when the output had its name already
    same: int = 0  # ended with the same bytes
    shares: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Merge:
    """One kind of merge that is killed; ``out`` says by its ending what it writes."""

    models: Sequence[Path]
    out: str
    method: str
    quantize: str | None = None

    def command(self, output: Path, *more: str) -> list[str]:
        """The command line of a run."""
        quantize = ["--quantize", self.quantize] if self.quantize else []
        options = [*map(str, self.models), "-o", str(output), "--quiet", "-m", self.method, *quantize]
        return [sys.executable, "-c", _EAGER, "merge", *options, *more]

    def plan(self, output: Path) -> Plan:
        """What the run does."""
        base, *agents = self.models
        return streammerge.plan(base, agents, output, method=self.method, quantize=self.quantize)


def kill_and_resume(merge: Merge, work: Path, kills: int, *, power: bool, seed: int = 0) -> Tally:
    """Kill a merge so often, each time at a random moment after it began to write, and resume it."""
    whole = work / "whole" / merge.out
    child = _begin(merge, whole)
    began = time.perf_counter()
    if child.wait() != 0:
        raise BenchError(f"{merge}: ended with {child.returncode}")
    lasts = time.perf_counter() - began
    wanted, tally, rng = _digests(whole), Tally(), random.Random(seed)
    for number in range(kills):
        output = work / f"killed-{number}" / merge.out
        for file in merge.models[0].glob("*.safetensors"):
            file.touch()  # so that nothing measured earlier is used again
        child = _begin(merge, output)
        time.sleep(rng.uniform(0, lasts))
        child.kill()
        child.wait()
        _classify(tally, merge, output, power)
        if not output.exists():
            subprocess.run(merge.command(output, "--resume"), check=True)
        tally.same += _digests(output) == wanted
        shutil.rmtree(output.parent)
    shutil.rmtree(whole.parent)
    return tally


def _begin(merge: Merge, output: Path) -> subprocess.Popen[bytes]:
    """Start a merge and come back when its journal is there."""
    child = subprocess.Popen(merge.command(output), stderr=subprocess.DEVNULL)
    journal = output.with_name(output.name + ".partial") / NAME
    while not journal.exists() and not output.exists() and child.poll() is None:
        time.sleep(0.001)
    return child


def _classify(tally: Tally, merge: Merge, output: Path, power: bool) -> None:
    tally.kills += 1
    partial = output.with_name(output.name + ".partial")
    records = list(read_journal(partial))
    if output.exists():
        tally.named += 1
    elif any("job" in record for record in records):
        tally.within += 1
        if power:
            tally.shares.append(_lose(merge.plan(output), partial, records))
    else:
        tally.before += 1


def _lose(plan: Plan, partial: Path, records: Sequence[Record]) -> float:
    """What a power failure may do at worst: every byte that the journal does not vouch for is another one. Returns how
    much of the output is left."""
    source = open_output(partial if plan.is_folder else partial / plan.files[0].name)
    kept = list(_vouched(plan, source, records))
    for file in source.files:
        raw = file.read_bytes()
        header = min(info.offset for info in source.tensors.values() if info.file == file)
        lost = bytearray(_LOST * len(raw))
        for begin, end in [(0, header), *((begin, end) for path, begin, end in kept if path == file)]:
            lost[begin:end] = raw[begin:end]
        file.write_bytes(lost)
    return sum(end - begin for _, begin, end in kept) / sum(info.nbytes for info in source.tensors.values())


def _vouched(plan: Plan, source: Source, records: Sequence[Record]) -> Iterator[tuple[Path, int, int]]:
    """File, begin and end of every run of bytes that is in the journal."""
    for record in records:
        if "job" not in record:
            continue
        job, (first, count) = plan.jobs[record["job"]], record["segments"]
        info = source.tensors[job.target.name if job.target else job.name]
        place = info.offset + (job.target.nbytes(job.target.first) if job.target else 0)
        end = min((first + count) * job.segment, job.elements)
        yield info.file, place + job.written(first * job.segment), place + job.written(end)


def _digests(output: Path) -> dict[str, str]:
    files = output.rglob("*") if output.is_dir() else output.parent.glob(f"{output.name}*")
    shown = [file for file in files if file.is_file() and not file.name.startswith(".")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in shown}
