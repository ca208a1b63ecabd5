"""python -m bench skills: what a merge keeps of each agent's skill.

Three real agents of one small model, each trained for one task; every method merges them, and each model answers
64 prompts a task and seed, greedily. A method is as good as its worst task.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.oracle import check
from bench.process import compile_kernels, merge, run
from bench.results import Cell, Result, Table
from bench.sample.agents import AGENTS

TASKS = AGENTS  # an agent is named after its task
PROMPTS = 64
_BUDGET = "512M"


@dataclass(frozen=True)
class Recipe:
    """A method with its parameters, and what to call it."""

    method: str
    parameters: Mapping[str, float]

    @property
    def title(self) -> str:
        """``ties density=0.2``."""
        return " ".join([self.method, *(f"{name}={value:g}" for name, value in self.parameters.items())])


RECIPES = (
    Recipe("linear", {}),
    Recipe("task_arithmetic", {}),
    Recipe("ties", {"density": 0.2}),
    Recipe("dare_linear", {"density": 0.5}),
    Recipe("ram", {}),
    Recipe("ram+", {}),
    Recipe("ramplus_tl", {}),
)


def bench_skills(data: Path, work: Path, seeds: Sequence[int]) -> Result:
    """Evaluate base, agents and every merge."""
    compile_kernels()
    settings = {"prompts": f"{PROMPTS} a task and seed", "seeds": ", ".join(map(str, seeds))}
    result = Result("skills", "What a merge keeps of each skill", settings, notes=list(_NOTES))
    for name in ("base", *TASKS):
        label = name if name == "base" else f"agent {name}"
        result.runs += _evaluations(data / name, label, seeds)
    for recipe in RECIPES:
        output = work / "merged"
        _merge(data, output, recipe)
        result.runs += _evaluations(output, recipe.title, seeds)
        shutil.rmtree(output)
    own = {task: _share(result.runs, f"agent {task}", task) for task in TASKS}
    labels = list(dict.fromkeys(record["model"] for record in result.runs))
    result.tables = [_table(result.runs, labels, own), _by_seed(result.runs, labels, seeds)]
    return result


_NOTES = (
    "A figure is the share of prompts answered exactly, over all seeds; kept is that share divided by what the task's "
    "own agent reaches, its worst task and the mean over the tasks.",
    "The outputs of ram, ram+ and ramplus_tl were compared with plain numpy, bit for bit.",
    "Three agents of a 135M model on three easy tasks: they show that a method works, not which one is best for yours.",
)


def _merge(data: Path, output: Path, recipe: Recipe) -> None:
    agents = [data / task for task in TASKS]
    options = [word for name, value in recipe.parameters.items() for word in ("-p", f"{name}={value}")]
    merge(data / "base", agents, output, recipe.method, _BUDGET, *options)
    if recipe.method.startswith("ram"):
        check(data / "base", agents, output, recipe.method)


def _evaluations(model: Path, label: str, seeds: Sequence[int]) -> list[dict[str, str | float]]:
    """One record for each seed and task. In a process of its own, for torch takes much memory."""
    records: list[dict[str, str | float]] = []
    for seed in seeds:
        found = run([sys.executable, "-m", "bench.sample.evaluate", model, *TASKS, "--seed", str(seed)])
        for line in found.output.splitlines():
            task, share = line.split()
            records.append({"model": label, "seed": seed, "task": task, "share": float(share)})
    return records


def _share(runs: Sequence[Mapping[str, str | float]], model: str, task: str, seed: int | None = None) -> float:
    found = [
        float(record["share"])
        for record in runs
        if record["model"] == model and record["task"] == task and seed in (None, record["seed"])
    ]
    return sum(found) / len(found)


def _table(runs: Sequence[Mapping[str, str | float]], labels: Sequence[str], own: Mapping[str, float]) -> Table:
    table = Table("## All seeds together", ("model", *TASKS, "kept, worst task", "kept, mean"))
    for label in labels:
        shares = [_share(runs, label, task) for task in TASKS]
        kept = [share / own[task] for share, task in zip(shares, TASKS, strict=True)]
        row: list[Cell] = [label, *(f"{share:.3f}" for share in shares)]
        table.rows.append((*row, f"{min(kept):.0%}", f"{sum(kept) / len(kept):.0%}"))
    return table


def _by_seed(runs: Sequence[Mapping[str, str | float]], labels: Sequence[str], seeds: Sequence[int]) -> Table:
    columns = ("model", *(f"{task} ({seed})" for seed in seeds for task in TASKS))
    table = Table("## By seed", columns)
    for label in labels:
        shares = (_share(runs, label, task, seed) for seed in seeds for task in TASKS)
        table.rows.append((label, *(f"{share:.3f}" for share in shares)))
    return table
