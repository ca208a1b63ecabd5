"""Tiny Llama checkpoints of many kinds, as Hugging Face stores them, and what llama.cpp's converter makes of them.

``python -m tests.gguf.checkpoints LLAMA_CPP`` converts them with the checkout in that folder and records the result
in converted.json. They hold few bytes of tokenizer, so its pre-tokenizer is not one that the converter knows: it is
told that it is llama-bpe.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests.conftest import save_tensors

RECORDED = Path(__file__).parent / "converted.json"
ALPHABET = [chr(code) for code in range(ord("a"), ord("z") + 1)] + ["Ġ", "Ċ", "é"]
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}


def tokenizer(specials, post=None, pairs=False, unspecial=(), normalizer=None, after=False):
    """A tokenizer.json: special tokens first (or ``after``), the alphabet, the merged words."""
    merges = ("a b", "Ġ c", "ab c")
    words = [*ALPHABET, *("".join(merge.split()) for merge in merges)]
    first = len(words) if after else 0  # beyond the vocabulary they are tokens of their own
    vocab = {word: number for number, word in enumerate(words if after else [*specials, *words])}
    added = [
        {"id": n, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": text not in unspecial}
        for n, text in enumerate(specials, first)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": byte_level,
        "post_processor": post,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
            "vocab": vocab, "merges": [merge.split() for merge in merges] if pairs else list(merges),
        },
    }  # fmt: skip


def template(*items, pair=()):
    """A TemplateProcessing step; 'A' and 'B' are the texts, anything else is a special token."""

    def parts(texts):
        return [
            {"Sequence": {"id": t, "type_id": 0}} if t in "AB" else {"SpecialToken": {"id": t, "type_id": 0}}
            for t in texts
        ]

    names = {t for t in (*items, *pair) if t not in "AB"}
    tokens = {t: {"id": t, "ids": [0], "tokens": [t]} for t in sorted(names)}
    return {"type": "TemplateProcessing", "single": parts(items), "pair": parts(pair or (*items, "B")),
            "special_tokens": tokens}  # fmt: skip


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
SPECIALS = ("<s>", "</s>", "<pad>", "<|x|>", "plain one")
CARD = """---
license: apache-2.0
base_model: org/Some-Model-7B-Instruct
language: [en, de]
tags: [merge]
datasets: [org/set]
---
# A card
"""
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}

BEGIN = template("<s>", "A", pair=("<s>", "A", "<s>", "B"))
PLAIN = {"unspecial": ("plain one",)}
PLAIN_TOKEN = {"content": "plain one", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
               "special": True}  # fmt: skip
TEMPLATES = [{"name": "default", "template": "{{ a }}"}, {"name": "tool use", "template": "t"}]

# name: what differs from a plain model. "config", "settings" (tokenizer_config.json) and "files" are added.
CHECKPOINTS = {
    "plain": {},
    "untied f16": {"dtype": "F16", "tied": False, "settings": {"add_bos_token": True, "add_eos_token": False}},
    "llama3": {
        "config": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}, "head_dim": 16},
        "tokenizer": {"pairs": True, "after": True, "post": {"type": "Sequence", "processors": [BYTE_LEVEL, BEGIN]}},
    },
    "old llama3 spelling": {"config": {"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", **LLAMA3}}},
    "linear rope": {"config": {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 4.0}}},
    "yarn": {
        "config": {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "attention_factor": 0.5,
            },
        },
    },
    "mistral": {
        "config": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8},
        "tokenizer": {"post": template("<s>", "A", "</s>", pair=("<s>", "A", "</s>", "B", "</s>"))},
    },
    "biases": {"bias": True, "config": {"attention_bias": True, "head_dim": None}},
    "defaults": {"drop": ("rms_norm_eps", "max_position_embeddings", "num_key_value_heads", "rope_theta")},
    "padded": {"vocab_size": 48, "config": {"pad_token_id": 3, "eos_token_id": [1, 2]}},
    "card": {
        "files": {
            "README.md": CARD,
            "generation_config.json": json.dumps({"temperature": 0.5, "top_k": 20, "repetition_penalty": 1.1}),
        }
    },
    "name": {"folder": "Some-Model-1.5B-Chat-v2", "config": {"_name_or_path": "org/Some-Model-3M"}},
    "templates": {"settings": {"chat_template": TEMPLATES}},
    "template file": {"files": {"chat_template.jinja": "{{ b }}"}},
    "turns": {  # the template ends with another token than tokenizer_config.json says
        "settings": {"eos_token": {"content": "<|x|>", "__type": "AddedToken"}, "cls_token": "<s>", "bos_token": None},
        "tokenizer": {"post": template("<s>", "A", "</s>", pair=("<s>", "A", "</s>", "B", "</s>"))},
    },
    "roberta": {
        "tokenizer": {
            "post": {
                "type": "RobertaProcessing",
                "sep": ["</s>", 1],
                "cls": ["<s>", 0],
                "trim_offsets": True,
                "add_prefix_space": False,
            },
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "StripAccents"}]},
        },
    },
    "separated": {
        "settings": {"sep_token": "</s>", "eos_token": None},
        "tokenizer": {"post": template("<s>", "A", pair=("<s>", "A", "</s>", "B"))},
    },
    "byte level": {"tokenizer": {"post": BYTE_LEVEL, "unspecial": ("<pad>", "plain one")}},
    "listed": {"settings": {"additional_special_tokens": ["plain one", "new"]}, "tokenizer": PLAIN, "vocab_size": 40},
    "named": {"settings": {"eos_token": "plain one", "pad_token": "a"}, "tokenizer": PLAIN},
    "decoder": {"settings": {"added_tokens_decoder": {"4": PLAIN_TOKEN}}, "tokenizer": PLAIN},
    "absent": {"vocab_size": 48, "settings": {"pad_token": "[PAD]"}},
    "extra": {"settings": {"extra_special_tokens": {"image_token": "plain one"}}, "tokenizer": PLAIN},
    "special map": {"files": {"special_tokens_map.json": json.dumps({"sep_token": "plain one"})}, "tokenizer": PLAIN},
    "no settings": {"settings": None, "tokenizer": {"post": template("<s>", "A")}},
}


def config_of(kind):
    what = CHECKPOINTS[kind]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
        "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256, "rope_theta": 10000.0, "bos_token_id": 0, "eos_token_id": 1,
        "tie_word_embeddings": what.get("tied", True), "vocab_size": what.get("vocab_size", 37),
    }  # fmt: skip
    return {k: v for k, v in config.items() if k not in what.get("drop", ())} | what.get("config", {})


def shapes_of(kind):
    what, config = CHECKPOINTS[kind], config_of(kind)
    hidden, feed = config["hidden_size"], config["intermediate_size"]
    size = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries = size * config["num_attention_heads"]
    default = 8 if config["model_type"] == "mistral" else config["num_attention_heads"]
    keys = size * config.get("num_key_value_heads", default)
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    if not what.get("tied", True):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        rows = {"q": queries, "k": keys, "v": keys}
        parts = {f"self_attn.{part}_proj.weight": (count, hidden) for part, count in rows.items()}
        if what.get("bias"):
            parts |= {f"self_attn.{part}_proj.bias": (count,) for part, count in rows.items()}
            parts["self_attn.o_proj.bias"] = (hidden,)
        parts |= {
            "self_attn.o_proj.weight": (hidden, queries),
            "mlp.gate_proj.weight": (feed, hidden),
            "mlp.up_proj.weight": (feed, hidden),
            "mlp.down_proj.weight": (hidden, feed),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
    return dict(sorted(shapes.items()))


def write_checkpoint(folder, kind):
    """The checkpoint in a new folder below ``folder``; every element is its own 16-bit pattern, so that rows show."""
    what = CHECKPOINTS[kind]
    path = folder / what.get("folder", kind.replace(" ", "-"))
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config_of(kind)))
    (path / "tokenizer.json").write_text(json.dumps(tokenizer(SPECIALS, **what.get("tokenizer", {}))))
    settings = what.get("settings", {})
    if settings is not None:
        base = {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": None,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        (path / "tokenizer_config.json").write_text(json.dumps(base | settings))
    for name, text in what.get("files", {}).items():
        (path / name).write_text(text)
    dtype, tensors = what.get("dtype", "BF16"), {}
    for number, (name, shape) in enumerate(shapes_of(kind).items()):
        codes = (np.arange(np.prod(shape)) % 16000 + number).astype("u2")
        tensors[name] = (dtype, shape, codes.tobytes())
    save_tensors(path / "model.safetensors", tensors)
    return path


_DRIVER = """
import runpy, sys
root, source, target = sys.argv[1:]
sys.path.insert(0, root)
import conversion.base as base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
sys.argv = ["convert_hf_to_gguf.py", source, "--outfile", target]
runpy.run_path(root + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def convert(llama_cpp, source, target):
    """llama.cpp's converter, in a process of its own."""
    subprocess.run([sys.executable, "-c", _DRIVER, llama_cpp, source, target], check=True, capture_output=True)


def summary(source):
    """What a converted file says: key-values, tensors, rope factors, and how the rows of a matrix of queries begin."""
    pairs = [[p.key, p.kind, p.value] for p in source.key_values.values()]
    tensors = [[i.name, i.dtype, list(i.shape)] for i in source.tensors.values()]
    queries = np.frombuffer(content(source, "blk.1.attn_q.weight"), "u2")
    rows = queries.reshape(source.tensors["blk.1.attn_q.weight"].shape)[:, 0]
    found = {"key_values": pairs, "tensors": tensors, "queries": [int(code) for code in rows]}
    if "rope_freqs.weight" in source.tensors:
        found["rope_factors"] = content(source, "rope_freqs.weight").hex()
    return found


def content(source, name):
    """The bytes of one tensor."""
    info = source.tensors[name]
    return info.file.read_bytes()[info.offset : info.offset + info.nbytes]


def record(llama_cpp):
    import tempfile

    from streammerge.formats.gguf import GgufSource

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        paths = {kind: write_checkpoint(Path(folder), kind) for kind in CHECKPOINTS}
        done = {kind: pool.submit(convert, llama_cpp, path, path / "out.gguf") for kind, path in paths.items()}
        for kind, result in done.items():
            if error := result.exception():
                raise SystemExit(f"{kind}: {error.stderr.decode()[-500:]}")
        found = {kind: summary(GgufSource(path / "out.gguf")) for kind, path in paths.items()}
    lines = [f"{json.dumps(kind)}: {json.dumps(what)}" for kind, what in found.items()]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    record(sys.argv[1])
