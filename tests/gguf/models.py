"""Tiny Llama-like models in GGUF, and llama.cpp's own quantizer through ctypes."""

import ctypes
from dataclasses import dataclass

import numpy as np

from streammerge.formats.contract import OutputTensor
from streammerge.formats.gguf import GgufSink, GgufSource, key_value, layout
from streammerge.gguf.policy import write_order
from tests.interop.llama_cpp_tools import silence

OUTPUTS = {"F32": np.float32, "F16": np.float16}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; ``experts`` 0 is a dense one."""

    layers: int
    hidden: int = 256
    feed: int = 512
    heads: int = 4
    kv_heads: int = 4
    vocab: int = 32
    tied: bool = True
    experts: int = 0
    architecture: str = "llama"

    def key_values(self):
        numbers = {
            "block_count": self.layers,
            "context_length": 128,
            "embedding_length": self.hidden,
            "feed_forward_length": self.feed,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "vocab_size": self.vocab,
            **({"expert_count": self.experts, "expert_used_count": 2} if self.experts else {}),
        }
        pairs = [key_value("general.architecture", "str", self.architecture)]
        pairs += [key_value(f"{self.architecture}.{name}", "u32", value) for name, value in numbers.items()]
        epsilon = "layer_norm_epsilon" if self.architecture == "falcon" else "layer_norm_rms_epsilon"
        return [*pairs, key_value(f"{self.architecture}.attention.{epsilon}", "f32", 1e-5)]

    def tensors(self, dtype="F32", rows=None):
        """In the order of writing; matrices are ``dtype``, norms F32. ``rows``: all the policy looks at is columns."""
        shapes = {"token_embd.weight": (self.vocab, self.hidden), "output_norm.weight": (self.hidden,)}
        if not self.tied:
            shapes["output.weight"] = (self.vocab, self.hidden)
        for layer in range(self.layers):
            shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in self._layer().items()}
        if rows:
            shapes = {n: (*s[:-2], rows, s[-1]) if len(s) > 1 else s for n, s in shapes.items()}
        tensors = [OutputTensor(n, dtype if len(s) > 1 else "F32", s) for n, s in shapes.items()]
        return sorted(tensors, key=lambda tensor: write_order(tensor.name))

    def _layer(self):
        keys = self.hidden // self.heads * self.kv_heads
        stack = (self.experts,) if self.experts else ()
        suffix = "_exps" if self.experts else ""
        shapes = {
            "attn_norm": (self.hidden,),
            "ffn_norm": (self.hidden,),
            "attn_q": (self.hidden, self.hidden),
            "attn_k": (keys, self.hidden),
            "attn_v": (keys, self.hidden),
            "attn_output": (self.hidden, self.hidden),
            f"ffn_gate{suffix}": (*stack, self.feed, self.hidden),
            f"ffn_up{suffix}": (*stack, self.feed, self.hidden),
            f"ffn_down{suffix}": (*stack, self.hidden, self.feed),
        }
        return shapes | ({"ffn_gate_inp": (self.experts, self.hidden)} if self.experts else {})


def write_gguf(folder, tensors, key_values, max_shard_bytes=None, name="model.gguf", seed=0):
    """Random values in every tensor, which must be F32 or F16. Returns the arrays and the first file."""
    rng = np.random.default_rng(seed)
    arrays = {t.name: (rng.standard_normal(t.shape) * 0.05).astype(OUTPUTS[t.dtype]) for t in tensors}
    files = layout(tensors, key_values, max_shard_bytes, name)
    sink = GgufSink(folder, files)
    for tensor_name, values in arrays.items():
        sink.write(tensor_name, 0, np.frombuffer(values.tobytes(), np.uint8))
    sink.sync()
    sink.close()
    return arrays, folder / files[0].name


def llama_quantize(
    source, target, number, *, imatrix=False, pure=False, tensor_types=None, output=None, embedding=None
):
    """llama_model_quantize on a file; the types it chose, by name in the order of the file, and its key-values."""
    import llama_cpp
    from gguf import GGMLQuantizationType

    silence()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure, params.allow_requantize = number, 1, pure, True
    if output:
        params.output_tensor_type = GGMLQuantizationType[output]
    if embedding:
        params.token_embedding_type = GGMLQuantizationType[embedding]
    if tensor_types:
        kind = llama_cpp.llama_model_tensor_override
        overrides = [kind(text.encode(), GGMLQuantizationType[t]) for text, t in tensor_types.items()]
        params.tt_overrides = (kind * (len(overrides) + 1))(*overrides)
    if imatrix:
        kind, floats = llama_cpp.llama_model_imatrix_data, ctypes.c_float
        sizes = {n: int(np.prod(i.shape[:-2]) * i.shape[-1]) for n, i in GgufSource(source).tensors.items()}
        entries = [kind(n.encode(), (floats * size)(*[1.0] * size), size) for n, size in sizes.items()]
        params.imatrix = (kind * (len(entries) + 1))(*entries)
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert status == 0, f"llama_model_quantize failed on {source}"
    made = GgufSource(target)
    return {name: info.dtype for name, info in made.tensors.items()}, made.key_values
