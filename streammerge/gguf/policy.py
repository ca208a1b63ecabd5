"""Which type each tensor of a GGUF file gets: the policy of llama-quantize, as pure functions of names and shapes.

Specification: ``src/llama-quant.cpp`` of llama.cpp (ggml 0.25.3), whose choices these are tensor by tensor. A *file
type* (Q4_K_M) is a mixture; it has a number (``general.file_type``) and a default *tensor type* (Q4_K).
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from streammerge.errors import RecipeError
from streammerge.formats.contract import OutputTensor
from streammerge.formats.gguf import GGML_TYPES, KeyValue, key_value

# --- file types ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileType:
    """A mixture of types: its name, its number in ``general.file_type``, the type that most tensors get."""

    name: str
    number: int
    default: str


FILE_TYPES: dict[str, FileType] = {
    file_type.name: file_type
    for file_type in (
        FileType("F32", 0, "F32"),
        FileType("F16", 1, "F16"),
        FileType("BF16", 32, "BF16"),
        FileType("Q8_0", 7, "Q8_0"),
        FileType("Q6_K", 18, "Q6_K"),
        FileType("Q5_K_M", 17, "Q5_K"),
        FileType("Q5_K_S", 16, "Q5_K"),
        FileType("Q4_K_M", 15, "Q4_K"),
        FileType("Q4_K_S", 14, "Q4_K"),
        FileType("Q3_K_L", 13, "Q3_K"),
        FileType("Q3_K_M", 12, "Q3_K"),
        FileType("Q3_K_S", 11, "Q3_K"),
        FileType("Q2_K", 10, "Q2_K"),
        FileType("Q2_K_S", 21, "Q2_K"),
        FileType("IQ4_XS", 30, "IQ4_XS"),
        FileType("IQ4_NL", 25, "IQ4_NL"),
        FileType("Q5_1", 9, "Q5_1"),
        FileType("Q5_0", 8, "Q5_0"),
        FileType("Q4_1", 3, "Q4_1"),
        FileType("Q4_0", 2, "Q4_0"),
        FileType("TQ1_0", 36, "TQ1_0"),
        FileType("TQ2_0", 37, "TQ2_0"),
        FileType("MXFP4_MOE", 38, "MXFP4"),
    )
}
ALIASES = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M", "FP32": "F32", "FP16": "F16"}
TENSOR_TYPES = frozenset(file_type.default for file_type in FILE_TYPES.values())

# What llama-quantize can make and this cannot: lattices with large tables, and types for special models.
_ELSEWHERE = (
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M",
    "NVFP4", "Q1_0", "Q2_0",
)  # fmt: skip


def find_file_type(text: str) -> FileType:
    """A file type by name, alias or number, in any case. Raises RecipeError."""
    name = ALIASES.get(text.upper(), text.upper())
    if name in FILE_TYPES:
        return FILE_TYPES[name]
    by_number = {str(file_type.number): file_type for file_type in FILE_TYPES.values()}
    if text in by_number:
        return by_number[text]
    if name in _ELSEWHERE:
        raise _made_elsewhere(name)
    raise RecipeError(f"unknown quantization {text!r}; known are {', '.join(FILE_TYPES)}")


def find_tensor_type(text: str) -> str:
    """The type of single tensors, in any case. Raises RecipeError."""
    name = text.upper()
    if name in TENSOR_TYPES:
        return name
    if name in _ELSEWHERE:
        raise _made_elsewhere(name)
    hint = f"; {name} is a mixture for whole files" if name in FILE_TYPES or name in ALIASES else ""
    raise RecipeError(f"unknown tensor type {text!r}{hint}; known are {', '.join(sorted(TENSOR_TYPES))}")


def _made_elsewhere(name: str) -> RecipeError:
    return RecipeError(
        f"quantization {name} is not made here; two commands get there: "
        f"streammerge BASE AGENT... -o merged-BF16.gguf --quantize BF16, then "
        f"llama-quantize --imatrix imatrix.gguf merged-BF16.gguf merged-{name}.gguf {name}"
    )


# --- the model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The numbers that the policy asks for. Head counts are those of layer 0; ``layers`` includes MTP layers."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    experts: int = 0
    mtp_layers: int = 0

    @property
    def sharing(self) -> int:
        """How many query heads share one key and value head."""
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes the model for a 70B, whose value weights are few and worth more bits."""
        layers = self.layers - self.mtp_layers
        if self.architecture == "llama":
            return layers == 80 and self.experts != 8 and self.heads != self.kv_heads
        return (self.architecture in ("qwen2", "olmo", "deci") and layers == 80) or (
            self.architecture == "jais2" and layers == 68
        )


def model_facts(key_values: Iterable[KeyValue]) -> ModelFacts:
    """The facts as the metadata of a GGUF file states them. Raises RecipeError if one is missing."""
    found = {pair.key: pair for pair in key_values}
    named = found.get("general.architecture")
    architecture = "" if named is None else str(named.value)

    def number(name: str, default: int | None = None) -> int:
        pair = found.get(f"{architecture}.{name}")
        value = default if pair is None else pair.value
        if isinstance(value, list):  # one for each layer
            value = value[0] if value else None
        if not isinstance(value, int):
            raise RecipeError(f"metadata: {architecture}.{name} is missing; the types of the tensors depend on it")
        return value

    heads = number("attention.head_count")
    return ModelFacts(
        architecture,
        number("block_count"),
        heads,
        number("attention.head_count_kv", heads),
        number("expert_count", 0),
        number("nextn_predict_layers", 0),
    )


# --- names -----------------------------------------------------------------------------------------------------------

Category = Literal["output", "embedding", "value", "key", "query", "attn_output", "up", "gate", "down", "other"]

# The first that fits, after the exact names. A fused qkv counts as a value matrix.
_CATEGORIES: tuple[tuple[str, Category], ...] = (
    ("attn_qkv.weight", "value"),
    ("attn_kv_b.weight", "value"),
    ("attn_v.weight", "value"),
    ("attn_k.weight", "key"),
    ("attn_q.weight", "query"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "up"),
    ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)
_PER_LAYER_EMBEDDING = "per_layer_token_embd.weight"
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")
_KEPT_PARTS = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight",
    "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight",
    "time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight",
    "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_",
    ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip


def category(name: str) -> Category:
    """What part of the model a tensor is."""
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", _PER_LAYER_EMBEDDING):
        return "embedding"
    return next((found for part, found in _CATEGORIES if part in name), "other")


def may_quantize(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor may change its type: a matrix of weights, large, and not known to be delicate."""
    axes = len(shape) - next((i for i, size in enumerate(shape) if size != 1), len(shape))  # ggml drops leading ones
    kept = name in _KEPT_NAMES or any(part in name for part in _KEPT_PARTS)
    return axes >= 2 and name.endswith("weight") and not kept


def write_order(name: str) -> tuple[int, bytes]:
    """A sort key: tensors are numbered and written by layer, then name; those of no layer come first."""
    found = re.match(r"blk\.(\d+)\.", name)
    return (int(found[1]) if found else -1, name.encode())


# --- types -----------------------------------------------------------------------------------------------------------


@dataclass
class _Mixture:
    """One walk over the tensors of a model in the order of writing; counts value and down matrices on its way."""

    file_type: FileType
    facts: ModelFacts
    tied: bool
    values: int
    imatrix: bool
    output_type: str | None
    seen: dict[Category, int] = field(default_factory=lambda: {"value": 0, "down": 0})

    def choose(self, tensor: OutputTensor) -> str:
        part = category(tensor.name)
        if part == "output" or (part == "embedding" and self.tied):
            return self.output_type or self._head(tensor)
        if self.file_type.name == "MXFP4_MOE":
            return "MXFP4" if len(tensor.shape) > 2 and tensor.shape[-3] > 1 else "Q8_0"
        if part == "embedding":
            return "Q4_K" if self.file_type.name in ("TQ1_0", "TQ2_0") else self.file_type.default
        if part == "value":
            return self._value()
        if part == "key":
            return "Q8_0" if self.facts.experts == 8 else self.file_type.default
        if part == "down":
            return self._down(tensor.name)
        return self._attention_output() if part == "attn_output" else self.file_type.default

    def _head(self, tensor: OutputTensor) -> str:
        default = self.file_type.default
        whole = tensor.shape[-1] % GGML_TYPES[default].block == 0
        if self.file_type.name == "MXFP4_MOE" or self.facts.architecture == "falcon" or not whole or default == "Q8_0":
            return "Q8_0"
        return "Q6_K"

    def _value(self) -> str:
        index, name = self.seen["value"], self.file_type.name
        self.seen["value"] += 1
        chosen = {
            "Q2_K": "Q4_K" if self.facts.sharing >= 4 else "Q3_K",
            "Q2_K_S": "Q4_K" if self.facts.sharing >= 4 else None,
            "Q3_K_M": "Q5_K" if index < 2 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "IQ4_NL": "Q5_K" if self.facts.sharing >= 4 else None,
            "IQ4_XS": "Q5_K" if self.facts.sharing >= 4 else None,
            "Q4_K_M": "Q6_K" if _more_bits(index, self.values) else None,
            "Q5_K_M": "Q6_K" if _more_bits(index, self.values) else None,
            "Q4_K_S": "Q5_K" if index < 4 else None,
        }.get(name) or self.file_type.default
        if self.facts.experts == 8:
            return "Q8_0"
        return "Q5_K" if self.facts.is_70b and chosen in ("Q3_K", "Q4_K") else chosen

    def _down(self, tensor: str) -> str:
        index, layers = self._down_index(tensor), self.facts.layers
        self.seen["down"] += 1
        early, very_early, more = index < layers // 8, index < layers // 16, _more_bits(index, layers)
        if self.facts.architecture == "falcon" and self.file_type.name in _FALCON_DOWN:
            first, some, rest = _FALCON_DOWN[self.file_type.name]
            return first if very_early else some if more else rest
        chosen = {
            "Q2_K": "Q3_K",
            "Q2_K_S": "Q4_K" if early else None,
            "Q3_K_M": "Q5_K" if very_early else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_M": "Q6_K" if more else None,
            "Q5_K_M": "Q6_K" if more else None,
            "Q4_K_S": "Q5_K" if early else None,
            "IQ4_NL": "Q5_K" if early and not self.imatrix else None,
            "IQ4_XS": "Q5_K" if early and not self.imatrix else None,
            "Q4_0": "Q4_1" if early and self.imatrix else None,
            "Q5_0": "Q5_1" if early and self.imatrix else None,
        }
        return chosen.get(self.file_type.name) or self.file_type.default

    def _down_index(self, name: str) -> int:
        """How many came before; with experts the layer's own number, of several tensors the same."""
        if self.facts.experts <= 1:
            return self.seen["down"]
        layer = write_order(name)[0]
        if not 0 <= layer < self.facts.layers:
            raise RecipeError(f"tensor {name!r}: its layer is not one of the {self.facts.layers} in the metadata")
        return layer

    def _attention_output(self) -> str:
        name, default = self.file_type.name, self.file_type.default
        if self.facts.architecture == "falcon":
            return "Q4_K" if name == "Q3_K_L" else default
        if self.facts.experts == 8:
            return "Q5_K" if name in _EIGHT_EXPERTS_OUTPUT else default
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(name, default)


_EIGHT_EXPERTS_OUTPUT = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M")
# Falcon's down matrices: the first sixteenth of the layers, those that get more bits, the rest.
_FALCON_DOWN = {
    "Q3_K_M": ("Q5_K", "Q4_K", "Q3_K"),
    "Q3_K_L": ("Q4_K", "Q4_K", "Q4_K"),
    "Q4_K_M": ("Q6_K", "Q5_K", "Q4_K"),
    "Q4_K_S": ("Q4_K", "Q4_K", "Q4_K"),
}


def _more_bits(index: int, count: int) -> bool:
    """The first and last eighth of the layers, and every third between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


_NARROWER = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL",
}  # fmt: skip


def fit_to_row(kind: str, columns: int) -> str:
    """The type itself if rows of ``columns`` are whole blocks of it, else one with blocks of 32, else F16."""
    if columns % GGML_TYPES[kind].block == 0:
        return kind
    narrower = _NARROWER.get(kind, kind)
    return narrower if columns % GGML_TYPES[narrower].block == 0 else "F16"


def choose_types(
    tensors: Iterable[OutputTensor],
    file_type: FileType,
    facts: ModelFacts,
    *,
    imatrix: Collection[str] | None = None,
    pure: bool = False,
    tensor_types: Iterable[tuple[str, str]] = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
) -> dict[str, str]:
    """The type of every tensor, in the order of writing.

    ``dtype`` of each tensor is the type that an unquantized GGUF file would give it; ``imatrix`` holds the names that
    an importance matrix has entries for; ``tensor_types`` are regular expressions (lower-cased, searched) and types,
    of which the first that fits counts; ``pure`` uses the default type throughout. Raises RecipeError.
    """
    ordered = sorted(tensors, key=lambda tensor: write_order(tensor.name))
    patterns = [(_compile(text), find_tensor_type(kind)) for text, kind in tensor_types]
    names = [tensor.name for tensor in ordered]
    values = sum(category(name) == "value" for name in names)
    output, embedding = (kind and find_tensor_type(kind) for kind in (output_tensor_type, token_embedding_type))
    mixture = _Mixture(file_type, facts, "output.weight" not in names, values, bool(imatrix), output)
    types: dict[str, str] = {}
    for tensor in ordered:
        named = next((kind for pattern, kind in patterns if pattern.search(tensor.name)), None)
        fixed = _fixed(tensor, named, output, embedding)
        if fixed is not None:
            types[tensor.name] = fixed
        elif file_type.default in ("F32", "F16", "BF16"):  # these do not look at tensor_types
            types[tensor.name] = file_type.default
        else:
            chosen = named or (file_type.default if pure else mixture.choose(tensor))
            types[tensor.name] = fit_to_row(chosen, tensor.shape[-1])
    _check_imatrix(types, tensors=ordered, file_type=file_type, imatrix=imatrix or ())
    return types


def _compile(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text.lower())
    except re.error as error:
        raise RecipeError(f"tensor type {text!r} is not a regular expression: {error}") from error


def _fixed(tensor: OutputTensor, named: str | None, output: str | None, embedding: str | None) -> str | None:
    """What is decided before any mixture: tensors that keep their type, and the two types asked for by option."""
    if not may_quantize(tensor.name, tensor.shape):
        return tensor.dtype
    part = category(tensor.name)
    asked = {"embedding": embedding, "output": output}.get(part)
    if asked is None or (tensor.name == _PER_LAYER_EMBEDDING and named is not None):
        return None
    if tensor.shape[-1] % GGML_TYPES[asked].block:
        raise RecipeError(
            f"tensor {tensor.name!r}: rows of {tensor.shape[-1]} are not whole {asked} blocks of "
            f"{GGML_TYPES[asked].block}; choose another type for it, such as {fit_to_row(asked, tensor.shape[-1])}"
        )
    return asked


def _check_imatrix(
    types: Mapping[str, str], tensors: Iterable[OutputTensor], file_type: FileType, imatrix: Collection[str]
) -> None:
    """Q2_K_S puts two bits where they only do with an importance matrix."""
    if file_type.name != "Q2_K_S":
        return
    for tensor in tensors:
        needed = types[tensor.name] == "Q2_K" and category(tensor.name) not in ("embedding", "output")
        if needed and may_quantize(tensor.name, tensor.shape) and tensor.name not in imatrix:
            raise RecipeError(
                f"tensor {tensor.name!r}: Q2_K_S needs an importance matrix, and there is none for this tensor; "
                "give one, or choose Q2_K"
            )


def quantized_key_values(
    key_values: Iterable[KeyValue], file_type: FileType, imatrix: Sequence[KeyValue] = ()
) -> list[KeyValue]:
    """The metadata as llama-quantize leaves it: the two entries about the type move to the end, splits go.

    ``imatrix`` are the entries about an importance matrix (``imatrix.py``), which come last.
    """
    moved = ("general.quantization_version", "general.file_type", "general.alignment")
    kept = [pair for pair in key_values if pair.key not in moved and not pair.key.startswith("split.")]
    return [*kept, key_value(moved[0], "u32", 2), key_value(moved[1], "u32", file_type.number), *imatrix]
