"""The plan: what will be done, decided from headers alone, as frozen data that can be printed.

Whatever can be known before reading a byte of weights fails here, by the name of model and tensor.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import budget
from .budget import Demand, Memory
from .checkpoint import Checkpoint, open_checkpoint
from .demand import demand_of
from .device.placement import PROCESSOR, Placement, torch_placement
from .errors import OutputError
from .formats.atomic import half_named, partial_folder
from .formats.contract import IO, OutputFile, OutputTensor, total_bytes
from .formats.dtypes import DTYPES
from .formats.reading import are_local
from .formats.safetensors import SINGLE, index_json, layout
from .inspection.observing import DEFAULT_EPSILON, Columns, Observe
from .jobs import TensorJob
from .kernels.contract import BLOCK
from .manifest_check import NAME as MANIFEST
from .matching import check_distinct, check_something_is_merged, match
from .methods.base import Measure, Method
from .recipe import DEFAULT_SHARD, Recipe
from .varying import general_method, idle_filters, methods_by_tensor, plain, settled

if TYPE_CHECKING:
    from .gguf.output import GgufOutput


@dataclass(frozen=True)
class Plan:
    """Everything about a merge before it starts. Sizes in bytes. ``method`` is what all tensors have in common,
    ``methods`` that of each merged tensor: parameters may vary."""

    recipe: Recipe
    method: Method
    methods: Mapping[str, Method]
    base: Checkpoint
    agents: tuple[Checkpoint, ...]
    tokenizer: Checkpoint  # whose tokenizer files the output gets
    jobs: tuple[TensorJob, ...]
    output: Path | None  # the folder or file that will stand there
    files: tuple[OutputFile, ...]
    memory: Memory
    io: IO
    free_disk: int | None
    notices: tuple[str, ...]
    gguf: "GgufOutput | None" = None
    placement: Placement = PROCESSOR

    @property
    def is_folder(self) -> bool:
        """Whether the output is a model folder; otherwise it is ``files``, beside each other."""
        return self.gguf is None and self.recipe.output is not None and self.recipe.output.suffix != ".safetensors"

    @property
    def model_passes(self) -> int:
        """How often the whole model is read: measure passes over the model, and the blend."""
        return 1 + (len(self.method.measures()) if self.method.scope == "model" else 0)

    @property
    def tensor_passes(self) -> int:
        """How often each merged tensor is read, at most; all but the first reading find it warm."""
        return 1 + max(len(method.measures()) for method in set(self.methods.values()))

    def method_of(self, job: TensorJob) -> Method:
        """The method with the parameters of one merged tensor."""
        return self.methods[job.name]

    def kind(self, job: TensorJob) -> tuple[object, ...]:
        """What tensors have in common that are computed in the same way, with the same parameters."""
        types = tuple(model.tensors[job.name].dtype for model in (self.base, *self.agents))
        weighted = job.target is not None and self.gguf is not None and job.target.name in self.gguf.weights
        return job.kind, types, weighted, self.method_of(job)

    @property
    def parameters(self) -> dict[str, Any]:
        """Every parameter of the method with its value, which may be one that varies by tensor."""
        return settled(self.method, self.recipe.parameters)

    def input_bytes(self, jobs: Iterable[TensorJob]) -> int:
        """Bytes of one reading of everything that these jobs are made of."""
        models = (self.base, *self.agents)
        return sum(
            job.elements * DTYPES[models[model].tensors[job.name].dtype].itemsize
            for job in jobs
            for model in job.models(len(models))
        )

    @property
    def bytes_to_read(self) -> int:
        """Bytes read over all passes, at most."""
        merged = self.input_bytes(job for job in self.jobs if job.action == "merge")
        return self.input_bytes(self.jobs) + merged * (self.tensor_passes - 1)

    @cached_property
    def tensor_names(self) -> tuple[str, ...]:
        """The tensors of the output that come from checkpoints; one may take several jobs."""
        return tuple(dict.fromkeys(job.target.name if job.target else job.name for job in self.jobs))

    @cached_property
    def bytes_to_write(self) -> int:
        """Size of the weights that are written."""
        return total_bytes(self.files)

    @cached_property
    def observer(self) -> Observe | None:
        """What the blend gathers for ``--report``, from what it reads anyway."""
        return None if self.recipe.report is None else _observer(self.method, len(self.agents))

    def measuring(self, job: TensorJob, measure: Measure | None) -> Measure | None:
        """What is measured in a pass: in the blend (None) of a counted tensor what is observed, if anything."""
        observed = measure is None and job.action == "merge" and job.counted
        return self.observer if observed else measure

    def step(self, job: TensorJob, measure: Measure | None = None) -> int:
        """Elements of a chunk of this job, in a measure pass or (None) the blend.

        What is blended is cut between the segments of its output. Float sums are cut at multiples of BLOCK, whatever
        the output is: so they never change.
        """
        if measure is not None and measure.kind != "blocks":
            return self.memory.chunk
        return max(self.memory.chunk // job.segment * job.segment, min(job.segment, self.memory.chunk))

    def blocks(self, job: TensorJob, measure: Measure | None = None) -> int:
        """How many blocks all chunks of a job have together."""
        whole, rest = divmod(job.elements, self.step(job, measure))
        return whole * self.blocks_of_chunk(job, measure) + -(-rest // BLOCK)

    def blocks_of_chunk(self, job: TensorJob, measure: Measure | None = None) -> int:
        """How many blocks a whole chunk has."""
        return -(-self.step(job, measure) // BLOCK)

    def chunks(self, job: TensorJob, measure: Measure | None = None) -> list[tuple[int, int]]:
        """The chunks of one job as (start, stop) in elements of its tensor."""
        step, end = self.step(job, measure), job.start + job.elements
        return [(start, min(start + step, end)) for start in range(job.start, end, step)]

    def method_dict(self) -> dict[str, Any]:
        """The method and its parameters as plain data for JSON."""
        return {"name": self.method.name, "parameters": {name: plain(value) for name, value in self.parameters.items()}}

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data for JSON."""
        return {
            "base": str(self.recipe.base),
            "agents": [str(path) for path in self.recipe.agents],
            "output": None if self.output is None else str(self.output),
            "quantize": None if self.gguf is None else self.gguf.file_type.name,
            "method": self.method_dict(),
            "passes": {"model": self.model_passes, "tensor": self.tensor_passes},
            "memory": asdict(self.memory),
            "io": self.io,
            "device": asdict(self.placement),
            "bytes_to_read": self.bytes_to_read,
            "bytes_to_write": self.bytes_to_write,
            "free_disk": self.free_disk,
            "files": [{"name": file.name, "size": file.size, "tensors": len(file.offsets)} for file in self.files],
            "tensors": [
                {**asdict(job), "shape": list(job.shape), "chunks": -(-job.elements // self.step(job))}
                for job in self.jobs
            ],
            "notices": list(self.notices),
        }

    def to_json(self) -> str:
        """The plan as a JSON text."""
        return json.dumps(self.to_dict(), indent=2)


def make_plan(
    recipe: Recipe,
    notify: Callable[[str], None] = lambda text: None,
    *,
    reserved: int | None = None,
    method: Method | None = None,
) -> Plan:
    """Decide everything about a merge from headers. ``reserved`` (bytes) is measured if not given, after the kernels
    that will be called have been loaded; ``notify`` is told if they have to be compiled first. ``method`` takes the
    place of the recipe's.

    Raises FormatError, MismatchError, RecipeError, OutputError, BudgetError.
    """
    given, method = method, method or general_method(recipe.method, recipe.parameters, len(recipe.agents))
    base = open_checkpoint(recipe.base)
    agents = tuple(open_checkpoint(path) for path in recipe.agents)
    check_distinct(base, agents, method)
    matched = match(recipe, base, agents)
    base, agents, jobs, notices = matched.base, matched.agents, matched.jobs, matched.notices
    merged = [job.name for job in jobs if job.action == "merge"]
    methods = (
        methods_by_tensor(recipe.method, recipe.parameters, recipe.agents, base.tensors, merged)
        if given is None
        else dict.fromkeys(merged, given)
    )
    gguf: GgufOutput | None = None
    if recipe.gguf is not None:
        from .gguf.output import plan_gguf
        from .kernels.load import load_quants

        gguf = plan_gguf(recipe, recipe.gguf, matched, notify)
        load_quants({job.target.dtype for job in gguf.jobs if job.target}, notify)
        check_something_is_merged(gguf.jobs)
        jobs, files, output = gguf.jobs, gguf.files, gguf.path
    else:
        output, files = recipe.output, _safetensors_files(recipe, jobs)
    if given or recipe.report is not None or any(job.dtype == "F64" for job in jobs):
        from .kernels.load import load_cpu

        load_cpu(notify, one_by_one=True)  # weights go through them as float32
    threads = recipe.threads or processors()
    measures = [measure for of_some in set(methods.values()) for measure in of_some.measures()]
    if recipe.report is not None:
        measures.append(_observer(method, len(agents)))
    placement = PROCESSOR if given or recipe.device in ("auto", "cpu") else torch_placement(recipe.device)
    allowed, reserved = budget.allowed(recipe.max_ram), budget.peak() if reserved is None else reserved

    def fitted(io: IO) -> tuple[IO, Demand, Memory]:
        demand = demand_of(measures, base, agents, jobs, mapped=io == "mmap", on_device=not placement.is_processor)
        largest = budget.largest_chunk(mapped=io == "mmap")
        return io, demand, budget.fit(demand, allowed=allowed, reserved=reserved, threads=threads, largest=largest)

    io, demand, memory = fitted("mmap" if recipe.io == "mmap" else "pread")
    if recipe.io == "auto" and placement.is_processor and budget.is_worth_mapping(memory.chunk):
        mapped = fitted("mmap")
        if budget.is_worth_mapping(mapped[-1].chunk) and are_local(f for one in (base, *agents) for f in one.files):
            io, demand, memory = mapped
    notices = (*recipe.notices, *idle_filters(recipe.parameters, merged), *notices, *(gguf.notices if gguf else ()))
    plan = Plan(
        recipe, method, methods, base, agents, matched.tokenizer, jobs, output, files, memory, io, None, notices, gguf
    )
    if output is not None:
        plan = replace(plan, free_disk=_check_output(plan, output))
    if placement.is_processor:
        return plan
    from .device.prepare import placed  # imports torch

    return placed(replace(plan, placement=placement), demand, threads)


def _safetensors_files(recipe: Recipe, jobs: Sequence[TensorJob]) -> tuple[OutputFile, ...]:
    tensors = list(dict.fromkeys(OutputTensor(job.name, job.dtype, job.shape) for job in jobs))
    if recipe.output is not None and recipe.output.suffix == ".safetensors":
        return layout(tensors, None, recipe.output.name)
    limit = DEFAULT_SHARD if recipe.max_shard_size is None else recipe.max_shard_size
    return layout(tensors, limit or None, SINGLE)


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- where it goes ---------------------------------------------------------------------------------------------------


def _check_output(plan: Plan, output: Path) -> int:
    """The target must be free, apart from the inputs, writable, and have the space. Returns the free bytes."""
    try:
        return _check_place(plan, output)
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, a link to itself, NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"{str(output)!r:.300}: cannot be the place of an output: {reason}") from error


def _check_place(plan: Plan, output: Path) -> int:
    target = output.absolute()
    resolved = target.resolve()
    occupied = in_the_way(plan)
    for read in plan.gguf.read if plan.gguf else ():
        if read.resolve() in [place.resolve() for place in occupied]:
            raise OutputError(f"{output}: would take the place of {read}, which is read; choose another")
    for model in (plan.base, *plan.agents):
        place = model.path.resolve()
        if resolved == place or resolved.is_relative_to(place) or place.is_relative_to(resolved):
            raise OutputError(f"{output}: is the input {model.path}, or one lies inside the other; choose another")
        if resolved in (file.resolve() for file in model.files):
            raise OutputError(f"{output}: is a file of the input {model.path}; choose another")
    if occupied and not plan.recipe.overwrite:
        more = f" (and {len(occupied) - 1} more)" if len(occupied) > 1 else ""
        raise OutputError(f"{occupied[0]}{more}: exists already; choose another, or give --overwrite")
    for place in occupied:
        if not _may_be_replaced(place):
            raise OutputError(f"{place}: is no model that was written here, and is not replaced; choose another")
    existing = next(parent for parent in target.parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OutputError(f"{existing}: is not a folder that can be written to")
    free = shutil.disk_usage(existing).free + _size_on_disk(partial_folder(target))
    needed = plan.bytes_to_write + (len(index_json(plan.files)) if plan.gguf is None and len(plan.files) > 1 else 0)
    if plan.is_folder:
        from .folder import copied  # which imports this module

        needed += sum((place / file).stat().st_size for place, file in copied(plan))
    if needed > free:
        raise OutputError(
            f"{output}: needs {budget.format_size(needed)}, but {existing} has {budget.format_size(free)} free"
        )
    return free


def _may_be_replaced(place: Path) -> bool:
    """--overwrite is for models: a folder of ours, known by its manifest, or a file that is called like one."""
    if place.is_dir() and not place.is_symlink():
        return (place / MANIFEST).is_file()
    return place.suffix.lower() in (".safetensors", ".gguf")


def _size_on_disk(folder: Path) -> int:
    """Bytes that a folder, here of an earlier run, takes; it is gone on with or removed."""
    return sum(getattr(file.stat(), "st_blocks", 0) * 512 for file in folder.rglob("*") if file.is_file())


def in_the_way(plan: Plan) -> list[Path]:
    """What stands where the output will be: --overwrite replaces it. An empty folder is not in the way of a folder."""
    if plan.output is None:
        return []
    places = [plan.output]
    if not plan.is_folder:
        names = {file.name for file in plan.files}
        pattern = re.compile(re.escape(plan.output.stem) + r"-\d{5}-of-\d{5}\.gguf") if plan.gguf else None
        folder = plan.output.parent
        if pattern is not None and folder.is_dir():  # a model of as many files as another run made
            names |= {entry.name for entry in folder.iterdir() if pattern.fullmatch(entry.name)}
        places += [plan.output.with_name(name) for name in sorted(names - {plan.output.name})]
    ours = half_named(plan.output)
    return [
        place
        for place in places
        if place not in ours and (place.is_file() or place.is_symlink() or (place.is_dir() and any(place.iterdir())))
    ]


def _observer(method: Method, agents: int) -> Observe:
    return Observe(Columns(agents), getattr(method, "epsilon", DEFAULT_EPSILON))


def weights_of(jobs: Sequence[TensorJob]) -> Mapping[str, int]:
    """Elements by action: how many weights are merged, copied, cast."""
    totals = {"merge": 0, "copy": 0, "cast": 0, "average": 0}
    for job in jobs:
        totals[job.action] += job.elements
    return totals
