"""Carries out an inspection: the engine's passes without a blend."""

import threading
import time
from collections.abc import Sequence
from math import isfinite
from typing import Literal

from ..api import StrPath, recipe_of
from ..errors import RecipeError
from ..events import Listener, Notice, Planned
from .observing import DEFAULT_EPSILON, Observing
from .result import Inspection, make_inspection


def inspect(
    base: StrPath,
    agents: Sequence[StrPath],
    *,
    epsilon: float = DEFAULT_EPSILON,
    max_ram: str | int | None = None,
    threads: int | None = None,
    io: Literal["auto", "mmap", "pread"] = "auto",
    exclude: Sequence[str] = (),
    only: Sequence[str] = (),
    listener: Listener = lambda event: None,
    stop: threading.Event | None = None,
) -> Inspection:
    """Compare ``agents`` with ``base`` in one reading, within ``max_ram`` (bytes or a text such as "8G").

    A weight counts as changed if |agent - base| exceeds ``epsilon``; ``exclude`` and ``only`` are regular expressions
    on tensor names. Raises StreammergeError.
    """
    from ..kernels.load import load_cpu

    if not (isfinite(epsilon) and epsilon >= 0):
        raise RecipeError(f"--epsilon must be a number from 0 up, found {epsilon}")
    recipe = recipe_of(base, agents, max_ram=max_ram, threads=threads, io=io, exclude=exclude, only=only)
    kernels = load_cpu(lambda text: listener(Notice(text)))
    from ..execute import measure_tensors  # only now: it imports the kernels, which are compiled in another process
    from ..planning import make_plan

    plan = make_plan(recipe, method=Observing(agents=len(recipe.agents), epsilon=epsilon))
    began = time.perf_counter()
    listener(Planned(plan))
    for notice in plan.notices:
        listener(Notice(notice))
    outcome = measure_tensors(plan, kernels, listener, stop)
    return make_inspection(plan, epsilon, outcome.state, outcome.bytes_read, time.perf_counter() - began)
