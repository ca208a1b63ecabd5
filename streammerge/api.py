"""The Python API: what the command line itself calls."""

import threading
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from . import budget
from .budget import parse_size
from .errors import Interrupted, RecipeError
from .events import Finishing, Listener, Notice, Planned
from .planning import Plan, make_plan
from .recipe import Recipe
from .report import Report

StrPath = str | PathLike[str]


class Options(TypedDict, total=False):
    """What ``merge`` and ``plan`` take by name; the defaults are those of ``Recipe``.

    ``parameters`` are the method's, such as ``{"r": 0.2}``; sizes are bytes or texts such as "8G"; ``exclude`` and
    ``only`` are regular expressions on tensor names; ``max_ram`` None is half of what is free.
    """

    method: str
    parameters: Mapping[str, object]
    max_ram: str | int | None
    threads: int | None
    io: Literal["auto", "mmap", "pread"]
    exclude: Sequence[str]
    only: Sequence[str]
    dtype: str | None
    max_shard_size: str | int | None
    allow_non_finite: bool
    mixed_dtypes: bool
    overwrite: bool


def recipe_of(
    base: StrPath, agents: Sequence[StrPath], output: StrPath | None = None, **options: Unpack[Options]
) -> Recipe:
    """A recipe from plain values: paths and sizes may be texts. Raises RecipeError."""
    fields: dict[str, Any] = dict(options)
    for size in ("max_ram", "max_shard_size"):
        if isinstance(fields.get(size), str):
            fields[size] = parse_size(fields[size])
    for patterns in ("exclude", "only"):
        if patterns in fields:
            fields[patterns] = tuple(fields[patterns])
    return Recipe(
        base=Path(base),
        agents=tuple(Path(agent) for agent in agents),
        output=None if output is None else Path(output),
        **fields,
    )


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
    """Merge ``agents`` into ``base`` and write ``output``: a folder, or a file that ends in .safetensors.

    ``listener`` is called with the records of ``streammerge.events``; setting ``stop`` interrupts.
    Raises StreammergeError; then nothing stands under the name ``output``.
    """
    return merge_recipe(recipe_of(base, agents, output, **options), listener, stop)


def plan_recipe(recipe: Recipe, listener: Listener = lambda event: None) -> Plan:
    """Plan a recipe. The kernels are loaded first, so that the memory they take is in ``reserved``."""
    from .kernels.load import load_cpu

    load_cpu(lambda text: listener(Notice(text)))
    return make_plan(recipe)


def merge_recipe(
    recipe: Recipe, listener: Listener = lambda event: None, stop: threading.Event | None = None
) -> Report:
    """Plan a recipe and carry it out."""
    # Everything that will be needed is loaded before the plan measures what is reserved.
    import yaml  # noqa: F401

    from .execute import execute
    from .folder import complete_folder
    from .formats.atomic import Staging
    from .formats.safetensors import SafetensorsSink
    from .kernels.load import load_cpu
    from .report import agent_shares

    if recipe.output is None:
        raise RecipeError("no output given; add -o OUT, a folder or a file that ends in .safetensors")
    stop = stop or threading.Event()
    kernels = load_cpu(lambda text: listener(Notice(text)))
    began = time.perf_counter()
    planned = make_plan(recipe)
    listener(Planned(planned))
    for notice in planned.notices:
        listener(Notice(notice))
    single_file = recipe.output.name if recipe.output.suffix == ".safetensors" else None
    with Staging(recipe.output) as staging:
        sink = SafetensorsSink(staging.folder, planned.files)
        try:
            outcome = execute(planned, kernels, sink, listener, stop)
            listener(Finishing())
            sink.finish()
        finally:
            sink.close()
        shares = agent_shares(planned, outcome)
        if single_file is None:
            complete_folder(planned, staging.folder, shares)
        if stop.is_set():
            raise Interrupted("interrupted; nothing was written under the final name")
        staging.finish(single_file, overwrite=recipe.overwrite)
    return Report(planned, outcome, time.perf_counter() - began, budget.peak(), shares)
