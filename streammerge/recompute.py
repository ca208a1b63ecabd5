"""Computes a merge again, or a sample of it, and compares it with the bytes of an output."""

import json
import random
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from . import statistics
from .api import recipe_of
from .errors import RecipeError
from .events import Listener
from .execute import execute
from .formats.contract import Bytes, Reader, Source
from .journal import Record
from .kernels.load import load_cpu
from .ledger import Ledger
from .mergekit_yaml import PATHS, read_yaml
from .planning import Plan
from .provenance import run_facts
from .recipe import Recipe

_PIECE = 1 << 16


def recipe_again(manifest: Mapping[str, Any], models: Sequence[Path], **options: Any) -> Recipe:
    """The recipe that a manifest tells of, for ``models`` (the base first). ``options``: an importance matrix and a
    template where they were used, memory, threads. What is not finite was allowed, or is not there. Raises
    RecipeError."""
    names = [facts["name"] for facts in manifest["inputs"]]
    if len(models) != len(names):
        raise RecipeError(f"--against is needed {len(names)} times, {len(models)} given, for: {', '.join(names)}")
    places, own = dict(zip(names, models)), manifest["recipe"].get("streammerge", {})
    if not isinstance(own, dict) or not all(isinstance(own.get(option, ""), str) for option in PATHS):
        raise RecipeError("the manifest's recipe cannot be understood: streammerge")
    for option in PATHS:
        used, given = own.get(option), options.pop(option)
        if used is not None and given is None:
            raise RecipeError(f"{used} was used; give it, too: --{option.replace('_', '-')} FILE")
        places |= {used: Path(given)} if used is not None and given is not None else {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yml"
        path.write_text(json.dumps(manifest["recipe"]), encoding="utf-8")  # JSON is YAML
        fields = read_yaml(path, places)
    if [fields["base"], *fields["agents"]] != list(models) or any(
        fields.get(option) not in (None, places.get(own.get(option))) for option in PATHS
    ):
        raise RecipeError("the manifest's recipe is of other models than its inputs")
    given = {name: value for name, value in options.items() if value is not None}
    name = next(iter(manifest["files"]), None)  # says whether it is GGUF
    return replace(recipe_of(**fields, **given, output=name), output=None, allow_non_finite=True)


def recompute(
    output: Source, plan: Plan, share: float, listener: Listener, stop: threading.Event
) -> tuple[list[str], float]:
    """Compute a share of the chunks of a plan again, at least one of each tensor; every problem, and the share of the
    weights that were computed. Raises StreammergeError."""
    ledger = Sample(plan, share, statistics.load(plan, run_facts(plan)))
    sink = ComparingSink(output, output.reader("pread"))
    try:
        execute(plan, load_cpu(), sink, listener, stop, ledger)
    finally:
        sink.close()
    return list(sink.problems.values()), ledger.chosen


def output_sizes(plan: Plan) -> dict[str, int]:
    """Bytes of every tensor that a plan writes, by its name in the output."""
    sizes = {name: values.nbytes for name, values in (plan.gguf.constants.items() if plan.gguf else ())}
    for job in plan.jobs:
        name = job.target.name if job.target else job.name
        sizes[name] = sizes.get(name, 0) + job.written(job.elements)
    return sizes


@dataclass
class ComparingSink:
    """A sink that writes nothing: it compares with what an output holds. ``problems`` by tensor."""

    output: Source
    reader: Reader
    problems: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, start: int, data: Bytes) -> None:
        """See ``Sink``."""
        if name not in self.output.tensors:
            self.problems[name] = f"{self.output.path}: tensor {name!r} of the merge is not in it"
            return
        info, buffer = self.output.tensors[name], np.empty(_PIECE, np.uint8)
        for begin in range(0, len(data), _PIECE):
            wanted = data[begin : begin + _PIECE]
            found = self.reader.read(info, start + begin, start + begin + len(wanted), buffer)
            if name not in self.problems and not np.array_equal(found, wanted):
                place = start + begin + int(np.flatnonzero(found != wanted)[0])
                self.problems[name] = f"{info.file}: tensor {name!r} is not what the merge gives, from byte {place} on"

    def sync(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        """See ``Sink``."""
        self.reader.close()


class Sample(Ledger):
    """A ledger in which all is done but a share of the chunks, chosen at random with a seed: at least one of each."""

    def __init__(self, plan: Plan, share: float, known: Iterable[Record], seed: int = 0) -> None:
        super().__init__(plan, known)
        rng = random.Random(seed)
        self._chosen = [
            {start for start, _ in plan.chunks(job) if rng.random() < share} or {job.start} for job in plan.jobs
        ]
        pairs = ((job, start) for job, starts in zip(plan.jobs, self._chosen) for start in starts)
        elements = sum(min(plan.step(job), job.start + job.elements - start) for job, start in pairs)
        self.chosen = elements / sum(job.elements for job in plan.jobs)

    def is_done(self, job: int, start: int) -> bool:
        """See ``Ledger``."""
        return start not in self._chosen[job]
