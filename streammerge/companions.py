"""Files that travel with the weights, compared: chat template, special tokens, generation settings, the config.

Nothing here is an error: the output gets the base's (those of the tokenizer's model), and each difference is said.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .checkpoint import Checkpoint
from .errors import FormatError
from .formats.inputs import read_json, read_text

_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_TOKENIZER_CONFIG, _SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
_GENERATION, _CONFIG = "generation_config.json", "config.json"
_LARGEST = 8 << 20
_SHOWN = 48  # characters of a value
_NAMED = ("bos", "eos", "pad", "unk")
# What a config says about how the weights are used; what else differs concerns training, or fails with the tensors.
_SETTINGS = (
    "architectures", "model_type", "num_attention_heads", "num_key_value_heads", "head_dim",
    "rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings", "sliding_window", "rms_norm_eps",
    "hidden_act", "attention_bias", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
_ALWAYS = ("chat_template", "eos_token_id")  # said also where the base has none
_NO_SETTINGS = ("transformers_version", "_from_model_config")

Parsed = TypeVar("Parsed")
Said = Mapping[tuple[str, str], object]  # (file, key) to value


def differences(base: Checkpoint, agents: Sequence[Checkpoint], tokenizer: Checkpoint) -> list[str]:
    """One line for each setting in which agents differ from the base; ``tokenizer``: whose tokenizer files are kept."""
    notices: list[str] = []
    ours = _said(base, notices)
    found: dict[tuple[str, str, str], list[str]] = {}
    for agent in agents:
        for place, value in _said(agent, notices).items():
            if value != ours.get(place) and (place in ours or place[1] in _ALWAYS):
                found.setdefault((*place, _shown(value)), []).append(str(agent.path))
    for (file, key, theirs), paths in found.items():
        own = _shown(ours[file, key]) if (file, key) in ours else "not there"
        kept = (
            f"that of {tokenizer.path}" if file == _TOKENIZER_CONFIG and tokenizer.path != base.path else "the base's"
        )
        notices.append(f"{file}: {key} is {own} in the base, {theirs} in {', '.join(paths)}; the output has {kept}")
    return notices


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def _said(model: Checkpoint, notices: list[str]) -> Said:
    """Everything that is compared, as far as the model says it."""
    folder = model.path
    if not folder.is_dir():
        return {}
    tokenizer = {**_read(folder / _SPECIAL_TOKENS, notices), **_read(folder / _TOKENIZER_CONFIG, notices)}
    said: dict[tuple[str, str], object] = {}
    if (template := _template(folder, tokenizer, notices)) is not None:
        said[_TOKENIZER_CONFIG, "chat_template"] = template
    for name in _NAMED:
        if (token := _text(tokenizer.get(f"{name}_token"))) is not None:
            said[_TOKENIZER_CONFIG, f"{name}_token"] = token
    for key, value in _read(folder / _GENERATION, notices).items():
        if key not in _NO_SETTINGS:
            said[_GENERATION, key] = value
    for key, value in _settings(model.config):
        said[_CONFIG, key] = value
    return said


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    for key in _SETTINGS:
        if key in config or key in inner:
            yield key, inner.get(key, config.get(key))


def _template(folder: Path, tokenizer: Mapping[str, Any], notices: list[str]) -> object:
    """The chat template; a file of its own has the first word, as in transformers."""
    jinja = folder / _TEMPLATES[0]
    if jinja.is_file():
        return _parsed(lambda: read_text(jinja, _LARGEST), notices)
    return _read(folder / _TEMPLATES[1], notices).get("chat_template", tokenizer.get("chat_template"))


def _text(entry: object) -> object:
    """A special token is written as its text, or as an object that holds it."""
    return entry.get("content") if isinstance(entry, dict) else entry


def _read(file: Path, notices: list[str]) -> Mapping[str, Any]:
    """A JSON object, empty if there is none."""
    return (_parsed(lambda: read_json(file, _LARGEST), notices) or {}) if file.is_file() else {}


def _parsed(parse: Callable[[], Parsed], notices: list[str]) -> Parsed | None:
    """What a small file holds; if it cannot be read that is said, and None."""
    try:
        return parse()
    except FormatError as error:
        notices.append(f"{error}; it is not compared")
    return None
