"""The Python API: what the command line itself calls."""

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from . import budget
from .budget import parse_size
from .errors import RecipeError
from .events import Listener, Notice, Planned
from .planning import Plan, make_plan, processors
from .recipe import GgufOptions, Head, Recipe, parse_tensor_type
from .report import Report

if TYPE_CHECKING:
    from .kernels.contract import Kernels
    from .verification import Verification

StrPath = str | PathLike[str]


class Options(TypedDict, total=False):
    """What ``merge`` and ``plan`` take by name; the defaults are those of ``Recipe``.

    ``parameters`` are the method's, such as ``{"r": 0.2}``; sizes are bytes or texts such as "8G"; ``exclude`` and
    ``only`` are regular expressions on tensor names; ``max_ram`` None is half of what is free. From ``quantize`` on
    they are for GGUF; ``tensor_types`` are texts "REGEX=TYPE".
    """

    method: str
    parameters: Mapping[str, object]
    max_ram: str | int | None
    threads: int | None
    io: Literal["auto", "mmap", "pread"]
    device: str
    max_vram: str | int | None
    exclude: Sequence[str]
    only: Sequence[str]
    dtype: str | None
    max_shard_size: str | int | None
    allow_non_finite: bool
    mixed_dtypes: bool
    head: Head | None
    overwrite: bool
    resume: bool
    report: StrPath | None
    quantize: str | None
    intermediate: Literal["auto", "bf16", "f16", "f32", "none"]
    imatrix: StrPath | None
    pure: bool
    tensor_types: Sequence[str]
    output_tensor_type: str | None
    token_embedding_type: str | None
    gguf_template: StrPath | None
    pre_tokenizer: str | None


def recipe_of(
    base: StrPath, agents: Sequence[StrPath], output: StrPath | None = None, **options: Unpack[Options]
) -> Recipe:
    """A recipe from plain values: paths and sizes may be texts. Raises RecipeError."""
    fields: dict[str, Any] = dict(options)
    if output is not None and Path(output).name in ("", "..") and str(output):
        raise RecipeError(f"-o {output}: is a place, not a name; give the folder or file that is to be made there")
    if output is not None and not str(output):
        raise RecipeError("the output's name is empty; -o takes a folder, or a file that ends in .safetensors or .gguf")
    if fields.get("report") is not None:
        fields["report"] = Path(fields["report"])
    for size in ("max_ram", "max_vram", "max_shard_size"):
        if isinstance(fields.get(size), str):
            fields[size] = parse_size(fields[size])
    for patterns in ("exclude", "only"):
        if patterns in fields:
            fields[patterns] = tuple(fields[patterns])
    return Recipe(
        base=Path(base),
        agents=tuple(Path(agent) for agent in agents),
        output=None if output is None else Path(output),
        gguf=_gguf_options(output, fields),
        **fields,
    )


def _gguf_options(output: StrPath | None, fields: dict[str, Any]) -> GgufOptions | None:
    """Take the options for GGUF out of ``fields``; None if the output is safetensors."""
    names = [field.name for field in dataclasses.fields(GgufOptions)]
    given = {name: fields.pop(name) for name in names if name in fields}
    given["tensor_types"] = tuple(parse_tensor_type(text) for text in given.get("tensor_types", ()))
    for path in ("imatrix", "gguf_template"):
        if given.get(path) is not None:
            given[path] = Path(given[path])
    options = GgufOptions(**given)
    if options.quantize or options.gguf_template or (output is not None and Path(output).suffix.lower() == ".gguf"):
        return options
    for name in ("intermediate", "pre_tokenizer"):
        if getattr(options, name) != getattr(GgufOptions(), name):
            raise RecipeError(f"--{name.replace('_', '-')} is for GGUF; add --quantize TYPE, or name the output .gguf")
    return None


def plan(base: StrPath, agents: Sequence[StrPath], output: StrPath | None = None, **options: Unpack[Options]) -> Plan:
    """What a merge would do, from headers alone. Options as for ``merge``. Raises StreammergeError."""
    return plan_recipe(recipe_of(base, agents, output, **options))


def merge(
    base: StrPath,
    agents: Sequence[StrPath],
    output: StrPath,
    *,
    listener: Listener = lambda event: None,
    stop: threading.Event | None = None,
    **options: Unpack[Options],
) -> Report:
    """Merge ``agents`` into ``base`` and write ``output``: a folder, or a file that ends in .safetensors or .gguf.

    ``listener`` is called with the records of ``streammerge.events``; setting ``stop`` interrupts.
    Raises StreammergeError; then nothing stands under the name ``output``, and a note of the error (``__notes__``) says
    whether the same call with ``resume=True`` would go on with what is done.
    """
    return merge_recipe(recipe_of(base, agents, output, **options), listener, stop)


def verify(
    output: StrPath,
    against: Sequence[StrPath] = (),
    *,
    share: float = 0.05,
    imatrix: StrPath | None = None,
    gguf_template: StrPath | None = None,
    max_ram: str | int | None = None,
    threads: int | None = None,
    listener: Listener = lambda event: None,
    stop: threading.Event | None = None,
) -> "Verification":
    """Check a merged model against its manifest. ``against`` are the base and the agents: a ``share`` of the merge is
    computed from them again, with the importance matrix and template that were used. Raises StreammergeError if there
    is no manifest, or if a file cannot be read; what is wrong with the output is in ``problems``."""
    _load_kernels(listener)
    from .verification import plan_again, verify_against, verify_output

    stop = stop or threading.Event()
    beside = {"imatrix": imatrix, "gguf_template": gguf_template, "max_ram": max_ram, "threads": threads}
    planned = plan_again(Path(output), [Path(model) for model in against], beside) if against else None
    found = verify_output(Path(output), threads or processors(), listener, stop)
    if planned is None or found.problems:
        return found
    return verify_against(found, planned, share, listener, stop)


def plan_recipe(recipe: Recipe, listener: Listener = lambda event: None, stop: threading.Event | None = None) -> Plan:
    """Plan a recipe. The kernels are loaded first, so that the memory they take is in ``reserved``."""
    _load_kernels(listener)

    def notify(text: str) -> None:
        listener(Notice(text))

    planned = make_plan(recipe, notify)
    if recipe.device != "auto":
        return planned
    from .device.choice import choose

    placement = choose(planned, notify, stop or threading.Event())
    if placement.is_processor:
        return replace(planned, placement=placement)
    chosen = make_plan(replace(recipe, device=placement.device), notify)
    return replace(chosen, placement=replace(chosen.placement, why=placement.why))


def _load_kernels(listener: Listener) -> "Kernels":
    """Before whatever imports them: where they have to be compiled, another process does it."""
    from .kernels.load import load_cpu

    return load_cpu(lambda text: listener(Notice(text)))


def merge_recipe(
    recipe: Recipe, listener: Listener = lambda event: None, stop: threading.Event | None = None
) -> Report:
    """Plan a recipe and carry it out."""
    if recipe.output is None:
        raise RecipeError("no output given; add -o OUT, a folder or a file that ends in .safetensors or .gguf")
    kernels = _load_kernels(listener)
    # Everything that will be needed is loaded before the plan measures what is reserved.
    import yaml  # noqa: F401

    from .run import carry_out

    if recipe.report is not None:
        from .inspection import page
        from .inspection.result import inspection_of

        page.check(recipe.report)
    planned = plan_recipe(recipe, listener, stop)
    began = time.perf_counter()  # kernels that had to be compiled first are no part of the merge
    listener(Planned(planned))
    for notice in planned.notices:
        listener(Notice(notice))
    outcome, shares = carry_out(planned, kernels, listener, stop or threading.Event())
    if recipe.report is not None:
        page.write(inspection_of(planned, outcome, time.perf_counter() - began), recipe.report)
    seconds = time.perf_counter() - began
    return Report(planned, outcome, seconds, budget.peak(), shares, _device_peak(planned))


def _device_peak(planned: Plan) -> int | None:
    """What was taken of a CUDA device at most."""
    if planned.placement.is_processor:
        return None
    from .device.torch_device import open_device, peak

    return peak(open_device(planned.placement.device))
