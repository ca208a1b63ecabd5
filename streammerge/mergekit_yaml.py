"""Reads a recipe: mergekit's YAML for whole models, and under ``streammerge`` what mergekit has no key for.

Whatever is not understood is an error that names file and line, never ignored. docs/recipes.md is for users.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .budget import parse_size
from .errors import FormatError, RecipeError
from .formats.dtypes import floating_dtype
from .formats.inputs import parse_json
from .marked_yaml import Marked, load, unknown
from .methods import METHODS, find_method
from .methods.base import Method
from .recipe_parameters import Rules, put_together, read_parameters

# What a recipe may hold under `streammerge`: options by their names in Python.
TEXTS = ("head", "quantize", "intermediate", "output_tensor_type", "token_embedding_type", "pre_tokenizer")
PATHS = ("imatrix", "gguf_template")
FLAGS = ("pure", "mixed_dtypes", "allow_non_finite")
LISTS = ("exclude", "only", "tensor_types")

_KEYS = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype",
         "tokenizer_source", "tokenizer", "streammerge")  # fmt: skip
_NOT_YET = "is not supported yet"


@dataclass(frozen=True, slots=True)
class _Model:
    """One of the models that are merged; ``mark`` is where it stands."""

    path: Path
    rules: Rules
    mark: Marked


def read_yaml(path: Path, places: Mapping[str, Path] = MappingProxyType({})) -> dict[str, Any]:
    """The arguments of ``recipe_of`` from a recipe file, and ``notices``. What the recipe calls by a name in ``places``
    is there. Raises RecipeError, FormatError."""
    return _Reader(path, places).fields()


class _Reader:
    def __init__(self, path: Path, places: Mapping[str, Path]) -> None:
        self.folder, self.places = path.parent, places
        self.top = load(path)
        self.keys = self.top.mapping("a recipe", _KEYS, {"modules": _NOT_YET, "chat_template": _NOT_YET})
        self.method = self._method()
        self.notices: list[str] = []

    def fields(self) -> dict[str, Any]:
        """Everything that the file says."""
        options = self._options()
        shared = self._rules(self.keys.get("parameters"))
        if "slices" in self.keys:
            if "models" in self.keys:
                self.keys["slices"].fail("slices: there are models, too; leave out one of them")
            models, of_slice = self._slice(self.keys["slices"])
            shared |= {name: rules + shared.get(name, ()) for name, rules in of_slice.items()}
        else:
            models = [self._model(item) for item in self._required("models").items("models")]
        base, agents = self._roles(models, options.pop("base", None))
        self._check_tokenizer()
        return {
            "base": base,
            "agents": tuple(model.path for model in agents),
            "method": self.method.name,
            "parameters": put_together(self.method, shared, [(model.mark, model.rules) for model in agents]),
            **options,
            **self._dtype(),
            "notices": tuple(self.notices),
        }

    def _method(self) -> type[Method]:
        mark = self._required("merge_method")
        name = mark.text("merge_method")
        try:
            return find_method(name)
        except RecipeError:
            mark.fail(unknown("merge_method", name, list(METHODS)))

    def _required(self, key: str) -> Marked:
        if key not in self.keys:
            self.top.fail(f"{key} is missing")
        return self.keys[key]

    def _rules(self, mark: Marked | None, *, of_model: bool = False) -> Rules:
        rules, notices = read_parameters(mark, self.method, of_model=of_model)
        self.notices += notices
        return rules

    # --- models ---

    def _model(self, mark: Marked, *keys: str) -> _Model:
        entries = mark.mapping("model", ("model", "parameters", *keys))
        if "model" not in entries:
            mark.fail("model is missing")
        path = self._path(entries["model"])
        if "layer_range" in keys:
            _check_all_layers(entries.get("layer_range", mark), path)
        return _Model(path, self._rules(entries.get("parameters"), of_model=True), mark)

    def _slice(self, mark: Marked) -> tuple[list[_Model], Rules]:
        """The models of a slice that is all layers, and the parameters of the slice."""
        slices = mark.items("slices")
        if len(slices) != 1:
            mark.fail("slices: only one that has all layers is supported yet")
        entries = slices[0].mapping("slice", ("sources", "parameters"), {"base_model": _NOT_YET})
        if "sources" not in entries:
            slices[0].fail("sources is missing")
        models = [self._model(item, "layer_range") for item in entries["sources"].items("sources")]
        return models, self._rules(entries.get("parameters"))

    def _roles(self, models: list[_Model], donor: Path | None) -> tuple[Path, list[_Model]]:
        """The base, and the models that are merged into it, or with each other."""
        seen: dict[Path, str] = {}
        for model in models:
            if model.path.resolve() in seen:
                model.mark.fail(f"{model.path} stands twice, at {seen[model.path.resolve()]} already")
            seen[model.path.resolve()] = model.mark.where
        mark = self.keys.get("base_model")
        named = None if mark is None else self._path(mark)
        if self.method.uses_base:
            return self._around_base(models, named)
        if mark is not None and named is not None and named.resolve() not in seen and "models" in self.keys:
            models = [*models, _Model(named, {}, mark)]  # mergekit takes it as one more input
        if not models:
            self._required("models").fail("models: the list is empty")
        return donor or named or models[0].path, models

    def _around_base(self, models: list[_Model], base: Path | None) -> tuple[Path, list[_Model]]:
        if base is None:
            self.top.fail(f"base_model is missing; {self.method.name} needs it")
        agents = []
        for model in models:
            if model.path.resolve() != base.resolve():
                agents.append(model)
            elif model.rules:
                self.notices.append(f"{model.mark.where}: the parameters of the base model have no effect")
        if not agents:
            self.top.fail("models: there is none beside the base")
        return base, agents

    def _path(self, mark: Marked) -> Path:
        """A checkpoint or file: from where the program runs, as in mergekit, else beside the recipe."""
        if mark.is_mapping:
            mark = _only(mark, "model", {"lora": _NOT_YET, "override_architecture": _NOT_YET})
            mark = _only(mark, "path", {"revision": _NOT_YET})
        text = mark.text("path")
        if text in self.places:
            return self.places[text]
        for place in (Path(text), self.folder / text):
            if os.path.exists(place):  # noqa: PTH110 (never raises, whatever the text)
                return place
        if "+" in text:
            mark.fail(f"{text}: merging a LoRA adapter {_NOT_YET}")
        mark.fail(f"{text}: no such folder or file, here or beside the recipe; models are not downloaded")

    # --- the rest ---

    def _dtype(self) -> dict[str, str]:
        """mergekit's dtype is what it computes in, and what it writes unless out_dtype says otherwise."""
        found = {}
        for key in ("dtype", "out_dtype"):
            if key in self.keys:
                try:
                    found[key] = floating_dtype(self.keys[key].text(key))
                except FormatError as error:
                    self.keys[key].fail(f"{key}: {error}")
        if found.get("dtype", "F32") != "F32":
            mark = self.keys["dtype"]
            self.notices.append(f"{mark.where}: dtype {mark.scalar()}: computed in float32 all the same, rounded once")
        written = found.get("out_dtype", found.get("dtype"))
        return {"dtype": written} if written else {}

    def _check_tokenizer(self) -> None:
        """The tokenizer is the base's: what asks for this is taken."""
        for key in ("tokenizer_source", "tokenizer"):
            if key not in self.keys:
                continue
            mark = self.keys[key]
            if mark.is_mapping:
                mark = _only(mark, "source", {"tokens": _NOT_YET, "pad_to_multiple_of": _NOT_YET})
            if mark.text(key) != "base":
                mark.fail(f"{key}: {mark.scalar()} {_NOT_YET}; supported is base")

    def _options(self) -> dict[str, Any]:
        """What stands under ``streammerge``."""
        if "streammerge" not in self.keys:
            return {}
        known = ("base", *LISTS, *FLAGS, *TEXTS, *PATHS, "max_shard_size")
        entries = self.keys["streammerge"].mapping("streammerge", known)
        if "base" in entries and self.method.uses_base:
            entries["base"].fail(f"base: {self.method.name} has its base in base_model")
        return {name: self._option(name, mark) for name, mark in entries.items()}

    def _option(self, name: str, mark: Marked) -> Any:
        if name in LISTS:
            return tuple(item.text(name) for item in mark.items(name))
        if name in TEXTS:
            return mark.text(name)
        if name in ("base", *PATHS):
            return self._path(mark)
        value = mark.scalar(name)
        if name in FLAGS:
            if not isinstance(value, bool):
                mark.fail(f"{name}: wanted true or false, found {value!r}")
            return value
        try:
            return parse_size(str(value))
        except RecipeError as error:
            mark.fail(f"{name}: {error}")


def _only(mark: Marked, key: str, refused: dict[str, str]) -> Marked:
    """The one entry that a mapping has to have."""
    entries = mark.mapping("mapping", (key,), refused)
    if key not in entries:
        mark.fail(f"{key} is missing")
    return entries[key]


def _check_all_layers(mark: Marked, path: Path) -> None:
    """A source's layer_range must be all layers of its model."""
    ends = [item.scalar("layer_range") for item in mark.items("layer_range")]
    layers = _layers(path)
    if ends != [0, layers]:
        mark.fail(f"layer_range: {ends} {_NOT_YET}; supported is [0, {layers}], all layers of {path}")


def _layers(path: Path) -> int:
    config = path / "config.json"
    found = parse_json(config, config.read_bytes()) if config.is_file() else {}
    inner = found.get("text_config")
    layers = found.get("num_hidden_layers", inner.get("num_hidden_layers") if isinstance(inner, dict) else None)
    if not isinstance(layers, int):
        raise RecipeError(f"{config}: does not say num_hidden_layers, which layer_range is compared with")
    return layers
