"""A merge into GGUF, planned: what is in the file, and where every tensor of the checkpoint goes.

The same file comes out as from two steps: a merge written as safetensors, llama.cpp's converter, and llama-quantize.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
from gguf import naming_convention, size_label
from numpy.typing import NDArray

from streammerge.budget import allowed
from streammerge.checkpoint import Checkpoint
from streammerge.errors import FormatError, MismatchError, RecipeError
from streammerge.formats.contract import OutputFile, OutputTensor, TensorInfo
from streammerge.formats.gguf import GGML_TYPES, GgufSource, KeyValue, key_value, layout, without_leading_ones
from streammerge.formats.inputs import is_name
from streammerge.gguf.imatrix import Imatrix, read_imatrix
from streammerge.gguf.llama import ROPE_FACTORS, Llama, read_llama, rope_factors
from streammerge.gguf.metadata import Origin, matrix_type, model_key_values, retold_key_values
from streammerge.gguf.names import Converted
from streammerge.gguf.policy import (
    ALIASES,
    FILE_TYPES,
    FileType,
    choose_types,
    find_file_type,
    may_quantize,
    model_facts,
    quantized_key_values,
)
from streammerge.gguf.template import read_template
from streammerge.jobs import Target, TensorJob
from streammerge.kernels.load import load_quants
from streammerge.matching import Matched
from streammerge.recipe import GgufOptions, Recipe
from streammerge.report import model_name

Floats = NDArray[np.float32]
_TAGS = ("merge", "streammerge")


@dataclass(frozen=True)
class GgufOutput:
    """A GGUF file (or split ones) before its first byte. ``constants``: tensors that come from no checkpoint."""

    file_type: FileType
    path: Path | None
    jobs: tuple[TensorJob, ...]
    files: tuple[OutputFile, ...]
    constants: Mapping[str, Floats]
    weights: Mapping[str, Floats]  # by tensor of the file: the importance of its columns, float32[matrices, columns]
    notices: tuple[str, ...]
    read: tuple[Path, ...]  # files beside the checkpoints that were read for it


@dataclass(frozen=True)
class _Unquantized:
    """What the converter would write: metadata, tensors in its order, values that it computes."""

    key_values: Sequence[KeyValue]
    tensors: Sequence[Converted]
    constants: Mapping[str, Floats]


def plan_gguf(
    recipe: Recipe,
    options: GgufOptions,
    matched: Matched,
    notify: Callable[[str], None],
) -> GgufOutput:
    """Decide everything about a GGUF output. ``matched`` says what safetensors would hold; ``notify`` is told if
    kernels have to be compiled to read a template. Raises FormatError, MismatchError, RecipeError.
    """
    base, jobs = matched.base, matched.jobs
    file_type = None if options.quantize is None else find_file_type(options.quantize)
    imatrix = None if options.imatrix is None else read_imatrix(options.imatrix, allowed(recipe.max_ram))
    stored = _stored(base, jobs)
    dtype = matrix_type(stored)
    unquantized = _unquantized(recipe, options, matched, stored, FILE_TYPES[dtype], notify)
    key_values = list(unquantized.key_values)
    types = {tensor.name: tensor.dtype for tensor in unquantized.tensors}
    if file_type is not None:
        types = _types(options, file_type, unquantized, imatrix)
        said = () if imatrix is None else imatrix.key_values()
        key_values = quantized_key_values(key_values, file_type, said)
    shapes = {tensor.name: tensor.shape for tensor in unquantized.tensors}
    if file_type is not None:
        shapes = {name: without_leading_ones(shape) for name, shape in shapes.items()}
    outputs = [OutputTensor(name, kind, shapes[name]) for name, kind in types.items()]
    made = file_type or FILE_TYPES[dtype]
    _check_name(recipe, made)
    path = _path(recipe, made, key_values)
    return GgufOutput(
        made,
        path,
        tuple(_with_targets(jobs, unquantized.tensors, types)),
        layout(outputs, key_values, recipe.max_shard_size or None, path.name if path else "model.gguf"),
        unquantized.constants,
        {} if imatrix is None else _weights(imatrix, outputs),
        tuple(_notices(base, jobs, unquantized.tensors, types, options, imatrix)),
        _read_beside(options),
    )


def _read_beside(options: GgufOptions) -> tuple[Path, ...]:
    """The importance matrix, and every file of a template."""
    template = () if options.gguf_template is None else GgufSource(options.gguf_template).files
    return template if options.imatrix is None else (*template, options.imatrix)


# --- the unquantized model -------------------------------------------------------------------------------------------


def _stored(base: Checkpoint, jobs: Sequence[TensorJob]) -> list[TensorInfo]:
    """The checkpoint's tensors with the types that the merged ones have."""
    stored = {job.name: replace(base.tensors[job.name], dtype=job.dtype, shape=job.shape) for job in jobs}
    return list(stored.values())


def _unquantized(
    recipe: Recipe,
    options: GgufOptions,
    matched: Matched,
    stored: Sequence[TensorInfo],
    file_type: FileType,
    notify: Callable[[str], None],
) -> _Unquantized:
    base = matched.base
    if options.gguf_template is not None:
        if matched.changed is not None:
            raise MismatchError(
                f"{options.gguf_template}: is a file of the base, but the output {matched.changed}; merge to "
                "safetensors and convert that"
            )
        return _from_template(recipe, options.gguf_template, base, file_type, notify)
    if not base.path.is_dir():
        raise FormatError(f"{base.path}: is a single file; a GGUF file needs the config.json and tokenizer beside it")
    if not base.config:
        raise FormatError(f"{base.path / 'config.json'}: is missing; it says what kind of model this is")
    model: Llama = read_llama(base.config)
    tensors = model.tensors(stored, file_type.default)
    key_values = model_key_values(
        base.path,
        base.config,
        model,
        tensors,
        file_type,
        name=_model_name(recipe),
        origins=_origins(recipe),
        tags=_TAGS,
        tokenizer=matched.tokenizer.path,
        pre_tokenizer=options.pre_tokenizer,
    )
    factors = rope_factors(model)
    return _Unquantized(key_values, tensors, {} if factors is None else {ROPE_FACTORS: factors})


def _from_template(
    recipe: Recipe, path: Path, base: Checkpoint, file_type: FileType, notify: Callable[[str], None]
) -> _Unquantized:
    load_quants({info.dtype for info in GgufSource(path).tensors.values()}, notify)
    found = read_template(path, base, file_type.default)
    told = retold_key_values(found.key_values, name=_model_name(recipe), origins=_origins(recipe), tags=_TAGS)
    if not any(pair.key == "general.size_label" for pair in told):  # older files do without
        weights = sum(prod(tensor.shape) for tensor in found.tensors)
        told.append(key_value("general.size_label", "str", size_label(weights, weights, 0, 0)))
    return _Unquantized(quantized_key_values(told, file_type), found.tensors, found.constants)


def _origins(recipe: Recipe) -> list[Origin]:
    return [_origin(path) for path in (recipe.base, *recipe.agents)]


def _origin(path: Path) -> Origin:
    name = model_name(path)
    organization, slash, own = name.rpartition("/")
    return Origin(own, name) if slash and organization else Origin(name)


def _model_name(recipe: Recipe) -> str | None:
    """What the model is called: as its file without the type, or as the folder that it lies in."""
    if recipe.output is None:
        return None
    if recipe.output.suffix.lower() != ".gguf":
        return recipe.output.absolute().name
    ending = _named_type(recipe.output)
    return recipe.output.stem if ending is None else recipe.output.stem[: -len(ending) - 1]


def _named_type(output: Path) -> str | None:
    """The type that a file's name ends with."""
    known = (*FILE_TYPES, *ALIASES)
    return next((name for name in known if output.stem.upper().endswith(f"-{name}")), None)


def _check_name(recipe: Recipe, file_type: FileType) -> None:
    """A file must not be called what it is not."""
    named = None if recipe.output is None else _named_type(recipe.output)
    if named is not None and ALIASES.get(named, named) != file_type.name:
        raise RecipeError(
            f"{recipe.output}: is named {named}, but would be {file_type.name}; "
            f"add --quantize {named}, or choose another name"
        )


def _path(recipe: Recipe, file_type: FileType, key_values: Sequence[KeyValue]) -> Path | None:
    """The file to write; in a folder it is named as llama.cpp's convention says."""
    if recipe.output is None or recipe.output.suffix.lower() == ".gguf":
        return recipe.output
    said = {pair.key: pair.value for pair in key_values if pair.key.startswith("general.")}
    name = naming_convention(
        str(said.get("general.name", "model")), None, None, None, str(said["general.size_label"]), file_type.name
    )
    if not is_name(name, 200) or re.search(r"[/\\:]", name):  # what a template or a card says is part of it
        raise FormatError(
            f"{recipe.output}: the file in it would be called {name!r:.200}; name one yourself: -o OUT.gguf"
        )
    return recipe.output / f"{name}.gguf"


# --- types and places ------------------------------------------------------------------------------------------------


def _types(
    options: GgufOptions, file_type: FileType, unquantized: _Unquantized, imatrix: Imatrix | None
) -> dict[str, str]:
    outputs = [tensor.output for tensor in unquantized.tensors]
    if imatrix is not None:
        imatrix.check(outputs)
    return choose_types(
        outputs,
        file_type,
        model_facts(unquantized.key_values),
        imatrix=None if imatrix is None else imatrix.weights.keys(),
        pure=options.pure,
        tensor_types=options.tensor_types,
        output_tensor_type=options.output_tensor_type,
        token_embedding_type=options.token_embedding_type,
    )


def _weights(imatrix: Imatrix, outputs: Sequence[OutputTensor]) -> dict[str, Floats]:
    found = {tensor.name: imatrix.of(tensor) for tensor in outputs if GGML_TYPES[tensor.dtype].block > 1}
    return {name: weights for name, weights in found.items() if weights is not None}


def _with_targets(
    jobs: Sequence[TensorJob], tensors: Sequence[Converted], types: Mapping[str, str]
) -> Iterator[TensorJob]:
    """Every job with its place in the file, in the order of the checkpoint; one that has two places comes twice."""
    targets: dict[str, list[tuple[Target, tuple[int, ...]]]] = {}
    for tensor in tensors:
        ggml = GGML_TYPES[types[tensor.name]]
        for index, source in enumerate(tensor.sources):
            first = index * (prod(tensor.shape) // len(tensor.sources))
            places = targets.setdefault(source, [])
            moves = (tensor.dtype, tensor.heads, tensor.shift, first)
            target = Target(tensor.name, ggml.name, ggml.block, ggml.block_bytes, *moves)
            places.append((target, tensor.shape[1:] if len(tensor.sources) > 1 else tensor.shape))
    for job in jobs:
        for number, (target, shape) in enumerate(targets.get(job.name, ())):
            if job.elements and not _is_float(job):
                raise MismatchError(
                    f"tensor {job.name!r} is {job.dtype}, which a GGUF file of this architecture has no place for; "
                    "write safetensors instead"
                )
            yield replace(job, shape=shape, counted=job.counted and number == 0, target=target)


def _is_float(job: TensorJob) -> bool:
    return job.dtype.startswith(("F", "BF"))


def _notices(
    base: Checkpoint,
    jobs: Sequence[TensorJob],
    tensors: Sequence[Converted],
    types: Mapping[str, str],
    options: GgufOptions,
    imatrix: Imatrix | None,
) -> Iterator[str]:
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    used = {source for tensor in tensors for source in tensor.sources}
    dropped = [job.name for job in jobs if job.name not in used]
    if dropped:
        yield f"{base.path}: left out, GGUF computes or ties them: {', '.join(dropped)}"
    for pattern, kind in options.tensor_types:
        matching = [name for name in types if re.search(pattern.lower(), name)]
        if not any(may_quantize(name, shapes[name]) for name in matching):
            what = "only tensors that are never quantized" if matching else "no tensor of the file"
            yield f"--tensor-type {pattern}={kind} matches {what}"
    if imatrix is not None:
        made = f" (of {imatrix.dataset})" if imatrix.dataset else ""
        yield (
            f"{imatrix.path}: its importance matrix of {len(imatrix.weights)} tensors{made} is used for the merge; "
            "one made for the base will do"
        )
        without = [name for name, kind in types.items() if GGML_TYPES[kind].block > 1 and name not in imatrix.weights]
        if without:
            named = ", ".join(without[:3]) + (" ..." if len(without) > 3 else "")
            yield f"{imatrix.path}: has no entry for {len(without)} quantized tensors, which go without: {named}"
