"""The Llama family (Llama 2 and 3, SmolLM2, Mistral) in GGUF: hyperparameters, rope factors, tensors.

What is written, and in which order, follows llama.cpp's converter; what config.json leaves out has the default of
transformers' configuration classes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streammerge.errors import FormatError, MismatchError
from streammerge.formats.contract import TensorInfo
from streammerge.formats.gguf import KeyValue, Value, key_value
from streammerge.gguf.names import Converted, Heads, Names, convert_names

ARCHITECTURE = "llama"
ROPE_FACTORS = "rope_freqs.weight"
_CLASSES = ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM")
# Defaults of transformers' LlamaConfig and MistralConfig: key and value heads, context, epsilon.
_KV_HEADS, _CONTEXT = {"mistral": 8}, {"mistral": 131072}
_DEFAULT_CONTEXT, _DEFAULT_EPSILON, _DEFAULT_THETA = 2048, 1e-6, 10000.0
_FLOAT32_MAX = 3.4e38
# Far above any model; both size what is put together in memory, whatever the weights are.
_MAX_HEAD_SIZE, _MAX_VOCABULARY = 1 << 16, 2_000_000


@dataclass(frozen=True)
class Llama:
    """A Llama as config.json describes it. ``rope`` is flat: rope_type, rope_theta, factor ..."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    context: int
    epsilon: float
    vocabulary: int
    rope: Mapping[str, Any]

    def key_values(self, file_type: int) -> list[KeyValue]:
        """The hyperparameters, in the converter's order; ``file_type`` is the number of the unquantized type."""
        pairs: list[tuple[str, str, Value]] = [
            ("llama.block_count", "u32", self.layers),
            ("llama.context_length", "u32", self.context),
            ("llama.embedding_length", "u32", self.hidden),
            ("llama.feed_forward_length", "u32", self.feed_forward),
            ("llama.attention.head_count", "u32", self.heads),
            ("llama.attention.head_count_kv", "u32", self.kv_heads),
            *_rope_scaling(self.rope),
            ("llama.rope.freq_base", "f32", self.rope["rope_theta"]),
            ("llama.attention.layer_norm_rms_epsilon", "f32", self.epsilon),
            ("llama.attention.key_length", "u32", self.head_size),
            ("llama.attention.value_length", "u32", self.head_size),
            ("general.file_type", "u32", file_type),
            ("llama.vocab_size", "u32", self.vocabulary),
            ("llama.rope.dimension_count", "u32", self.head_size),
        ]
        return [key_value(*pair) for pair in pairs]

    def tensors(self, stored: Iterable[TensorInfo], dtype: str) -> list[Converted]:
        """Every tensor of the GGUF file; ``dtype`` is the type of its matrices.

        There is a head only if the checkpoint stores one: llama.cpp takes the embedding otherwise.
        """
        computed, listed = [], list(stored)
        self._check_shapes(listed)
        if (factors := rope_factors(self)) is not None:
            computed.append(Converted(ROPE_FACTORS, factors.shape, "F32", ()))
        return [*computed, *convert_names(listed, Names(ARCHITECTURE, self.layers), self.permuted, dtype)]

    def _check_shapes(self, stored: Sequence[TensorInfo]) -> None:
        """What config.json says must be what the tensors are: llama.cpp would not load the file."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        said = {
            "embed_tokens.weight": (self.vocabulary, self.hidden),
            "lm_head.weight": (self.vocabulary, self.hidden),
            "self_attn.q_proj.weight": (queries, self.hidden),
            "self_attn.k_proj.weight": (keys, self.hidden),
            "self_attn.v_proj.weight": (keys, self.hidden),
            "mlp.gate_proj.weight": (self.feed_forward, self.hidden),
        }
        layers = 0
        for info in stored:
            wanted = next((shape for ending, shape in said.items() if info.name.endswith(ending)), info.shape)
            if info.shape != wanted:
                raise MismatchError(
                    f"{info.file}: tensor {info.name!r} has shape {list(info.shape)}, but by config.json it would be "
                    f"{list(wanted)}; correct vocab_size, hidden_size, intermediate_size, head_dim or the numbers of "
                    "heads there"
                )
            found = re.search(r"\.layers\.(\d+)\.", info.name)
            layers = max(layers, int(found[1]) + 1 if found else 0)
        if layers != self.layers or layers > len(stored):
            raise MismatchError(f"config.json: num_hidden_layers is {self.layers}, but the weights have {layers}")

    @property
    def permuted(self) -> Heads:
        """How the rows of queries and keys are moved."""
        return Heads(self.heads, self.kv_heads)


def read_llama(config: Mapping[str, Any]) -> Llama:
    """The model that config.json describes. Raises FormatError if it is none of this family."""
    _check_family(config)

    def number(name: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        value = config.get(name)
        if value is None:
            value = default
        if type(value) is not int or not 1 <= value <= most:
            raise FormatError(f"config.json: {name} is {value!r:.80}, wanted a positive number up to {most}")
        return value

    kind = str(config.get("model_type", "llama"))
    heads, hidden = number("num_attention_heads"), number("hidden_size")
    return Llama(
        number("num_hidden_layers"),
        hidden,
        number("intermediate_size"),
        heads,
        number("num_key_value_heads", _KV_HEADS.get(kind, heads)),
        number("head_dim", hidden // heads, most=_MAX_HEAD_SIZE),
        number("max_position_embeddings", _CONTEXT.get(kind, _DEFAULT_CONTEXT)),
        _real("rms_norm_eps", config.get("rms_norm_eps"), _DEFAULT_EPSILON),
        number("vocab_size", 32000, most=_MAX_VOCABULARY),
        _rope(config),
    )


def _check_family(config: Mapping[str, Any]) -> None:
    listed = config.get("architectures") or ["none"]
    found = listed[0] if isinstance(listed, list) else listed
    if found not in _CLASSES:
        raise FormatError(
            f"config.json: the architecture {found!s:.80} is not built in for GGUF ({', '.join(_CLASSES)} are); give a "
            "GGUF file of the base, of any type, with --gguf-template FILE: llama.cpp's convert_hf_to_gguf.py makes one"
        )


_NUMBERS = (
    "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    "extrapolation_factor", "attention_factor", "attn_factor", "beta_fast", "beta_slow",
)  # fmt: skip


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Both spellings, ``rope_parameters`` and ``rope_scaling`` beside ``rope_theta``, as the first."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise FormatError(f"config.json: rope scaling is {found!r:.80}, wanted an object")
    rope = dict(found)
    rope.setdefault("rope_theta", config.get("rope_theta") or _DEFAULT_THETA)
    rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    for name in _NUMBERS:
        if rope.get(name) is not None:
            _real(name, rope[name], 1.0)
    return rope


def _real(name: str, value: object, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _FLOAT32_MAX:
        raise FormatError(f"config.json: {name} is {value!r:.80}, wanted a positive number")
    return float(value)


_YARN = (
    ("yarn_ext_factor", ("extrapolation_factor",)),
    ("yarn_attn_factor", ("attention_factor", "attn_factor")),
    ("yarn_beta_fast", ("beta_fast",)),
    ("yarn_beta_slow", ("beta_slow",)),
)


def _rope_scaling(rope: Mapping[str, Any]) -> list[tuple[str, str, Value]]:
    kind, factor = rope["rope_type"], rope.get("factor")
    if kind in ("default", "llama3", "dynamic"):  # llama3 is a tensor; dynamic scaling is not in the file
        return []
    if kind not in ("linear", "yarn") or factor is None:
        raise FormatError(
            f"config.json: rope scaling {dict(rope)!r:.300} cannot be written as GGUF yet; linear and yarn can"
        )
    pairs: list[tuple[str, str, Value]] = [
        ("llama.rope.scaling.type", "str", kind),
        ("llama.rope.scaling.factor", "f32", factor),
    ]
    if kind == "linear":
        return pairs
    original = rope.get("original_max_position_embeddings")
    if original is None:
        raise FormatError("config.json: yarn rope scaling without original_max_position_embeddings; add it")
    pairs.append(("llama.rope.scaling.original_context_length", "u32", original))
    for name, spellings in _YARN:
        value = next((rope[spelling] for spelling in spellings if rope.get(spelling) is not None), None)
        if value is not None:
            pairs.append((f"llama.rope.scaling.{name}", "f32", value))
    return pairs


def rope_factors(model: Llama) -> NDArray[np.float32] | None:
    """What llama3 rope scaling divides each rotary frequency by, float32[head_size / 2]; None without it.

    High frequencies stay, low ones are divided by ``factor``, between them it passes smoothly. All in float32,
    with division as torch does it, through the reciprocal.
    """
    rope = model.rope
    if rope["rope_type"] != "llama3":
        return None
    with np.errstate(all="ignore"):
        factors = _llama3_factors(rope, model.head_size)
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise FormatError(f"config.json: rope scaling {dict(rope)!r:.300} divides frequencies by 0 or infinity")
    return factors


def _llama3_factors(rope: Mapping[str, Any], head_size: int) -> NDArray[np.float32]:
    one, factor = np.float32(1), np.float32(rope.get("factor", 8.0))
    low, high = float(rope.get("low_freq_factor", 1.0)), float(rope.get("high_freq_factor", 4.0))
    original = float(rope.get("original_max_position_embeddings", 8192))
    if low >= high:
        raise FormatError(f"config.json: low_freq_factor {low:g} must be below high_freq_factor {high:g}")
    steps = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    powers = (float(rope["rope_theta"]) ** steps.astype(np.float64)).astype(np.float32)
    wavelengths = one / (one / powers) * np.float32(2 * np.pi)
    smooth = (one / wavelengths * np.float32(original) - np.float32(low)) * one / np.float32(high - low)
    between = one / ((one - smooth) / factor + smooth)
    short, long = wavelengths < np.float32(original / high), wavelengths > np.float32(original / low)
    return np.where(short, one, np.where(long, factor, between))
