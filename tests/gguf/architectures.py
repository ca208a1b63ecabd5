"""Tiny checkpoints of architectures that are not built in, and the GGUF files that llama.cpp's converter made of them.

``python -m tests.gguf.architectures LLAMA_CPP`` converts them with the checkout in that folder and records the files,
compressed, in tests/fixtures/templates.
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np

from streammerge.formats import quants
from streammerge.formats.contract import OutputTensor
from streammerge.formats.gguf import GgufSink, GgufSource, layout
from tests.conftest import save_tensors
from tests.gguf.checkpoints import SPECIALS, content, convert, tokenizer

RECORDED = Path(__file__).parents[1] / "fixtures" / "templates"
HIDDEN, FEED, VOCAB, LAYERS, HEADS, KV_HEADS, SIZE, EXPERTS = 32, 24, 40, 2, 4, 2, 8, 3

COMMON = {
    "hidden_size": HIDDEN, "intermediate_size": FEED, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-5, "max_position_embeddings": 256, "rope_theta": 10000.0,
    "bos_token_id": 0, "eos_token_id": 1, "vocab_size": VOCAB, "head_dim": SIZE,
}  # fmt: skip
NORMS = ("input_layernorm", "post_attention_layernorm")
GEMMA_NORMS = (*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

# name: the class, what else config.json says, and how the checkpoint differs from a dense one without biases
ARCHITECTURES = {
    "llama": {
        "class": "LlamaForCausalLM",
        "config": {"rope_parameters": LLAMA3, "attention_bias": True},
        "biases": ("q", "k", "v", "o"),
    },
    "qwen2": {"class": "Qwen2ForCausalLM", "biases": ("q", "k", "v"), "head": True},
    "gemma3": {
        "class": "Gemma3ForCausalLM",
        "type": "gemma3_text",
        "config": {"sliding_window": 16, "query_pre_attn_scalar": 8},
        "norms": GEMMA_NORMS,
        "head norms": True,
    },
    "mixtral": {
        "class": "MixtralForCausalLM",
        "config": {"num_local_experts": EXPERTS, "num_experts_per_tok": 2},
        "head": True,
        "experts": ("block_sparse_moe", "gate", ("w1", "w3", "w2")),
    },
    "qwen2moe": {
        "class": "Qwen2MoeForCausalLM",
        "type": "qwen2_moe",
        "config": {
            "num_experts": EXPERTS,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": FEED,
            "shared_expert_intermediate_size": FEED,
        },
        "biases": ("q", "k", "v"),
        "head": True,
        "experts": ("mlp", "gate", ("gate_proj", "up_proj", "down_proj")),
        "shared": True,
    },
}


def shapes_of(kind, hidden=HIDDEN):
    what = ARCHITECTURES[kind]
    rows = {"q": HEADS * SIZE, "k": KV_HEADS * SIZE, "v": KV_HEADS * SIZE, "o": hidden}
    shapes = {"model.embed_tokens.weight": (VOCAB, hidden), "model.norm.weight": (hidden,)}
    if what.get("head"):
        shapes["lm_head.weight"] = (VOCAB, hidden)
    parts = {f"self_attn.{p}_proj.weight": (rows[p], hidden) for p in "qkv"}
    parts["self_attn.o_proj.weight"] = (hidden, HEADS * SIZE)
    parts |= {f"self_attn.{p}_proj.bias": (rows[p],) for p in what.get("biases", ())}
    parts |= {f"{norm}.weight": (hidden,) for norm in what.get("norms", NORMS)}
    parts |= {f"self_attn.{p}_norm.weight": (SIZE,) for p in "qk" if what.get("head norms")}
    three = ((FEED, hidden), (FEED, hidden), (hidden, FEED))
    if "experts" in what:
        place, router, names = what["experts"]
        parts[f"{place}.{router}.weight"] = (EXPERTS, hidden)
        for expert in range(EXPERTS):
            parts |= {f"{place}.experts.{expert}.{n}.weight": shape for n, shape in zip(names, three)}
    prefix = "mlp.shared_expert" if what.get("shared") else "mlp"
    if "experts" not in what or what.get("shared"):
        parts |= {f"{prefix}.{n}_proj.weight": shape for n, shape in zip(("gate", "up", "down"), three)}
    if what.get("shared"):
        parts["mlp.shared_expert_gate.weight"] = (1, hidden)
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
    return dict(sorted(shapes.items()))


def config_of(kind):
    what = ARCHITECTURES[kind]
    about = {"architectures": [what["class"]], "model_type": what.get("type", kind)}
    return COMMON | about | {"tie_word_embeddings": not what.get("head", False)} | what.get("config", {})


def weights_of(kind, hidden=HIDDEN, seed=0):
    """float32 values that BF16 holds, evenly spread over -0.05 to 0.05; the same with every version of numpy."""
    arrays = {}
    for number, (name, shape) in enumerate(shapes_of(kind, hidden).items()):
        count = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(1_000_003 * number + 7_919 * seed + 1)
        mixed = count * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        values = ((mixed >> np.uint64(40)).astype("f4") / np.float32(2**24) - np.float32(0.5)) / np.float32(10)
        arrays[name] = (values.view("u4") & np.uint32(0xFFFF0000)).view("f4").reshape(shape)
    return arrays


def save_checkpoint(path, arrays, config, dtype="BF16"):
    """A checkpoint folder of these values."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    packed = {n: (dtype, a.shape, rounded(dtype, a).tobytes()) for n, a in arrays.items()}
    save_tensors(path / "model.safetensors", packed)
    return path


def write_checkpoint(folder, kind):
    """The checkpoint that the recorded file was made of."""
    return save_checkpoint(folder / kind, weights_of(kind), config_of(kind))


def recorded(folder, kind):
    """The recorded file, unpacked."""
    path = folder / f"{kind}.gguf"
    path.write_bytes(gzip.decompress((RECORDED / f"{kind}.gguf.gz").read_bytes()))
    return path


def rounded(dtype, values):
    """The bytes of a plain type; of BF16 for values that it holds."""
    flat = np.ascontiguousarray(values, "f4")
    return {
        "I32": flat.astype("i4"),
        "F32": flat,
        "F16": flat.astype("f2"),
        "BF16": (flat.view("u4") >> np.uint32(16)).astype("u2"),
    }[dtype]


def encoded(dtype, values):
    """The bytes of any type."""
    if dtype not in quants.QUANTS:
        return np.frombuffer(rounded(dtype, values).tobytes(), np.uint8)
    quant, flat = quants.QUANTS[dtype], np.ascontiguousarray(values, "f4").ravel()
    out = np.empty(flat.size // quant.block * quant.nbytes, np.uint8)
    quants.encode(dtype, flat, values.shape[-1], None, out)
    return out


def write_gguf(path, arrays, key_values, types, max_shard_bytes=None):
    """A GGUF file of these values; ``types`` by name, F32 where it says nothing."""
    outputs = [OutputTensor(name, types.get(name, "F32"), values.shape) for name, values in arrays.items()]
    files = layout(outputs, key_values, max_shard_bytes, path.name)
    sink = GgufSink(path.parent, files)
    for output in outputs:
        sink.write(output.name, 0, encoded(output.dtype, arrays[output.name]))
    sink.sync()
    sink.close()
    return path.parent / files[0].name


def plain_values(source):
    """Every tensor of an unquantized GGUF file as float32."""
    kinds = {"F32": "<f4", "F16": "<f2"}
    found = {}
    for name, info in source.tensors.items():
        raw = content(source, name)
        values = (
            (np.frombuffer(raw, "<u2").astype("u4") << np.uint32(16)).view("f4")
            if info.dtype == "BF16"
            else np.frombuffer(raw, kinds[info.dtype]).astype("f4")
        )
        found[name] = values.reshape(info.shape)
    return found


def moved(values, heads):
    """Rows of queries or keys as llama.cpp wants them: the converter's own formula."""
    return values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def record(llama_cpp):
    import tempfile

    RECORDED.mkdir(exist_ok=True)
    for kind in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            path = write_checkpoint(Path(folder), kind)
            (path / "tokenizer.json").write_text(json.dumps(tokenizer(SPECIALS)))
            settings = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
            (path / "tokenizer_config.json").write_text(json.dumps(settings))
            try:
                convert(llama_cpp, path, path / "out.gguf")
            except Exception as error:
                raise SystemExit(f"{kind}: {error.stderr.decode()[-1500:]}") from error
            packed = gzip.compress((path / "out.gguf").read_bytes(), mtime=0)
            (RECORDED / f"{kind}.gguf.gz").write_bytes(packed)
            print(kind, len(packed), len(GgufSource(path / "out.gguf").tensors))


if __name__ == "__main__":
    record(sys.argv[1])
