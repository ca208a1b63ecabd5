"""The plan: what will be done, decided from headers alone, as frozen data that can be printed.

Whatever can be known before reading a byte of weights fails here, by the name of model and tensor.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

from . import budget
from .budget import Demand, Memory
from .checkpoint import Checkpoint, open_checkpoint
from .errors import MismatchError, OutputError, RecipeError
from .formats.contract import OutputFile, OutputTensor, TensorInfo, total_bytes
from .formats.dtypes import DTYPES
from .formats.reading import WINDOW_GRAIN
from .formats.safetensors import SINGLE, index_json, layout
from .kernels.contract import BLOCK
from .methods import build_method
from .methods.base import Method
from .recipe import Recipe, compile_pattern


@dataclass(frozen=True, slots=True)
class TensorJob:
    """One output tensor. ``merge``: computed from base and agents; ``copy``: the base's bytes; ``cast``: the base's
    values in another type. ``counted`` is false where a tied head repeats the embedding's weights."""

    name: str
    shape: tuple[int, ...]
    source_dtype: str
    dtype: str
    action: Literal["merge", "copy", "cast"]
    reason: str
    counted: bool = True

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Plan:
    """Everything about a merge before it starts. Sizes in bytes."""

    recipe: Recipe
    method: Method
    base: Checkpoint
    agents: tuple[Checkpoint, ...]
    jobs: tuple[TensorJob, ...]
    files: tuple[OutputFile, ...]
    memory: Memory
    io: Literal["mmap", "pread"]
    free_disk: int | None
    notices: tuple[str, ...]

    @property
    def model_passes(self) -> int:
        """How often the whole model is read: measure passes over the model, and the blend."""
        return 1 + (len(self.method.measures()) if self.method.scope == "model" else 0)

    @property
    def tensor_passes(self) -> int:
        """How often each merged tensor is read, at most; all but the first reading find it warm."""
        return 1 + len(self.method.measures())

    @cached_property
    def merged_input_bytes(self) -> int:
        """Bytes of the merged tensors in base and agents together: one reading."""
        merged = [job.name for job in self.jobs if job.action == "merge"]
        return sum(model.tensors[name].nbytes for name in merged for model in (self.base, *self.agents))

    @cached_property
    def copied_bytes(self) -> int:
        """Bytes of the tensors that only the base gives."""
        return sum(self.base.tensors[job.name].nbytes for job in self.jobs if job.action != "merge")

    @property
    def bytes_to_read(self) -> int:
        """Bytes read over all passes, at most."""
        return self.merged_input_bytes * self.tensor_passes + self.copied_bytes

    @cached_property
    def bytes_to_write(self) -> int:
        """Size of the weights that are written."""
        return total_bytes(self.files)

    def chunks(self, job: TensorJob) -> list[tuple[int, int]]:
        """The chunks of one job as (start, stop) in elements."""
        step = self.memory.chunk
        return [(start, min(start + step, job.elements)) for start in range(0, job.elements, step)]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data for JSON."""
        return {
            "base": str(self.recipe.base),
            "agents": [str(path) for path in self.recipe.agents],
            "output": None if self.recipe.output is None else str(self.recipe.output),
            "method": {"name": self.method.name, "parameters": self.method.values()},
            "passes": {"model": self.model_passes, "tensor": self.tensor_passes},
            "memory": asdict(self.memory),
            "io": self.io,
            "bytes_to_read": self.bytes_to_read,
            "bytes_to_write": self.bytes_to_write,
            "free_disk": self.free_disk,
            "files": [{"name": file.name, "size": file.size, "tensors": len(file.offsets)} for file in self.files],
            "tensors": [
                {**asdict(job), "shape": list(job.shape), "chunks": len(self.chunks(job))} for job in self.jobs
            ],
            "notices": list(self.notices),
        }

    def to_json(self) -> str:
        """The plan as a JSON text."""
        return json.dumps(self.to_dict(), indent=2)


def make_plan(recipe: Recipe, *, reserved: int | None = None) -> Plan:
    """Decide everything about a merge from headers. ``reserved`` (bytes) is measured if not given.

    Raises FormatError, MismatchError, RecipeError, OutputError, BudgetError.
    """
    method = build_method(recipe.method, recipe.parameters, len(recipe.agents))
    base = open_checkpoint(recipe.base)
    agents = tuple(open_checkpoint(path) for path in recipe.agents)
    _check_distinct(base, agents, method)
    jobs, notices = _plan_jobs(recipe, base, agents)
    single = recipe.output.name if recipe.output is not None and recipe.output.suffix == ".safetensors" else SINGLE
    shard = None if single != SINGLE else recipe.max_shard_size
    files = layout([OutputTensor(job.name, job.dtype, job.shape) for job in jobs], shard, single)
    free = None if recipe.output is None else _check_output(recipe, (base, *agents), files)
    # Positional reads by default: their memory is known exactly, and a failing disk is an error, not a signal.
    io: Literal["mmap", "pread"] = "mmap" if recipe.io == "mmap" else "pread"
    threads = recipe.threads or _processors()
    memory = budget.fit(
        _demand(method, base, agents, jobs, mapped=io == "mmap"),
        allowed=recipe.max_ram or budget.default_allowed(),
        reserved=budget.peak() if reserved is None else reserved,
        threads=threads,
    )
    return Plan(recipe, method, base, agents, jobs, files, memory, io, free, notices)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- which tensor comes from where -----------------------------------------------------------------------------------


def _check_distinct(base: Checkpoint, agents: Sequence[Checkpoint], method: Method) -> None:
    """No model twice: by file identity, so that links and other spellings are found."""
    seen = {base.identity: f"the base {base.path}"} if method.uses_base else {}
    for number, agent in enumerate(agents, 1):
        if agent.identity in seen:
            raise MismatchError(
                f"agent {number}, {agent.path}, is the same model as {seen[agent.identity]}; leave it out"
            )
        seen[agent.identity] = f"agent {number}, {agent.path}"


def _plan_jobs(
    recipe: Recipe, base: Checkpoint, agents: Sequence[Checkpoint]
) -> tuple[tuple[TensorJob, ...], tuple[str, ...]]:
    selection = _Selection(recipe, base)
    jobs = tuple(_job(recipe, base, agents, info, selection) for info in base.tensors.values())
    notices = [_check_extra(base, agent, selection) for agent in agents]
    if not any(job.action == "merge" for job in jobs):
        raise RecipeError("nothing would be merged: --only and --exclude leave no floating-point tensor")
    return jobs, tuple(notice for notice in notices if notice)


class _Selection:
    """--only and --exclude: which tensors are left as they are in the base."""

    def __init__(self, recipe: Recipe, base: Checkpoint) -> None:
        self._exclude = [compile_pattern(pattern) for pattern in recipe.exclude]
        self._only = [compile_pattern(pattern) for pattern in recipe.only]
        for option, patterns in (("--exclude", self._exclude), ("--only", self._only)):
            for pattern in patterns:
                if option == "--only" and not any(pattern.search(name) for name in base.tensors):
                    raise RecipeError(f"{option} {pattern.pattern!r} matches no tensor of {base.path}")

    def reason(self, name: str) -> str | None:
        """Why a tensor is not merged, or None if it is."""
        for pattern in self._exclude:
            if pattern.search(name):
                return f"excluded by --exclude {pattern.pattern}"
        if self._only and not any(pattern.search(name) for pattern in self._only):
            return "not selected by --only"
        return None


def _job(
    recipe: Recipe, base: Checkpoint, agents: Sequence[Checkpoint], info: TensorInfo, selection: "_Selection"
) -> TensorJob:
    reason = selection.reason(info.name)
    floating = DTYPES[info.dtype].floating
    dtype = recipe.dtype if recipe.dtype is not None and floating else info.dtype
    if reason is None and not floating:
        reason = f"{info.dtype} is not a floating-point type"
    if reason is not None or info.elements == 0:
        action: Literal["copy", "cast"] = "copy" if dtype == info.dtype else "cast"
        return TensorJob(info.name, info.shape, info.dtype, dtype, action, reason or "has no elements")
    for agent in agents:
        _check_same(recipe, base, agent, info)
    embedding = base.embedding_of(info.name)  # counted already, if it is merged
    counted = embedding is None or selection.reason(embedding) is not None
    return TensorJob(info.name, info.shape, info.dtype, dtype, "merge", "in base and every agent", counted)


def _check_same(recipe: Recipe, base: Checkpoint, agent: Checkpoint, info: TensorInfo) -> None:
    """One tensor of an agent must have the base's shape and type."""
    found = agent.tensors.get(info.name)
    leave = f"to leave it as it is in the base: --exclude '^{info.name}$'"
    if found is None:
        hint = " (the agent ties its head to the embedding)" if base.is_head(info.name) else ""
        raise MismatchError(f"{agent.path}: tensor {info.name!r} of the base {base.path} is missing{hint}; {leave}")
    if found.shape != info.shape:
        hint = " (added tokens or padding?)" if found.shape[1:] == info.shape[1:] else ""
        raise MismatchError(
            f"{agent.path}: tensor {info.name!r} has shape {list(found.shape)}, the base {base.path} has "
            f"{list(info.shape)}{hint}; {leave}"
        )
    if found.dtype != info.dtype and not (recipe.mixed_dtypes and DTYPES[found.dtype].floating):
        raise MismatchError(
            f"{agent.path}: tensor {info.name!r} is {found.dtype}, in the base {base.path} it is {info.dtype}; "
            "rounding to another type looks like a change of every weight. If you know better: --mixed-dtypes"
        )


def _check_extra(base: Checkpoint, agent: Checkpoint, selection: _Selection) -> str | None:
    """A tensor that only an agent has is an error, unless it is excluded: then it is left out, and said so."""
    extra = [name for name in agent.tensors if name not in base.tensors]
    for name in extra:
        if selection.reason(name) is None:
            hint = ", where the head is tied to the embedding" if base.is_head(name) else ""
            raise MismatchError(
                f"{agent.path}: tensor {name!r} is not in the base {base.path}{hint}; "
                f"to leave it out: --exclude '^{name}$'"
            )
    return f"{agent.path}: left out, not in the base: {', '.join(extra)}" if extra else None


# --- where it goes ---------------------------------------------------------------------------------------------------


def _check_output(recipe: Recipe, models: Sequence[Checkpoint], files: Sequence[OutputFile]) -> int:
    """The target must be free, apart from the inputs, writable, and have the space. Returns the free bytes."""
    assert recipe.output is not None
    target = recipe.output.absolute()
    resolved = target.resolve()
    for model in models:
        place = model.path.resolve()
        if resolved == place or resolved.is_relative_to(place) or place.is_relative_to(resolved):
            raise OutputError(
                f"{recipe.output}: is the input {model.path}, or one lies inside the other; choose another"
            )
        if resolved in (file.resolve() for file in model.files):
            raise OutputError(f"{recipe.output}: is a file of the input {model.path}; choose another")
    occupied = target.is_file() or (target.is_dir() and any(target.iterdir())) or target.is_symlink()
    if occupied and not recipe.overwrite:
        raise OutputError(f"{recipe.output}: exists already; choose another, or give --overwrite")
    existing = next(parent for parent in target.parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OutputError(f"{existing}: is not a folder that can be written to")
    free = shutil.disk_usage(existing).free
    needed = total_bytes(files) + (len(index_json(files)) if len(files) > 1 else 0)
    if needed > free:
        raise OutputError(
            f"{recipe.output}: needs {budget.format_size(needed)}, but {existing} has {budget.format_size(free)} free"
        )
    return free


# --- what it needs ---------------------------------------------------------------------------------------------------


def input_widths(base: Checkpoint, agents: Sequence[Checkpoint], jobs: Sequence[TensorJob]) -> list[int]:
    """Bytes of the widest element that is read from the base and from each agent."""
    merged = [job.name for job in jobs if job.action == "merge"]
    widths = [max(DTYPES[model.tensors[name].dtype].itemsize for name in merged) for model in (base, *agents)]
    widths[0] = max(DTYPES[job.source_dtype].itemsize for job in jobs)
    return widths


def output_width(jobs: Sequence[TensorJob]) -> int:
    """Bytes of the widest element that is written."""
    return max(DTYPES[job.dtype].itemsize for job in jobs)


def _demand(
    method: Method,
    base: Checkpoint,
    agents: Sequence[Checkpoint],
    jobs: Sequence[TensorJob],
    *,
    mapped: bool,
) -> Demand:
    merged = [job for job in jobs if job.action == "merge"]
    counters, rows = 0, 0
    blocks = max(-(-job.elements // BLOCK) for job in merged)
    for measure in method.measures():
        size = 8 * prod(measure.shape(len(agents)))
        counters = max(counters, size) if measure.kind == "counts" else counters
        rows = max(rows, size * blocks) if measure.kind != "counts" else rows
    inputs = sum(input_widths(base, agents, jobs))
    edges = 0
    if mapped:  # the ends of a window are rounded out; tensors that are not aligned are copied as well
        models = (base, *agents)
        edges = 2 * WINDOW_GRAIN * len(models)
        crooked = any(info.offset % DTYPES[info.dtype].itemsize for model in models for info in model.tensors.values())
        inputs *= 2 if crooked else 1
    return Demand(
        inputs=inputs,
        output=output_width(jobs),
        floats=4 * (len(agents) + 2),
        worker=counters + edges,
        tensor=2 * counters + 3 * rows,
    )


def weights_of(jobs: Sequence[TensorJob]) -> Mapping[str, int]:
    """Elements by action: how many weights are merged, copied, cast."""
    totals = {"merge": 0, "copy": 0, "cast": 0}
    for job in jobs:
        totals[job.action] += job.elements
    return totals
