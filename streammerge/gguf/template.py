"""A GGUF file of the base as a template: its metadata, tokenizer, names and order, for merged weights.

That makes files of every architecture that llama.cpp converts tensor by tensor, without knowing any of them. Names are
matched by the gguf package's map; what the converter did to the values is found by comparing them (``match.py``).
Whatever is not certain is an error.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streammerge.checkpoint import Checkpoint
from streammerge.errors import FormatError, MismatchError
from streammerge.formats.contract import TensorInfo
from streammerge.formats.dtypes import DTYPES
from streammerge.formats.gguf import GGML_TYPES, GgufSource, KeyValue
from streammerge.gguf.match import Change, Comparison, read_floats
from streammerge.gguf.names import Converted, Names, is_buffer, unquantized_type
from streammerge.gguf.policy import may_quantize

# Said anew for every file: how it is split, how it was quantized.
_PER_FILE = ("split.", "quantize.")
_PER_TYPE = ("general.file_type", "general.quantization_version", "general.alignment")
# Made of the configuration by the converter: no checkpoint has them.
_COMPUTED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"
_LONGEST_ROW = 1 << 20  # elements; several rows are compared at once
_LISTED = 3  # names that an error shows
_ELSEWHERE = (
    "it belongs to another model, or its converter splits or joins tensors, which is not known here: "
    "merge to safetensors and convert that"
)


@dataclass(frozen=True)
class Template:
    """What a GGUF file of the base says about the file of a model that was merged from it.

    ``key_values`` and ``tensors`` are in the template's order; ``tensors`` are the output's, all of them, with the
    types of an unquantized file. ``constants`` are the values of the tensors that no checkpoint has.
    """

    path: Path
    key_values: tuple[KeyValue, ...]
    tensors: tuple[Converted, ...]
    constants: Mapping[str, NDArray[np.float32]]


def read_template(path: Path, base: Checkpoint, dtype: str) -> Template:
    """Match a GGUF file of the base, of any type, with the base; ``dtype`` (F32, F16, BF16) is that of matrices.

    Reads some rows of every tensor of both. Raises FormatError, and MismatchError if the two do not fit each other.
    """
    template = GgufSource(path)
    architecture, layers = _model(template)
    sources = _assign(template, base, Names(architecture, layers))
    for info in template.tensors.values():
        _check_tensor(template, info, base, [base.tensors[name] for name in sources[info.name]])
    with closing(template.reader("pread")) as ours, closing(base.reader("pread")) as theirs:
        changes = _changes(template, base, sources, Comparison(path, ours, base.path, theirs))
        constants = {
            name: read_floats(path, ours, info) for name, info in template.tensors.items() if not sources[name]
        }
    tensors = [
        Converted(name, info.shape, _kind(info, dtype), sources[name], changes[name].heads, changes[name].shift)
        for name, info in template.tensors.items()
    ]
    kept = (pair for pair in template.key_values.values() if not pair.key.startswith(_PER_FILE))
    return Template(path, tuple(pair for pair in kept if pair.key not in _PER_TYPE), tuple(tensors), constants)


def _model(template: GgufSource) -> tuple[str, int]:
    """Architecture and number of layers."""
    said = {key: pair.value for key, pair in template.key_values.items() if not pair.kind.startswith("[")}
    architecture = said.get("general.architecture")
    layers = said.get(f"{architecture}.block_count")
    possible = isinstance(layers, int) and 0 < layers <= len(template.tensors)
    if said.get("general.type", "model") != "model" or not isinstance(architecture, str) or not possible:
        raise FormatError(
            f"{template.path}: is a GGUF file, but not of a model: architecture {architecture!r:.80} with "
            f"{layers!r:.80} layers; give one that llama.cpp's convert_hf_to_gguf.py made of the base, quantized or not"
        )
    assert isinstance(layers, int)
    return architecture, layers


def _kind(info: TensorInfo, dtype: str) -> str:
    """What the converter kept in F32 for a reason that is not known here stays so, unless llama-quantize would not."""
    delicate = info.dtype == "F32" and not may_quantize(info.name, info.shape)
    return "F32" if delicate else unquantized_type(info.name, info.shape, dtype)


# --- names -----------------------------------------------------------------------------------------------------------


def _assign(template: GgufSource, base: Checkpoint, names: Names) -> dict[str, tuple[str, ...]]:
    """For every tensor of the template the base's tensors that it is made of. Raises MismatchError."""
    grouped, spare = _grouped(template, base, names)
    if _HEAD in template.tensors and _HEAD not in grouped and _EMBEDDING in grouped:
        grouped[_HEAD] = grouped[_EMBEDDING]  # the base ties the two, the template has the embedding twice
    for name in [name for name in grouped if name not in template.tensors]:
        spare += [source for source in grouped.pop(name) if not (base.ties_embeddings and base.is_head(source))]
    if spare:
        raise MismatchError(
            f"{template.path}: {_listed(spare)} of {base.path} have no place in this file; {_ELSEWHERE}"
        )
    missing = [name for name in template.tensors if name not in grouped and name not in _COMPUTED]
    if missing:
        raise MismatchError(
            f"{template.path}: nothing in {base.path} is called like its {_listed(missing)}; {_ELSEWHERE}"
        )
    return {name: grouped.get(name, ()) for name in template.tensors}


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_LISTED]))
    what = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
    return f"{what} ({shown}{', ...' if len(names) > _LISTED else ''})"


def _grouped(template: GgufSource, base: Checkpoint, names: Names) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The base's tensors by their name in a GGUF file, experts in their order; and those that have none."""
    found: dict[str, list[tuple[int, str]]] = {}
    unknown = []
    for name in base.tensors:
        if is_buffer(name):
            continue
        plain, expert = _without_expert(name)
        target = names.get(plain.replace("e_score_correction_bias", "e_score_correction.bias"))
        if target is None:
            unknown.append(name)
            continue
        if target not in template.tensors and f"{target}.weight" in template.tensors:
            target += ".weight"  # the checkpoint leaves it out
        found.setdefault(target, []).append((expert, name))
    return {target: _in_order(base, target, sorted(entries)) for target, entries in found.items()}, unknown


def _without_expert(name: str) -> tuple[str, int]:
    """A tensor's name without the number of its expert, and that number; -1 if it belongs to none."""
    found = re.search(r"\.experts\.(\d+)\.", name)
    if found is None:
        return name, -1
    return f"{name[: found.start()]}.experts.{name[found.end() :]}", int(found[1])


def _in_order(base: Checkpoint, target: str, entries: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    experts, names = [expert for expert, _ in entries], tuple(name for _, name in entries)
    if experts not in ([-1], list(range(len(experts)))):
        raise MismatchError(
            f"{base.path}: {_listed(names)} are all called {target!r} in a GGUF file, which takes one tensor, or the "
            "experts from 0 on without a gap; is the checkpoint complete?"
        )
    return names


def _check_tensor(template: GgufSource, info: TensorInfo, base: Checkpoint, sources: Sequence[TensorInfo]) -> None:
    """The elements must be numbers, and lie in the same order. Raises FormatError, MismatchError."""
    kind = GGML_TYPES[info.dtype]
    if info.elements == 0 or (kind.block == 1 and not DTYPES[info.dtype].floating):
        raise FormatError(
            f"{template.path}: tensor {info.name!r} holds {info.elements} elements of type {info.dtype}, which are no "
            "weights; merge to safetensors and convert that"
        )
    if info.shape[-1] > _LONGEST_ROW and len(info.shape) + kind.block > 2:
        raise FormatError(
            f"{template.path}: tensor {info.name!r} has rows of {info.shape[-1]} elements, at most {_LONGEST_ROW} are "
            "compared; merge to safetensors and convert that"
        )
    for source in sources:
        wanted = _without_ones((*((len(sources),) if len(sources) > 1 else ()), *source.shape))
        if wanted != _without_ones(info.shape) or not DTYPES[source.dtype].floating:
            many = f"{len(sources)} times " if len(sources) > 1 else ""
            raise MismatchError(
                f"{template.path}: tensor {info.name!r} is {list(info.shape)}, but {source.name!r} in {base.path} is "
                f"{many}{source.dtype} {list(source.shape)}; give a template that was made of this very base"
            )


def _without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    """Axes of one element do not change where the others lie."""
    return tuple(size for size in shape if size != 1)


# --- values ----------------------------------------------------------------------------------------------------------


def _changes(
    template: GgufSource, base: Checkpoint, sources: Mapping[str, tuple[str, ...]], comparison: Comparison
) -> dict[str, Change]:
    """What the converter did to each tensor."""
    found: dict[str, Change] = {}
    for info in sorted(template.tensors.values(), key=lambda info: info.name.endswith(".bias")):
        made_of = [base.tensors[name] for name in sources[info.name]]
        weight = found.get(f"{info.name.removesuffix('.bias')}.weight")
        if not made_of:
            found[info.name] = Change()
        elif info.name.endswith(".bias") and weight is not None:  # it is added to the rows that the weight gives
            found[info.name] = comparison.find(info, made_of, [Change(weight.heads)])
        else:
            found[info.name] = comparison.find(info, made_of, [Change(), *_possible(template, info)])
    return found


def _possible(template: GgufSource, info: TensorInfo) -> Iterator[Change]:
    """What a converter may do to a tensor of this name, besides nothing."""
    if info.name.endswith("_norm.weight") and len(info.shape) == 1:
        yield Change(shift=1.0)
    part = re.fullmatch(r"blk\.(\d+)\.attn_([qk])\.(?:weight|bias)", info.name)
    if part is None:
        return
    heads = _head_count(template, "head_count_kv" if part[2] == "k" else "head_count", int(part[1]))
    if heads and info.shape[0] % (2 * heads) == 0 and info.shape[0] > 2 * heads:  # heads of two rows stay as they are
        yield Change(heads=heads)


def _head_count(template: GgufSource, key: str, layer: int) -> int:
    """One number for all layers, or one for each; key heads are as many as query heads if nothing is said."""
    architecture = template.key_values["general.architecture"].value
    pairs = (template.key_values.get(f"{architecture}.attention.{name}") for name in (key, "head_count"))
    value = next((pair.value for pair in pairs if pair is not None), 0)
    if isinstance(value, list):
        value = value[layer] if layer < len(value) else 0
    return value if isinstance(value, int) else 0
