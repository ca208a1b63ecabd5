"""The whole inputs that are broken: a tiny Llama and what is beside it, a template, importance matrices, a recipe; what
a merge leaves: an output with its manifest, an unfinished one with its journal, statistics in the cache."""

import json
import os
import shutil
import zlib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np

import streammerge
import streammerge.statistics
from bench.sample.shapes import Shape
from streammerge.errors import Interrupted
from streammerge.events import Advanced
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
LONG_AGO = (10**18, 10**18)  # statistics of new files are not kept


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
        _widen(folder / "agent", folder / "wide")
        _finish(folder)
        _leave(folder)
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


def _widen(agent: Path, folder: Path) -> None:
    """An agent with four more tokens in six more rows, and a chat template of its own."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(agent, folder)
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    arrays = load_file(agent / "model.safetensors").items()
    wide = {name: np.concatenate([rows, rows[:6]]) if name in tables else rows for name, rows in arrays}
    save_file(wide, folder / "model.safetensors", {"format": "pt"})
    base = agent.parent / "base"
    known = json.loads((base / "tokenizer.json").read_text())
    vocab = known["model"]["vocab"]
    first = max(vocab.values()) + 1
    known["added_tokens"] += [{"id": first + n, "content": f"<more {n}>", "special": True} for n in range(4)]
    (folder / "tokenizer.json").write_text(json.dumps(known))
    config = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": SHAPE.vocab + 6, "eos_token_id": 1}))
    named = {"bos_token": "<s>", "eos_token": "<more 0>", "chat_template": [{"name": "default", "template": "{{ 1 }}"}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ 2 }}"}))
    (folder / "generation_config.json").write_text(json.dumps({"top_k": 30, "eos_token_id": [1, 2]}))


def _finish(folder: Path) -> None:
    """Merges with their manifests, and the statistics of one."""
    age(folder)
    models = folder / "base", [folder / "agent"]
    with patch.object(streammerge.statistics, "FOLDER", folder / "statistics"):
        streammerge.merge(*models, folder / "merged", method="ram+", max_shard_size="20KB")
    streammerge.merge(*models, folder / "merged.gguf", method="ram", quantize="Q8_0", **PRE)


def _leave(folder: Path) -> None:
    """An unfinished merge of a tensor of four segments and two small ones. The four are two pieces in the journal."""
    from safetensors.numpy import save_file

    for seed, name in enumerate(("long-base", "long-agent")):
        rng = np.random.default_rng(seed)
        shapes = {"a.weight": (1024, 256), "b.weight": (64,), "c.weight": (64, 64)}
        (folder / name).mkdir()
        arrays = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
        save_file(arrays, folder / name / "model.safetensors")
    age(folder)
    left = iter(range(2))

    def listen(event: object) -> None:
        if isinstance(event, Advanced) and event.bytes_written and next(left, None) is None:
            raise Interrupted("enough")

    try:
        streammerge.merge(
            folder / "long-base", [folder / "long-agent"], folder / "m", method="ram", threads=1, listener=listen
        )
    except Interrupted:
        _cut(folder / "m.partial" / ".journal")


def _cut(journal: Path) -> None:
    lines = []
    for line in journal.read_bytes().splitlines():
        record = json.loads(line[9:])
        if record.get("segments") == [0, 4]:
            digests = record.pop("digests")
            lines.append(crc_line(json.dumps({**record, "segments": [0, 1], "digests": digests[:32]}).encode()))
            record |= {"segments": [1, 3], "digests": digests[32:]}
            lines.append(crc_line(json.dumps(record).encode()))
        else:
            lines.append(line)
    journal.write_bytes(b"".join(line + b"\n" for line in lines))


def crc_line(text: bytes) -> bytes:
    """A line of a journal, as docs/design.md has it."""
    return b"%08x %s" % (zlib.crc32(text), text)


def age(folder: Path) -> None:
    """Make every file an old one."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, ns=LONG_AGO)
