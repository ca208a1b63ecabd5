"""python -m bench engine: whole merges against mergekit and against what the disk and the memory allow.

Every round times the floors and each method once, in turn, so that a slow minute of the machine hits all alike, and
another one begins each time; ratios are taken within a round. The first merge of each method is checked bit for bit,
later ones by their hash.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from bench import cache
from bench.floor import Floor, floor
from bench.machine import version_beside
from bench.mergekit import mergekit
from bench.oracle import Difference, check, compare
from bench.process import CALM, BenchError, Run, compile_kernels, merge, wait_for_calm
from bench.results import Cell, Result, Table, megabytes, middle
from bench.sample.checkpoint import files

METHODS = ("ram", "ram+", "ramplus_tl")
BUDGET = "512M"
_GOALS = {"ram": 1.5, "ram+": 2.0}


@dataclass
class Round:
    """One time each: both floors, and our command line by method."""

    state: str
    floor: Floor
    tight: Floor
    runs: dict[str, Run] = field(default_factory=dict)

    def ratio(self, method: str) -> float:
        """Wall time of a method in tight floors of this round."""
        return self.runs[method].wall / self.tight.wall

    def plain_ratio(self, method: str) -> float:
        """Wall time of a method in plain floors of this round."""
        return self.runs[method].wall / self.floor.wall

    @property
    def disturbed(self) -> float:
        """How many cores others kept busy, at the worst of these times."""
        return max(self.floor.others, self.tight.others, *(run.others for run in self.runs.values()))


class Contest:
    """Base and agents of one folder, a folder for outputs, and the hashes of the outputs that were checked."""

    def __init__(self, data: Path, work: Path) -> None:
        self.base = data / "base"
        self.agents = sorted(path for path in data.glob("agent-*") if path.is_dir())
        if not self.agents:
            raise BenchError("no agents found: make them with python -m bench.sample generate")
        self.inputs = [path for folder in (self.base, *self.agents) for path in files(folder)]
        self.size = sum(path.stat().st_size for path in files(self.base))
        self.work = work
        self._hashes: dict[str, str] = {}

    def check(self, method: str) -> Path:
        """Merge once, compare every bit with the oracle, remember the hash. The output is kept."""
        output = self.work / method
        merge(self.base, self.agents, output, method, BUDGET)
        check(self.base, self.agents, output, method)
        self._hashes[method] = content_hash(output)
        return output

    def round(self, state: str, methods: Sequence[str], number: int) -> Round:
        """Both floors and every method once each. Who begins changes with the number of the round: what reads first
        after an eviction may fill a cache below this system, and whoever comes later finds it warm."""
        wait_for_calm()
        floors: dict[str, Floor] = {}
        runs: dict[str, Run] = {}
        order = ["floor", "tight", *methods]
        turn = number % len(order)
        for name in order[turn:] + order[:turn]:
            wait_for_calm(30)
            self._prepare(state)
            if name in methods:
                runs[name] = self._merge(name)
            else:
                floors[name] = floor(self.inputs, self.work / "floor", self.size, tight=name == "tight")
        return Round(state, floors["floor"], floors["tight"], {name: runs[name] for name in methods})

    def rounds(self, state: str, methods: Sequence[str], wanted: int) -> list[Round]:
        """As many calm rounds as wanted; where the machine allows fewer, the calmest of twice as many."""
        found: list[Round] = []
        while sum(round.disturbed <= CALM for round in found) < wanted and len(found) < 2 * wanted:
            found.append(self.round(state, methods, len(found)))
        return sorted(found, key=lambda round: round.disturbed)[:wanted]

    def _merge(self, method: str) -> Run:
        output = self.work / "timed"
        found = merge(self.base, self.agents, output, method, BUDGET)
        if content_hash(output) != self._hashes[method]:
            raise BenchError(f"{method}: the output is not the one that was checked")
        shutil.rmtree(output)
        return found.run

    def _prepare(self, state: str) -> None:
        os.sync()
        (cache.evict if state == "cold" else cache.warm)(self.inputs)


def content_hash(folder: Path) -> str:
    """SHA-256 of a checkpoint's weight files; they are not left in the page cache."""
    digest = hashlib.sha256()
    for path in files(folder):
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(1 << 20)
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
        cache.evict([path])
    return digest.hexdigest()


@dataclass(frozen=True)
class Peer:
    """What mergekit did with one method, and how its output differs from ours."""

    run: Run
    difference: Difference


def bench_engine(data: Path, work: Path, rounds: int, cold_rounds: int, script: Path | None) -> Result:
    """Run everything and tell what came of it."""
    compile_kernels()
    contest = Contest(data, work)
    peers = {}
    for method in METHODS:
        ours = contest.check(method)
        if script is not None and method != "ram+":
            peers[method] = _peer(contest, script, method, ours)
        shutil.rmtree(ours)
    warm = contest.rounds("warm", METHODS, rounds)
    cold = contest.rounds("cold", METHODS, cold_rounds)
    return _result(contest, warm, cold, peers, script)


def _peer(contest: Contest, script: Path, method: str, ours: Path) -> Peer:
    """The middle one of three runs. They differ by a third: mergekit takes 16 GB, and memory that a virtual machine
    has not used before is slow to come by."""
    runs, output = [], contest.work / "mergekit"
    for _ in range(3):
        shutil.rmtree(output, ignore_errors=True)
        wait_for_calm()
        cache.warm(contest.inputs)
        runs.append(mergekit(script, contest.base, contest.agents, output, method))
    peer = Peer(sorted(runs, key=lambda run: run.wall)[1], compare(contest.base, ours, output))
    shutil.rmtree(output)
    return peer


# --- what is told ----------------------------------------------------------------------------------------------------


def _result(
    contest: Contest, warm: Sequence[Round], cold: Sequence[Round], peers: dict[str, Peer], script: Path | None
) -> Result:
    read = sum(path.stat().st_size for path in contest.inputs)
    settings = {
        "inputs": f"base and {len(contest.agents)} agents, {read / 1e9:.2f} GB",
        "output": f"{contest.size / 1e9:.2f} GB",
        "max-ram": BUDGET,
    }
    result = Result("engine", "Whole merges", settings, notes=list(_NOTES))
    if script is not None:
        result.packages = {"mergekit": version_beside(script, "mergekit")}
    result.tables.append(_goals(warm, peers))
    result.tables += [_times(rounds, peers if rounds is warm else {}) for rounds in (warm, cold) if rounds]
    result.tables += [_split(rounds) for rounds in (warm, cold) if rounds]
    if peers:
        result.tables.append(_differences(peers))
    result.runs = [asdict(round) for round in (*warm, *cold)] + [
        {"mergekit": method, **asdict(peer)} for method, peer in peers.items()
    ]
    for run in _all_runs(result.runs):
        run.update(lines=None, output=None)  # they hold the paths of this machine
    return result


_NOTES = (
    "floor: `cat` of all inputs to /dev/null, then writing the output's size from memory in pieces of 4 MiB to a new "
    "file, then fsync. It reads once; ram+ and ramplus_tl read twice.",
    "tight floor: the same, but what was written is dropped from the page cache after 64 MiB. Writing the plain floor "
    "took from 0.5 to 6.7 s for the same bytes on the first machine, with memory to spare and no reclaim, so it is no "
    "lower bound. A goal is met only if it holds against both.",
    "x floor: the median over the rounds of (wall time / floor of the same round); wall times are of whole processes, "
    "median (least to largest).",
    "Before each cold run every input is dropped from the page cache, and mincore says that it is gone. A virtual "
    "machine's host may still have it.",
    "others: how many cores everything else on the machine kept busy meanwhile, the kernel's own writing included. "
    f"Rounds in which it exceeds {CALM} are replaced, at most once each; the calmest are reported.",
    "mergekit: the middle one of three runs.",
    "mergekit computes in bfloat16 here, rounding every delta and sum; out_dtype is given because without it its "
    "ramplus_tl writes float32. Its output is accepted if it differs from ours by no more than two such roundings.",
    "Every bit of the first output of each method was compared with plain numpy, and the SHA-256 of each later one "
    "with the first.",
)


def _goals(warm: Sequence[Round], peers: dict[str, Peer]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for method, goal in _GOALS.items():
        plain, tight = (median(ratio(method) for ratio in each) for each in _ratios(warm))
        found = f"{tight:.2f} x tight, {plain:.2f} x plain"
        rows.append((f"{method} within {goal:g} x floor, warm", found, _verdict(max(plain, tight) <= goal)))
    if "ram" in peers:
        factor = peers["ram"].run.wall / median(round.runs["ram"].wall for round in warm)
        rows.append(("ram 30 x as fast as mergekit's", f"{factor:.0f} x", _verdict(factor >= 30)))
    peak = max(run.peak for round in warm for run in round.runs.values())
    rows.append((f"peak memory within {BUDGET}", megabytes(peak), _verdict(peak <= 512 * 2**20)))
    return Table("## Goals", ("goal", "found", "met"), rows)


def _verdict(met: bool) -> str:
    return "yes" if met else "**no**"


def _times(rounds: Sequence[Round], peers: dict[str, Peer]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, floors in (("floor", [each.floor for each in rounds]), ("tight floor", [each.tight for each in rounds])):
        others = round(median(each.others for each in floors), 2)
        rows.append((name, middle([each.wall for each in floors]), "", "", None, None, others))
    plain, tight = (median(each.wall for each in floors) for floors in zip(*((r.floor, r.tight) for r in rounds)))
    for method in rounds[0].runs:
        runs = [round.runs[method] for round in rounds]
        ratios = [middle([ratio(method) for ratio in each]) for each in _ratios(rounds)]
        rows.append((method, middle([run.wall for run in runs]), *ratios, *_costs(runs)))
    for method, peer in peers.items():
        wall = peer.run.wall
        ratios = [f"{wall / base:.1f}" for base in (plain, tight)]
        rows.append((f"mergekit {method}", f"{wall:.1f}", *ratios, *_costs([peer.run])))
    caption = f"## {rounds[0].state.capitalize()} page cache: seconds, {len(rounds)} rounds"
    return Table(caption, _TIMES, rows)


_TIMES = ("what", "wall, s", "x floor", "x tight floor", "peak", "CPU, s", "others, cores")


def _ratios(rounds: Sequence[Round]) -> tuple[list[Callable[[str], float]], list[Callable[[str], float]]]:
    """Ratios by method: to the plain floor, and to the tight one, of each round."""
    return [each.plain_ratio for each in rounds], [each.ratio for each in rounds]


def _costs(runs: Sequence[Run]) -> tuple[Cell, ...]:
    cpu, others = (median(getattr(run, name) for run in runs) for name in ("cpu", "others"))
    return megabytes(max(run.peak for run in runs)), round(cpu, 1), round(others, 2)


def _split(rounds: Sequence[Round]) -> Table:
    """Where the time goes."""
    parts = [("read", "read"), ("write", "write"), ("sync", "fsync, rename, exit")]
    rows: list[tuple[Cell, ...]] = [
        (title, *(f"{name}: {median(getattr(getattr(r, kind), part) for r in rounds):.2f}" for part, name in parts))
        for title, kind in (("floor", "floor"), ("tight floor", "tight"))
    ]
    for method in rounds[0].runs:
        phases = [round.runs[method].phases() for round in rounds]
        rows.append((method, *(f"{name}: {median(p[name] for p in phases):.2f}" for name in phases[0])))
    width = max(len(row) for row in rows)
    padded = [(*row, *[""] * (width - len(row))) for row in rows]
    caption = f"## {rounds[0].state.capitalize()} page cache: where the time goes, median seconds"
    return Table(caption, ("what", *(f"phase {number}" for number in range(1, width))), padded)


def _differences(peers: dict[str, Peer]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for method, peer in peers.items():
        found = peer.difference
        rows.append((method, *(f"{count:,}" for count in (found.elements, found.differing, found.by_steps))))
    columns = ("method", "elements", "differ", "by more than one step of bf16")
    return Table("## Output against mergekit's", columns, rows)


def _all_runs(records: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    found = []
    for record in records:
        runs = record.get("runs")
        found += [record["run"]] if "run" in record else list(runs.values()) if isinstance(runs, dict) else []
    return [run for run in found if isinstance(run, dict)]
