"""python -m streammerge.device.trial DEVICE: measures a merge on the processor and on a device.

The recipe comes pickled on standard input. Prints one line of JSON: the fields of ``choice.Trial``, or ``error``.
"""

import json
import pickle
import sys
import time
from dataclasses import asdict, replace

import numpy as np

from ..errors import StreammergeError
from ..execute import NoSink
from ..formats.dtypes import DTYPES
from ..kernels.contract import Kernels
from ..kernels.load import load_cpu
from ..planning import Plan, make_plan
from ..recipe import Recipe
from ..worker import Worker
from .choice import Trial
from .rehearsal import kinds, seconds

_READ = 64 << 20  # bytes


def measure(recipe: Recipe, device: str) -> Trial:
    """Try both. Raises StreammergeError."""
    kernels = load_cpu()
    plan = make_plan(replace(recipe, device="cpu", max_vram=None))
    began = time.perf_counter()
    placed = make_plan(replace(recipe, device=device))  # before anything is carried: memory that was taken counts
    from .worker import open_workers

    with open_workers(placed, kernels, (), NoSink()) as workers:
        start = time.perf_counter() - began
        accelerator = seconds(placed, workers)
    return Trial(placed.placement.device, _on_processor(plan, kernels), accelerator, reading(plan), start)


def _on_processor(plan: Plan, kernels: Kernels) -> float:
    return seconds(plan, [Worker(plan, kernels, (), NoSink()) for _ in range(plan.memory.workers)])


def reading(plan: Plan) -> float:
    """Seconds that reading takes, by the beginning of the largest tensor in every model."""
    job = max(kinds(plan), key=lambda one: one.elements)
    done, began = 0, time.perf_counter()
    for model in (plan.base, *plan.agents):
        reader, info = model.reader("pread"), model.tensors[job.name]
        try:
            count = min(_READ, job.elements * DTYPES[info.dtype].itemsize)
            done += len(reader.read(info, 0, count, np.empty(count, np.uint8)))
        finally:
            reader.close()
    return (time.perf_counter() - began) * plan.bytes_to_read / max(done, 1)


def main() -> None:
    """Read a recipe from standard input and answer."""
    recipe = pickle.load(sys.stdin.buffer)
    try:
        told = asdict(measure(recipe, sys.argv[1]))
    except StreammergeError as error:
        told = {"error": str(error)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
