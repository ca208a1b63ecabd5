"""Plans and methods as text for the terminal."""

import inspect
from collections.abc import Iterable
from itertools import groupby

from .budget import format_size
from .escape import printable
from .jobs import TensorJob
from .methods.base import Method, Parameter
from .planning import Plan, weights_of


def plan_text(plan: Plan) -> str:
    """A plan as people read it: the sums first, then a line for each run of tensors of one kind."""
    memory, weights = plan.memory, weights_of(plan.jobs)
    lines = [
        f"method   {plan.method.name}: " + ", ".join(f"{name}={value}" for name, value in plan.parameters.items()),
        f"base     {plan.recipe.base}",
        *(f"agent    {path}" for path in plan.recipe.agents),
        f"output   {plan.output or '(none given)'}: {format_size(plan.bytes_to_write)} in "
        f"{len(plan.files)} file{'s' if len(plan.files) > 1 else ''}"
        + ("" if plan.gguf is None else f", {plan.gguf.file_type.name}")
        + ("" if plan.free_disk is None else f", {format_size(plan.free_disk)} free"),
        f"weights  {weights['merge']:,} merged, {weights['copy']:,} copied, {weights['cast']:,} copied in another type"
        + (f", {weights['average']:,} averaged" if weights["average"] else ""),
        f"reading  {format_size(plan.bytes_to_read)}: {plan.model_passes} over the model, "
        f"{plan.tensor_passes} over each merged tensor; by {plan.io}",
        f"memory   {format_size(memory.projected)} projected of {format_size(memory.allowed)} allowed; "
        f"{format_size(memory.reserved)} reserved; at least {format_size(memory.least)}",
        f"workers  {memory.workers} with chunks of {memory.chunk:,} weights",
        f"device   {plan.placement}",
    ]
    vram = plan.placement.vram
    if vram is not None:
        lines.append(
            f"vram     {format_size(vram.projected)} projected of {format_size(vram.allowed)} allowed; "
            f"{vram.run:,} weights at a time"
        )
    lines += [f"note     {notice}" for notice in plan.notices]
    lines.append("tensors")
    if plan.gguf is not None:
        computed = [f"  new   F32 to F32    {name}: computed" for name in plan.gguf.constants]
        return _text([*lines, *computed, *map(_gguf_line, plan.jobs)])
    for (action, source, dtype, reason), group in groupby(plan.jobs, key=_kind):
        jobs = list(group)
        names = jobs[0].name if len(jobs) == 1 else f"{jobs[0].name} ... {jobs[-1].name} ({len(jobs)})"
        types = dtype if source == dtype else f"{source} to {dtype}"
        lines.append(f"  {action:5} {types:5} {names}" + ("" if action == "merge" else f": {reason}"))
    return _text(lines)


def _text(lines: Iterable[str]) -> str:
    return "\n".join(map(printable, lines))


def _gguf_line(job: TensorJob) -> str:
    target = job.target
    assert target is not None
    reason = "" if job.action == "merge" else f": {job.reason}"
    return f"  {job.action:5} {job.source_dtype} to {target.dtype:6} {target.name}{reason}"


def _kind(job: TensorJob) -> tuple[str, str, str, str]:
    return job.action, job.source_dtype, job.dtype, job.reason


def method_line(method: type[Method]) -> str:
    """One line of the list of methods."""
    parameters = ", ".join(f"{p.name}={p.default}" for p in method.parameters())
    return f"{method.name:16} {method.title} ({method.paper}): {parameters}"


def method_text(method: type[Method]) -> str:
    """All there is to say about one method."""
    lines = [f"{method.name}: {method.title}", f"paper: {method.paper}"]
    if method.aliases:
        lines.append(f"also called: {', '.join(method.aliases)}")
    agents = (
        str(method.min_agents)
        if method.min_agents == method.max_agents
        else f"{method.min_agents} to {method.max_agents}"
    )
    lines += [f"agents: {agents} beside the base", "", inspect.getdoc(method) or "", "", "parameters:"]
    lines += [_parameter_line(parameter) for parameter in method.parameters()]
    for name, values in method.presets.items():
        lines.append(f"  preset={name}: " + ", ".join(f"{key}={value}" for key, value in values.items()))
    return "\n".join(lines)


def _parameter_line(parameter: Parameter) -> str:
    low = "" if parameter.low is None else f", from {parameter.low:g}"
    high = "" if parameter.high is None else f" up to {parameter.high:g}"
    choices = f", one of {', '.join(parameter.choices)}" if parameter.choices else ""
    each = ", one value or one for each agent" if parameter.kind == "per agent" else ""
    return f"  {parameter.name}={parameter.default}: {parameter.help}{low}{high}{choices}{each}"
