"""The whole inputs that are broken: a tiny Llama and what is beside it, a template, importance matrices, a recipe."""

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import streammerge
from bench.sample.shapes import Shape
from tests.gguf.checkpoints import CARD
from tests.gguf.merging import PRE, gguf_name, make_models, write_dat
from tests.gguf.test_imatrix import write_new

SHAPE = Shape(layers=1, hidden=64, intermediate=64, heads=2, kv_heads=1, vocab=40, tied=False)
RECIPE = """# as people write them
merge_method: ram
base_model: {base}
models:
  - model: {agent}
    parameters: {{}}
parameters:
  epsilon: 1.0e-5
dtype: float32
"""
Files = dict[str, bytes]


@cache
def corpus() -> Files:
    """Contents by path: base/ (one file), agent/, sharded/ (the base with an index), and what is beside them."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        base, (agent,) = make_models(folder, SHAPE, agents=1, dtype="F32")
        agent.rename(folder / "agent")
        _dress(base)
        _shard(base, folder / "sharded")
        shutil.copytree(base, folder / "again")
        streammerge.merge(base, [folder / "again"], folder / "template.gguf", method="linear", **PRE)
        shutil.rmtree(folder / "again")
        _matrices(folder)
        (folder / "recipe.yml").write_text(RECIPE.format(base="base", agent="agent"))
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _dress(base: Path) -> None:
    """Everything that may lie beside weights."""
    (base / "README.md").write_text(CARD)
    (base / "generation_config.json").write_text(json.dumps({"top_k": 20, "temperature": 0.5}))
    named = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (base / "special_tokens_map.json").write_text(json.dumps(named))
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    config = json.loads((base / "config.json").read_text())
    config["rope_scaling"] = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))


def _shard(base: Path, folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    arrays = load_file(base / "model.safetensors")
    folder.mkdir()
    shutil.copy(base / "config.json", folder)
    names = sorted(arrays)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: arrays[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _matrices(folder: Path) -> None:
    names = [f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    weights = {gguf_name(name): np.ones(SHAPE.hidden, np.float32) for name in names}
    write_dat(folder / "imatrix.dat", weights)
    arrays = {}
    for name, values in weights.items():
        arrays |= {f"{name}.in_sum2": values[None], f"{name}.counts": np.ones((1, 1), np.float32)}
    write_new(folder, arrays)
