"""Hugging Face tokenizer files from a GGUF's byte-level BPE vocabulary (tokens, merges, types, chat template)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONTROL = 3
"""GGUF token type of special tokens."""

SPECIAL_IDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


def write_tokenizer(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    special = {role: tokens[metadata[key]] for role, key in SPECIAL_IDS.items()}
    added = _added_tokens(tokens, metadata["tokenizer.ggml.token_type"])
    _write(folder / "tokenizer.json", _fast_tokenizer(tokens, metadata["tokenizer.ggml.merges"], added))
    _write(folder / "tokenizer_config.json", _config(metadata, special, added))
    _write(folder / "special_tokens_map.json", special)


def _added_tokens(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": tokens[i], **flags} for i, kind in enumerate(types) if kind == CONTROL]


def _fast_tokenizer(tokens: list[str], merges: list[str], added: list[dict[str, Any]]) -> dict[str, Any]:
    """The tokenizer.json of SmolLM2: single digits are split off first, then GPT-2's byte-level rules apply."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": [merge.split(" ") for merge in merges],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }


def _config(metadata: Mapping[str, Any], special: dict[str, str], added: list[dict[str, Any]]) -> dict[str, Any]:
    decoder = {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in added}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        **special,
        "chat_template": metadata["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        # Not GPT2Tokenizer: that class may rebuild the pre-tokenizer and lose the splitting of digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
