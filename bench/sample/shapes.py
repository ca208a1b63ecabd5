"""Shapes of Llama models: their tensors in model order and their config.json."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.sample.checkpoint import Tensor

CONFIG_DTYPE = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class Shape:
    """The sizes that decide a Llama checkpoint's tensors; `tied` leaves out lm_head."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    def __post_init__(self) -> None:
        """ValueError for heads that do not divide the width."""
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(f"{self}: hidden must be a multiple of heads, and heads of kv_heads")

    def tensors(self, dtype: str) -> list[Tensor]:
        """Every tensor in model order, all of one safetensors dtype."""
        if dtype not in CONFIG_DTYPE:
            raise ValueError(f"dtype {dtype} is not one of {', '.join(CONFIG_DTYPE)}")
        return [Tensor(name + ".weight", dtype, shape) for name, shape in self._weights()]

    def config(self, dtype: str) -> dict[str, Any]:
        """config.json of a LlamaForCausalLM."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "dtype": CONFIG_DTYPE[dtype],
            "eos_token_id": 2,
            "head_dim": self.hidden // self.heads,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0,
            "tie_word_embeddings": self.tied,
            "vocab_size": self.vocab,
        }

    def _weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "model.embed_tokens", (self.vocab, self.hidden)
        for layer in range(self.layers):
            for name, shape in self._layer():
                yield f"model.layers.{layer}.{name}", shape
        yield "model.norm", (self.hidden,)
        if not self.tied:
            yield "lm_head", (self.vocab, self.hidden)

    def _layer(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, wide = self.hidden, self.intermediate
        key_rows = hidden // self.heads * self.kv_heads
        yield "self_attn.q_proj", (hidden, hidden)
        yield "self_attn.k_proj", (key_rows, hidden)
        yield "self_attn.v_proj", (key_rows, hidden)
        yield "self_attn.o_proj", (hidden, hidden)
        yield "mlp.gate_proj", (wide, hidden)
        yield "mlp.up_proj", (wide, hidden)
        yield "mlp.down_proj", (hidden, wide)
        yield "input_layernorm", (hidden,)
        yield "post_attention_layernorm", (hidden,)


SHAPES: dict[str, Shape] = {
    "tiny": Shape(2, 64, 128, heads=4, kv_heads=2, vocab=256, tied=True),
    "tiny-untied": Shape(2, 64, 128, heads=4, kv_heads=2, vocab=256, tied=False),
    "135m": Shape(30, 576, 1536, heads=9, kv_heads=3, vocab=49152, tied=True),  # SmolLM2-135M
    "1.24b": Shape(16, 2048, 8192, heads=32, kv_heads=8, vocab=128256, tied=True),  # Llama-3.2-1B
    "7b": Shape(32, 4096, 11008, heads=32, kv_heads=32, vocab=32000, tied=False),  # Llama-2-7B
    "70b": Shape(80, 8192, 28672, heads=64, kv_heads=8, vocab=128256, tied=False),  # Llama-3-70B
}
"""Shapes by name; "tiny" models take a few hundred kilobytes."""
