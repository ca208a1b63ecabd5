"""Writes a recipe that gives the same bytes again: mergekit's YAML, and under ``streammerge`` what it has no key for.

How a merge is carried out (memory, threads, where to) is left out: it changes no byte. ``mergekit_yaml`` reads it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from .errors import OutputError, RecipeError
from .formats.atomic import write_file
from .formats.dtypes import TORCH_NAMES
from .mergekit_yaml import PATHS, TEXTS
from .methods import find_method
from .recipe import GgufOptions, Recipe
from .recipe_parameters import RESCALE
from .varying import ByTensor, general_method, plain, settled

_TRUTHS = {word: truth for truth, word in RESCALE.items()}


def recipe_yaml(recipe: Recipe, name: Callable[[Path], str] = os.path.abspath) -> str:
    """A recipe as YAML, every parameter with its value; ``name`` is how a path is written."""
    return yaml.dump(recipe_dict(recipe, name), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize)


def recipe_dict(recipe: Recipe, name: Callable[[Path], str]) -> dict[str, Any]:
    """The same as plain data."""
    method = find_method(recipe.method)
    values = _values(recipe)
    own = {key: value for key, value in values.items() if isinstance(value, tuple)}
    models: list[dict[str, Any]] = [{"model": name(path)} for path in recipe.agents]
    for number, model in enumerate(models):
        if own:
            model["parameters"] = {key: plain(value[number]) for key, value in own.items()}
    shared = {key: plain(value) for key, value in values.items() if key not in own}
    options = _options(recipe, name)
    within = recipe.base in recipe.agents
    if not method.uses_base and not within:
        options = {"base": name(recipe.base), **options}
    return {
        "merge_method": method.name,
        **({"base_model": name(recipe.base)} if method.uses_base or within else {}),
        "models": models,
        **({"parameters": shared} if shared else {}),
        **({"dtype": "float32", "out_dtype": TORCH_NAMES[recipe.dtype]} if recipe.dtype else {}),
        **({"streammerge": options} if options else {}),
    }


class _Dumper(yaml.SafeDumper):
    """Gradients in one line; what stands twice is written twice."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """See PyYAML."""
        numbers = all(isinstance(item, int | float) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=numbers)

    def ignore_aliases(self, data: Any) -> bool:
        """See PyYAML."""
        return True


def _values(recipe: Recipe) -> dict[str, Any]:
    """Every parameter: defaults and presets are written out, so that the recipe keeps its meaning."""
    general = general_method(recipe.method, recipe.parameters, len(recipe.agents))
    values = settled(general, recipe.parameters)
    return {name: _as_truth(value) if name == "rescale" else value for name, value in values.items()}


def _as_truth(value: Any) -> Any:
    """dare_linear's rescale as mergekit has it, where it has it."""
    if isinstance(value, tuple):
        return tuple(map(_as_truth, value))
    if isinstance(value, ByTensor):
        return ByTensor(tuple(replace(rule, value=_as_truth(rule.value)) for rule in value.rules))
    return _TRUTHS.get(value, value)


def _options(recipe: Recipe, name: Callable[[Path], str]) -> dict[str, Any]:
    """What is not as usual, under the names that it has in Python."""
    gguf = recipe.gguf or GgufOptions()
    found: dict[str, Any] = {
        **{key: list(getattr(recipe, key)) for key in ("exclude", "only")},
        **{key: getattr(recipe, key) for key in ("head", "mixed_dtypes", "allow_non_finite")},
        "tensor_types": ["=".join(pair) for pair in gguf.tensor_types],
        "intermediate": None if gguf.intermediate == GgufOptions().intermediate else gguf.intermediate,
        **{key: getattr(gguf, key) for key in TEXTS if key not in ("head", "intermediate")},
        **{key: name(path) for key in PATHS if (path := getattr(gguf, key))},
        "pure": gguf.pure,
    }
    size = {} if recipe.max_shard_size is None else {"max_shard_size": recipe.max_shard_size}
    return {key: value for key, value in found.items() if value} | size


@contextmanager
def saving(recipe: Recipe, file: str | None) -> Iterator[None]:
    """Write ``recipe`` to ``file`` once the body is done. That it can be written is found out before.

    Raises RecipeError, OutputError.
    """
    if file is None:
        yield
        return
    target = Path(file)
    _check_target(target, overwrite=recipe.overwrite)
    yield
    write_file(target, recipe_yaml(recipe).encode())


def _check_target(target: Path, *, overwrite: bool) -> None:
    if target.suffix not in (".yml", ".yaml"):
        raise RecipeError(f"--save-recipe {target}: is read again by its name; end it in .yml or .yaml")
    if target.is_dir() or not os.access(target.parent, os.W_OK) or not target.parent.is_dir():
        raise OutputError(f"--save-recipe {target}: is not a file in a folder that can be written to")
    if target.exists() and not overwrite:
        raise OutputError(f"--save-recipe {target}: exists already; choose another, or give --overwrite")
