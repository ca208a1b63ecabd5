"""The Python API: what the command line itself calls."""

import threading
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from . import budget
from .budget import parse_size
from .errors import Interrupted, RecipeError
from .events import Finishing, Listener, Notice, Planned
from .planning import Plan, make_plan
from .recipe import DEFAULT_METHOD, Recipe
from .report import Report

StrPath = str | PathLike[str]


def recipe_of(
    base: StrPath,
    agents: Sequence[StrPath],
    output: StrPath | None = None,
    *,
    method: str = DEFAULT_METHOD,
    parameters: Mapping[str, object] | None = None,
    max_ram: str | int | None = None,
    max_shard_size: str | int | None = "5GB",
    **options: Any,
) -> Recipe:
    """A recipe from plain values: paths and sizes may be strings. ``options`` are the other fields of ``Recipe``."""
    return Recipe(
        base=Path(base),
        agents=tuple(Path(agent) for agent in agents),
        output=None if output is None else Path(output),
        method=method,
        parameters=dict(parameters or {}),
        max_ram=parse_size(max_ram) if isinstance(max_ram, str) else max_ram,
        max_shard_size=parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size,
        **options,
    )


def plan(base: StrPath, agents: Sequence[StrPath], output: StrPath | None = None, **options: Any) -> Plan:
    """What a merge would do, from headers alone. Options as for ``merge``. Raises StreammergeError."""
    return plan_recipe(recipe_of(base, agents, output, **options))


def merge(
    base: StrPath,
    agents: Sequence[StrPath],
    output: StrPath,
    *,
    listener: Listener = lambda event: None,
    stop: threading.Event | None = None,
    **options: Any,
) -> Report:
    """Merge ``agents`` into ``base`` and write ``output``: a folder, or a file that ends in .safetensors.

    Options: ``method`` ("ram+"), ``parameters`` ({"r": 0.2}), ``max_ram`` ("8G" or bytes), ``threads``, ``io``
    ("auto", "mmap", "pread"), ``exclude`` and ``only`` (tuples of regular expressions on tensor names), ``dtype``
    ("bf16"), ``max_shard_size`` ("5GB"), ``allow_non_finite``, ``mixed_dtypes``, ``overwrite``.
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
