"""All key-values of an unquantized GGUF file, in the order of llama.cpp's converter: general, model, tokenizer.

``general.*`` is read from the model card, config.json and the folder's name by the gguf package.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, Metadata, size_label

from streammerge.errors import FormatError, OutputError, RecipeError
from streammerge.formats.contract import TensorInfo
from streammerge.formats.gguf import KINDS, KeyValue, key_value
from streammerge.formats.inputs import kind_of, read_json, read_text
from streammerge.gguf.llama import ARCHITECTURE, Llama
from streammerge.gguf.names import Converted, stored_order
from streammerge.gguf.policy import FileType
from streammerge.gguf.tokenizer import tokenizer_key_values
from streammerge.yamltext import parse_yaml

# The gguf package would print parts of a model card to the terminal as they stand there.
logging.getLogger("metadata").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Origin:
    """A model that this one was made from. ``repository`` is a name on the Hub, such as org/model, if it is known."""

    name: str
    repository: str | None = None

    def entry(self) -> dict[str, str]:
        """As the gguf package wants it."""
        if self.repository is None:
            return {"name": self.name}
        organization = self.repository.partition("/")[0]
        url = f"https://huggingface.co/{self.repository}"
        return {"name": self.name, "organization": organization, "repo_url": url}


def model_key_values(
    folder: Path,
    config: Mapping[str, Any],
    model: Llama,
    tensors: Sequence[Converted],
    file_type: FileType,
    *,
    name: str | None = None,
    origins: Sequence[Origin] = (),
    tags: Sequence[str] = (),
    tokenizer: Path | None = None,
    pre_tokenizer: str | None = None,
) -> list[KeyValue]:
    """Everything that the GGUF file of a model says, unquantized; ``quantized_key_values`` turns it into the rest.

    ``folder`` is the model whose card and config count (the base of a merge), ``tokenizer`` the one whose tokenizer
    does, if it is another. ``name`` and, if there are
    any, ``origins`` and ``tags`` replace what the card says. ``file_type`` is the type of the matrices.
    """
    weights = sum(prod(tensor.shape) for tensor in tensors)
    return [
        *general_key_values(folder, weights, name=name, origins=origins, tags=tags),
        *model.key_values(file_type.number),
        key_value("general.quantization_version", "u32", 2),
        *tokenizer_key_values(tokenizer or folder, config, model.vocabulary, pre_tokenizer),
    ]


def general_key_values(
    folder: Path, weights: int, *, name: str | None = None, origins: Sequence[Origin] = (), tags: Sequence[str] = ()
) -> list[KeyValue]:
    """``general.architecture`` first, then ``general.*`` and ``base_model.*``; ``weights`` counts parameters."""
    _check_files(folder)
    try:
        said = Metadata.load(None, folder, name, weights)
        said.name = said.name or folder.name
        said.size_label = said.size_label or size_label(weights, weights, 0, 0)
        if said.sampling_penalty_repeat is None:
            said.sampling_penalty_repeat = Metadata.load_generation_config(folder).get("repetition_penalty")
        if origins:
            said.base_models = [origin.entry() for origin in origins]
        if tags:
            said.tags = list(tags)
        return _pairs(said)
    except (ArithmeticError, AttributeError, LookupError, OutputError, TypeError, ValueError) as error:
        raise FormatError(
            f"{folder}: what {', '.join(_SAYING)} say of the model cannot be written to a GGUF file: "
            f"{type(error).__name__}: {error!s:.200}"
        ) from error


_SAYING = ("README.md", "config.json", "generation_config.json")


def _check_files(folder: Path) -> None:
    """The gguf package reads these files, and trusts them."""
    for name in _SAYING[1:]:
        if kind_of(folder / name) != "nothing":
            read_json(folder / name)
    card = folder / _SAYING[0]
    if kind_of(card) == "nothing":
        return
    lines = read_text(card).splitlines()
    if lines[:1] == ["---"]:
        end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
        try:
            parse_yaml(card, "\n".join(lines[1:end]).replace("\t", "  "))
        except RecipeError as error:
            raise FormatError(str(error)) from error


# What a template says about the base alone: its names, who made it, what it was made of.
_OWN = ("general.name", "general.basename", "general.finetune", "general.version", "general.author",
        "general.organization", "general.description", "general.quantized_by", "general.url", "general.doi",
        "general.uuid", "general.repo_url", "general.source.", "general.base_model.", "general.tags")  # fmt: skip


def retold_key_values(
    template: Sequence[KeyValue], *, name: str | None, origins: Sequence[Origin], tags: Sequence[str]
) -> list[KeyValue]:
    """The key-values of a GGUF file of the base with the name and the origins of the merge instead of its own."""
    said = Metadata(name=name, base_models=[origin.entry() for origin in origins], tags=list(tags))
    lineage = [pair for pair in _pairs(said) if pair.key.startswith(_OWN)]
    kept = [pair for pair in template if not pair.key.startswith(_OWN)]
    general = sum(pair.key in ("general.architecture", "general.type") for pair in kept[:2])
    return [*kept[:general], *lineage, *kept[general:]]


def _pairs(said: Metadata) -> list[KeyValue]:
    writer = GGUFWriter(None, ARCHITECTURE)  # writes nothing: it only collects
    writer.add_type("model")
    said.set_gguf_meta_model(writer)
    return [_collected(key, value.type, value.value) for key, value in writer.kv_data[0].items()]


def _collected(key: str, number: int, value: Any) -> KeyValue:
    if KINDS[number] != "arr":
        return key_value(key, KINDS[number], value)
    kinds = {bool: "bool", int: "i32", float: "f32", str: "str"}
    return key_value(key, f"[{kinds[type(value[0])]}]", value)


def matrix_type(tensors: Iterable[TensorInfo]) -> str:
    """The type that the matrices of an unquantized file get: that of the first stored in 16 bits, else F32.

    llama.cpp's converter makes F16 where nothing is stored in 16 bits; here nothing is rounded without being asked.
    """
    kinds = (info.dtype for info in stored_order(tensors) if len(info.shape) > 1)
    return next((kind for kind in kinds if kind in ("BF16", "F16")), "F32")
