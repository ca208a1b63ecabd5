"""What a run is made of: recipe, versions, inputs. Two runs that agree in this give the same bytes."""

import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import __version__, checksum
from .aligned import stored_tensors
from .checkpoint import Checkpoint
from .errors import FormatError, why
from .planning import Plan
from .recipe import Recipe
from .report import model_name
from .saved_recipe import recipe_dict

Facts = dict[str, Any]

_HEAD = 64 << 20  # of files beside the models: an importance matrix as a whole, a template's metadata


def run_facts(plan: Plan) -> Facts:
    """Everything that decides the bytes of a plan's output, as plain data. Reads the headers once more, and a few
    kilobytes of every input file. Raises FormatError."""
    names = labels(plan.recipe)
    return {
        "versions": _versions(plan),
        "recipe": _recipe(plan.recipe),
        "inputs": [_model(model, names[model.path]) for model in (plan.base, *plan.agents)],
        "beside": [_file(file, _HEAD) for file in (plan.gguf.read if plan.gguf else ())],
        "parts": [[job.name, list(job.span), list(job.donors)] for job in plan.jobs if job.span],
        "layout": checksum.digest(b"".join(os.fsencode(file.name) + file.header for file in plan.files)).hex(),
        "jobs": _jobs(plan),
    }


def _jobs(plan: Plan) -> str:
    """A digest of what is done to every tensor: settings beside the weights decide about it, too."""
    return checksum.digest(b"".join(checksum.digest(os.fsencode(repr(job))) for job in plan.jobs)).hex()


def first_difference(found: Any, wanted: Any, where: str = "") -> str | None:
    """Where two facts differ, in words; None if they do not."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        pairs = [(f"{where} {key}".strip(), found.get(key), wanted.get(key)) for key in {**wanted, **found}]
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = [
            (f"{where} {_label(item, number)}", item, was) for number, (item, was) in enumerate(zip(found, wanted))
        ]
    else:
        if found != wanted and where.endswith(" modified"):
            return f"{where:.200} since"
        return None if found == wanted else f"{where or 'the run':.200} is {found!s:.200}, was {wanted!s:.200}"
    return next((text for place, one, other in pairs if (text := first_difference(one, other, place))), None)


def _label(item: Any, number: int) -> str:
    return str(item["name"]) if isinstance(item, dict) and "name" in item else str(number + 1)


def check_unchanged(inputs: list[Facts], plan: Plan) -> None:
    """The inputs must be as ``run_facts`` found them. Raises FormatError naming the file that changed."""
    for facts, model in zip(inputs, (plan.base, *plan.agents), strict=True):
        for wanted, file in zip(facts["files"], model.files, strict=True):
            try:
                status = file.stat()
            except OSError as error:
                raise FormatError(f"{file}: vanished while it was read: {why(error)}") from error
            if (status.st_size, status.st_mtime_ns) != (wanted["size"], wanted["modified"]):
                raise FormatError(f"{file}: changed while it was read; merge again once nobody writes to it")


def _versions(plan: Plan) -> Facts:
    import numba
    import numpy

    found = {"streammerge": __version__, "numpy": numpy.__version__, "numba": numba.__version__}
    return found | ({"gguf": version("gguf")} if plan.gguf else {})


def labels(recipe: Recipe) -> dict[Path, str]:
    """What the files of a recipe are called in a manifest: by name, without where they lie; no name twice."""
    beside = (recipe.gguf.imatrix, recipe.gguf.gguf_template) if recipe.gguf else ()
    found: dict[Path, str] = {}
    for path in (recipe.base, *recipe.agents, *(path for path in beside if path)):
        name, number = model_name(path), 2
        while name in found.values() and path not in found:
            name, number = f"{model_name(path)} ({number})", number + 1
        found.setdefault(path, name)
    return found


def _recipe(recipe: Recipe) -> Facts:
    """The recipe as it may be run again, less what changes no byte."""
    facts = recipe_dict(recipe, labels(recipe).__getitem__)
    facts.get("streammerge", {}).pop("allow_non_finite", None)
    return {key: value for key, value in facts.items() if value != {}}


def _model(model: Checkpoint, name: str) -> Facts:
    heads: Mapping[Path, int] = {file: min(offsets) for file, offsets in _offsets(model)}
    return {"name": name, "files": [_file(file, heads.get(file, 0)) for file in model.files]}


def _offsets(model: Checkpoint) -> Iterator[tuple[Path, list[int]]]:
    by_file: dict[Path, list[int]] = {}
    for info in stored_tensors(model.source).values():
        by_file.setdefault(info.file, []).append(info.offset)
    yield from by_file.items()


def _file(file: Path, head: int) -> Facts:
    try:
        status = file.stat()
    except OSError as error:
        raise FormatError(f"{file}: cannot be read: {why(error)}") from error
    facts = {"name": file.name, "size": status.st_size, "modified": status.st_mtime_ns}
    return {**facts, "checksum": checksum.sample_of_file(file, head)}
