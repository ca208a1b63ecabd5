"""python -m bench pipeline: from checkpoints to the quantized file, in one command and in three tools.

Three tools: mergekit writes safetensors, llama.cpp's converter a GGUF file of the same size, its quantizer the file
that is run. Before any time is reported our file is compared, byte for byte, with what the last two tools make of our
own merge; with theirs it agrees in names, types and shapes (mergekit rounds every delta to bfloat16).

Every round times the three tools and each of our methods once, and ratios are taken within a round: mergekit's time
differs by a third from run to run. Nobody finds an older output in its place.
"""

import hashlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from bench import cache
from bench.engine import BUDGET, Contest
from bench.machine import version_beside
from bench.mergekit import mergekit
from bench.process import BenchError, Run, compile_kernels, merge, run, wait_for_calm
from bench.results import Cell, Result, Table, megabytes, middle
from streammerge.formats.gguf import GgufSource

_KIND, _NUMBER = "Q4_K_M", "15"
_METHODS = ("ram", "ram+")
_FASTER = 20


@dataclass(frozen=True)
class Step:
    """One tool of the three: its process, and the bytes that it left on the disk."""

    name: str
    run: Run
    written: int


@dataclass(frozen=True)
class Round:
    """One time each: the three tools, and our command by method."""

    tools: list[Step]
    ours: dict[str, Step]

    @property
    def wall(self) -> float:
        """Seconds of the three tools together."""
        return sum(step.run.wall for step in self.tools)

    def ratio(self, method: str) -> float:
        """How many times as fast a method is."""
        return self.wall / self.ours[method].run.wall


def bench_pipeline(data: Path, work: Path, rounds: int, script: Path, llama_cpp: Path) -> Result:
    """Check our files, then time everything once a round."""
    _check_tokenizer(data / "base")
    compile_kernels()
    contest, digests = Contest(data, work), {}
    for method in _METHODS:
        _ours(contest, method)
        digests[method] = _digest(_file(contest, method))
    _check_against_two_steps(contest, llama_cpp)
    found = [_round(contest, script, llama_cpp, digests, number) for number in range(rounds)]
    return _result(contest, found, script)


def _round(contest: Contest, script: Path, llama_cpp: Path, digests: dict[str, str], number: int) -> Round:
    """Who begins changes with the number of the round."""
    tools = _three_tools(contest, script, llama_cpp) if number % 2 == 0 else []
    ours = {method: _ours(contest, method) for method in _METHODS}
    for method, digest in digests.items():
        if _digest(_file(contest, method)) != digest:
            raise BenchError(f"{method}: two runs gave different files")
    return Round(tools or _three_tools(contest, script, llama_cpp), ours)


def _check_tokenizer(base: Path) -> None:
    if not (base / "tokenizer.json").exists():
        raise BenchError(f"{base}: has no tokenizer.json, which GGUF needs; copy that of the smollm2 sample there")


def _file(contest: Contest, method: str) -> Path:
    return contest.work / f"ours-{method}-{_KIND}.gguf"


def _ours(contest: Contest, method: str) -> Step:
    wait_for_calm()
    cache.warm(contest.inputs)
    output = _file(contest, method)
    for old in output.parent.glob(f"{output.name}*"):
        old.unlink()
    found = merge(contest.base, contest.agents, output, method, BUDGET, "--quantize", _KIND)
    return Step(f"streammerge {method}", found.run, output.stat().st_size)


def _check_against_two_steps(contest: Contest, llama_cpp: Path) -> None:
    """Our ram as safetensors, converted and quantized by llama.cpp, is our ram in GGUF."""
    folder = contest.work / "merged"
    merge(contest.base, contest.agents, folder, "ram", BUDGET)
    target = contest.work / f"two-steps-{_KIND}.gguf"
    _convert_and_quantize(folder, target, llama_cpp)
    _check_same_table(_file(contest, "ram"), target)
    sources = [GgufSource(path) for path in (_file(contest, "ram"), target)]
    for name in sources[0].tensors:
        places = [source.tensors[name] for source in sources]
        if len({_digest(info.file, info.offset, info.nbytes) for info in places}) != 1:
            raise BenchError(f"{name}: the bytes are not those that llama.cpp makes of the same merge")
    shutil.rmtree(folder)
    target.unlink()


def _digest(path: Path, start: int = 0, length: int | None = None) -> str:
    """SHA-256 of a part of a file, read in pieces: a measured process starts its life with the peak of this one."""
    digest, left = hashlib.sha256(), path.stat().st_size if length is None else length
    with path.open("rb") as file:
        file.seek(start)
        while left and (piece := file.read(min(left, 1 << 20))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def _check_same_table(ours: Path, theirs: Path) -> None:
    tables = [[(t.name, t.dtype, t.shape) for t in GgufSource(path).tensors.values()] for path in (ours, theirs)]
    if tables[0] != tables[1]:
        raise BenchError(f"{ours} and {theirs} hold different tensors")


def _convert_and_quantize(folder: Path, target: Path, llama_cpp: Path) -> list[Step]:
    middle_file = target.with_name("converted.gguf")
    converter = llama_cpp / "convert_hf_to_gguf.py"
    converted = run([sys.executable, converter, folder, "--outfile", middle_file, "--outtype", "bf16"])
    steps = [Step("convert_hf_to_gguf.py", converted, middle_file.stat().st_size)]
    quantized = run([sys.executable, "-m", "bench.llama_quantize", middle_file, target, _NUMBER])
    steps.append(Step("llama_model_quantize", quantized, target.stat().st_size))
    middle_file.unlink()
    return steps


def _three_tools(contest: Contest, script: Path, llama_cpp: Path) -> list[Step]:
    wait_for_calm()
    cache.warm(contest.inputs)
    folder = contest.work / "mergekit"
    merged = mergekit(script, contest.base, contest.agents, folder, "ram")
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    target = contest.work / f"theirs-{_KIND}.gguf"
    steps = [Step("mergekit ram", merged, size), *_convert_and_quantize(folder, target, llama_cpp)]
    _check_same_table(_file(contest, "ram"), target)
    shutil.rmtree(folder)
    target.unlink()
    return steps


# --- what is told ----------------------------------------------------------------------------------------------------


def _result(contest: Contest, rounds: Sequence[Round], script: Path) -> Result:
    read = sum(path.stat().st_size for path in contest.inputs)
    settings = {"inputs": f"base and {len(contest.agents)} agents, {read / 1e9:.2f} GB", "max-ram": BUDGET}
    result = Result("pipeline", f"From checkpoints to {_KIND}", settings, notes=list(_NOTES))
    result.packages = {
        "mergekit": version_beside(script, "mergekit"),
        "llama-cpp-python": version("llama-cpp-python"),
    }
    steps = [step for round in rounds for step in (*round.tools, *round.ours.values())]
    by_name: dict[str, list[Step]] = {step.name: [] for step in (*rounds[0].ours.values(), *rounds[0].tools)}
    for step in steps:
        by_name[step.name].append(step)
    rows: list[tuple[Cell, ...]] = [
        (name, middle([s.run.wall for s in each]), megabytes(max(s.run.peak for s in each)), megabytes(each[0].written))
        for name, each in by_name.items()
    ]
    tools = rounds[0].tools
    peak, written = max(s.run.peak for r in rounds for s in r.tools), sum(s.written for s in tools)
    rows.append(("the three together", middle([r.wall for r in rounds]), megabytes(peak), megabytes(written)))
    result.tables = [_goals(rounds), Table("## Times", ("what", "wall, s", "peak", "written"), rows)]
    result.runs = [asdict(step) for step in steps]
    for record in result.runs:
        record["run"].update(lines=None, output=None)  # they hold the paths of this machine
    return result


def _goals(rounds: Sequence[Round]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for method in _METHODS:
        ratios = [round.ratio(method) for round in rounds]
        met = "yes" if median(ratios) >= _FASTER else "**no**"
        found = f"{median(ratios):.1f} x ({min(ratios):.1f} to {max(ratios):.1f})"
        rows.append((f"{method} {_FASTER} x as fast as the three tools", found, met))
    peak = max(step.run.peak for round in rounds for step in round.ours.values())
    rows.append((f"peak memory within {BUDGET}", megabytes(peak), "yes" if peak <= 512 * 2**20 else "**no**"))
    return Table("## Goals", ("goal", "found", "met"), rows)


_NOTES = (
    "streammerge writes the final file only; the three tools leave two more copies of the model on the way.",
    "Our ram file holds, byte for byte, what llama.cpp's converter and quantizer make of our ram as safetensors. "
    "mergekit has no RAM+ of the whole model: its ram stands against both.",
    "Warm page cache; wall times of whole processes, the median (least to largest) of the rounds. How many times as "
    "fast is the median of the ratios within a round. The quantizer has two threads.",
)
