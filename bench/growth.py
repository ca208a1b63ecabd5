"""python -m bench growth: peak memory and time as the model and the number of agents grow; planning for 70B.

Shapes that are not there are generated, and removed again afterwards. Outputs at both budgets must be the same bytes,
and a sample of their blocks must be what plain numpy computes.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.engine import content_hash
from bench.oracle import check_sample
from bench.process import BenchError, Merge, compile_kernels, merge, streammerge
from bench.results import Cell, Result, Table, megabytes
from bench.sample.checkpoint import files
from bench.sample.generate import SHAPES, make_agent, make_base

BUDGETS = ("512M", "256M")
METHOD = "ram+"
AGENTS = 2
MANY = (2, 4, 8, 16)
_SMALL, _PLANNED, _PLANNED_AGENTS = "135m", "70b", 8
_MARGIN = 4e9  # bytes of disk to leave free
_COLUMNS = ("shape", "agents", "input", "output", "max-ram", "peak", "projected", "threads", "chunk", "wall, s", "GB/s")


def bench_growth(data: Path, shapes: Sequence[str]) -> Result:
    """Merge every shape with two agents, the small one with up to sixteen; plan the largest."""
    compile_kernels()
    result = Result("growth", "Memory and time as models grow", {"method": METHOD}, notes=list(_NOTES))
    models = Table("## From small to large models", _COLUMNS)
    for shape in shapes:
        with samples(data, shape, AGENTS) as folder:
            models.rows.extend(_merges(folder, shape, AGENTS, result))
    agents = Table("## From few to many agents", _COLUMNS)
    with samples(data, _SMALL, max(MANY)) as folder:
        for count in MANY:
            agents.rows.extend(_merges(folder, _SMALL, count, result))
    result.tables = [models, agents, _plan(data)]
    return result


_NOTES = (
    "peak: the larger of the process's ru_maxrss and its own VmHWM, while reading twice (ram+). GB/s: read and written "
    "bytes by wall time of the whole process, start-up included.",
    "Inputs that fit are in the page cache; the largest shape does not fit and is read from disk.",
    "The outputs at both budgets were the same bytes; every 8th block was compared with plain numpy.",
    "plan: headers only, on sparse files; the wall time is the whole process, the best of three.",
)


@contextmanager
def samples(data: Path, shape: str, agents: int) -> Iterator[Path]:
    """The folder of a shape. What is missing in it is generated and removed at the end."""
    folder, made = data / shape, list[Path]()
    folder.mkdir(exist_ok=True)
    try:
        _check_disk(folder, shape, agents)
        for name in ("base", *(f"agent-{index}" for index in range(agents))):
            if (folder / name).exists():
                continue
            made.append(folder / name)
            if name == "base":
                make_base(folder / name, SHAPES[shape])
            else:
                make_agent(folder / name, folder / "base", index=int(name.removeprefix("agent-")))
        yield folder
    finally:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _check_disk(folder: Path, shape: str, agents: int) -> None:
    size = sum(tensor.nbytes for tensor in SHAPES[shape].tensors("BF16"))
    present = sum((folder / name).exists() for name in ("base", *(f"agent-{index}" for index in range(agents))))
    needed = size * (agents + 2 - present) + _MARGIN
    if (free := shutil.disk_usage(folder).free) < needed:
        raise BenchError(f"{shape} needs {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free; leave it out")


def _merges(folder: Path, shape: str, count: int, result: Result) -> Iterator[tuple[Cell, ...]]:
    """One merge at each budget."""
    base, agents = folder / "base", [folder / f"agent-{index}" for index in range(count)]
    hashes: set[str] = set()
    for budget in BUDGETS:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as work:
            output = Path(work) / "out"
            found = merge(base, agents, output, METHOD, budget)
            if not hashes:
                check_sample(base, agents, output, [share["scale"] for share in found.report["agents"]], every=8)
            hashes.add(content_hash(output))
        if len(hashes) > 1:
            raise BenchError(f"{shape}, {count} agents: the output depends on the budget")
        result.runs.append(
            {
                "shape": shape,
                "agents": count,
                "budget": budget,
                "wall": found.run.wall,
                "others": found.run.others,
                "phases": found.run.phases(),
                **found.report["memory"],
            }
        )
        yield _row(folder, shape, count, budget, found)


def _row(folder: Path, shape: str, count: int, budget: str, found: Merge) -> tuple[Cell, ...]:
    size = sum(path.stat().st_size for path in files(folder / "base"))
    memory, wall = found.report["memory"], found.run.wall
    moved = (found.report["bytes_read"] + found.report["bytes_written"]) / wall / 1e9
    peak = max(memory["peak"], found.run.peak)
    return (
        shape,
        count,
        f"{size * (count + 1) / 1e9:.2f} GB",
        f"{size / 1e9:.2f} GB",
        budget,
        megabytes(peak),
        megabytes(memory["projected"]),
        memory["workers"],
        f"{memory['chunk']:,}",
        round(wall, 1),
        round(moved, 2),
    )


def _plan(data: Path) -> Table:
    """Time and projected memory of a plan for the largest shape, from sparse files."""
    table = Table("## Planning", ("shape", "agents", "max-ram", "wall, s", "goal", "projected", "peak of the plan"))
    with tempfile.TemporaryDirectory(prefix="bench-", dir=data) as work:
        folder = Path(work)
        make_base(folder / "base", SHAPES[_PLANNED], max_shard_bytes=5 * 10**9, sparse=True)
        agents = [folder / f"agent-{index}" for index in range(_PLANNED_AGENTS)]
        for index, agent in enumerate(agents):
            make_agent(agent, folder / "base", index=index, sparse=True)
        for budget in BUDGETS:
            options = ("--method", METHOD, "--max-ram", budget, "--json")
            runs = [streammerge("plan", folder / "base", *agents, *options) for _ in range(3)]
            best = min(runs, key=lambda run: run.wall)
            projected = json.loads(best.output)["memory"]["projected"]
            met = "under 2 s: yes" if best.wall < 2 else "under 2 s: **no**"
            table.rows.append((_PLANNED, len(agents), budget, round(best.wall, 2), met, megabytes(projected),
                               megabytes(best.peak)))  # fmt: skip
    return table
