"""Generated models with a tokenizer, and what their merge should be in GGUF: a plain oracle."""

import json
import re

import ml_dtypes
import numpy as np

from bench.sample.generate import make_agent, make_base
from streammerge.formats import quants
from streammerge.formats.gguf import GGML_TYPES, GgufSource
from tests.gguf.checkpoints import tokenizer

PRE = {"pre_tokenizer": "llama-bpe"}  # a tokenizer of a few letters is none that is known
PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def make_models(folder, shape, agents=2, seed=3, dtype="BF16"):
    """Base and agents; the base has a tokenizer."""
    base = make_base(folder / "base", shape, seed=seed, dtype=dtype)
    (base / "tokenizer.json").write_text(json.dumps(tokenizer(("<s>", "</s>"))))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    return base, [make_agent(folder / f"agent-{i}", base, index=i, seed=seed) for i in range(agents)]


def write_dat(path, weights):
    """The older format of llama-imatrix."""
    parts = [np.int32(len(weights)).tobytes()]
    for name, values in weights.items():
        parts += [np.int32(len(name)).tobytes(), name.encode(), np.int32([1, values.size]).tobytes(), values.tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def gguf_name(name):
    """What llama.cpp calls a Llama's tensor."""
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return re.sub(r"model\.layers\.(\d+)\.", r"blk.\1.", name)


def arrays_of(path):
    """Every tensor of a safetensors file as float32."""
    import torch
    from safetensors.torch import load_file

    return {name: values.to(torch.float32).numpy() for name, values in load_file(path).items()}


def moved_rows(values, heads):
    """A row of the first half of each head, one of the second, and so on."""
    rows = values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2)
    return np.ascontiguousarray(rows.reshape(values.shape))


def encoded(values, kind, weights=None):
    """A whole tensor of one type, at once."""
    values = np.ascontiguousarray(values, np.float32)
    if kind in PLAIN:
        return values.astype(PLAIN[kind]).tobytes()
    ggml = GGML_TYPES[kind]
    out = np.empty(values.size // ggml.block * ggml.block_bytes, np.uint8)
    quants.encode(kind, values.ravel(), values.shape[-1], weights, out)
    return out.tobytes()


def check_file(path, arrays, shape, weights=None):
    """The GGUF file holds ``arrays`` (by the checkpoint's names, float32), in the types that its own table says."""
    source = GgufSource(path)
    contents = {file: file.read_bytes() for file in source.files}
    assert set(source.tensors) == {gguf_name(name) for name in arrays}
    for name, values in arrays.items():
        info = source.tensors[gguf_name(name)]
        heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2], 0)
        wanted = encoded(moved_rows(values, heads) if heads else values, info.dtype, (weights or {}).get(info.name))
        assert contents[info.file][info.offset : info.offset + info.nbytes] == wanted, f"{info.name} ({info.dtype})"
