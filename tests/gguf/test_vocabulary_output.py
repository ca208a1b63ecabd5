"""GGUF of a merge whose agents added tokens or untied their head: as from the safetensors output, step by step."""

import json

import numpy as np
import pytest
from safetensors.torch import save_file

import streammerge
from bench.sample.shapes import Shape
from streammerge import budget
from streammerge.errors import MismatchError
from streammerge.formats.gguf import GgufSource
from tests.gguf.architectures import config_of, recorded, save_checkpoint, weights_of, write_checkpoint
from tests.gguf.checkpoints import tokenizer
from tests.gguf.merging import PRE, arrays_of, check_file, make_models, write_dat

SHAPE = Shape(layers=1, hidden=768, intermediate=512, heads=12, kv_heads=4, vocab=300, tied=False)
ADDED = ("<s>", "</s>")


def with_added_tokens(folder, rows, tokens):
    """The model with more rows, and tokens after those of its tokenizer."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    generator = torch.Generator().manual_seed(7)
    arrays = load_file(folder / "model.safetensors")
    for name in [name for name in arrays if name.endswith(("embed_tokens.weight", "lm_head.weight"))]:
        old = arrays[name]
        more = torch.randn(rows - len(old), old.shape[1], generator=generator).to(old.dtype)
        arrays[name] = torch.cat([old, more])
    save_file(arrays, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] += [
        {**content["added_tokens"][0], "id": number, "content": text} for number, text in tokens.items()
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def make_extended(folder, shape=SHAPE, rows=320):
    """A base, an agent with two tokens and ``rows`` rows, and a plain one."""
    base, agents = make_models(folder, shape)
    for agent in agents:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (agent / name).write_bytes((base / name).read_bytes())
    tokens = len(tokenizer(ADDED)["model"]["vocab"])
    with_added_tokens(agents[0], rows, {tokens: "<tool>", tokens + 1: "</tool>"})
    return base, agents


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    return make_extended(tmp_path_factory.mktemp("extended"))


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0", "F16"])
@pytest.mark.parametrize("weighed", [False, True])
def test_added_tokens_are_in_the_file(extended, tmp_path, kind, weighed, monkeypatch):
    streammerge.merge(*extended, tmp_path / "folder")
    arrays = arrays_of(tmp_path / "folder" / "model.safetensors")
    rng = np.random.default_rng(0)
    weights = {name: (rng.random(768) + 1e-3).astype("f4") for name in ("output.weight", "blk.0.ffn_up.weight")}
    options = {"imatrix": write_dat(tmp_path / "imatrix.dat", weights)} if weighed and kind != "F16" else {}
    seen = set()
    for blocks in (1, 16):
        monkeypatch.setattr(budget, "_LARGEST_CHUNK", blocks * 65_536)
        output = tmp_path / f"{blocks}.gguf"
        streammerge.merge(*extended, output, quantize=kind, **PRE, **options)
        seen.add(output.read_bytes()[-(1 << 20) :])
        if not options:
            check_file(output, arrays, SHAPE)
        else:
            check_file(output, arrays, SHAPE, weights)
    assert len(seen) == 1
    said = GgufSource(output).key_values
    tokens = said["tokenizer.ggml.tokens"].value
    assert len(tokens) == said["llama.vocab_size"].value == 320
    place = tokens.index("<tool>")
    assert tokens[place : place + 3] == ["<tool>", "</tool>", f"[PAD{place + 2}]"]


def test_the_metadata_is_that_of_the_merged_folder(extended, tmp_path):
    """As if the folder that safetensors gives had been the base: another way to the same tokens and sizes."""
    streammerge.merge(*extended, tmp_path / "folder")
    again = tmp_path / "again"
    again.mkdir()
    for file in (tmp_path / "folder").iterdir():
        (again / file.name).write_bytes(file.read_bytes())
    streammerge.merge(tmp_path / "folder", [again], tmp_path / "two.gguf", **PRE)
    streammerge.merge(*extended, tmp_path / "one.gguf", **PRE)
    one, two = (GgufSource(tmp_path / f"{name}.gguf") for name in ("one", "two"))
    assert {n: t.shape for n, t in one.tensors.items()} == {n: t.shape for n, t in two.tensors.items()}
    told = [{k: p.value for k, p in s.key_values.items() if not k.startswith("general.")} for s in (one, two)]
    assert told[0] == told[1]


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_a_head_by_choice_is_in_the_file_or_not(tmp_path, head):
    from dataclasses import replace

    base, _ = make_models(tmp_path / "tied", replace(SHAPE, tied=True), agents=0)
    _, agents = make_models(tmp_path / "untied", SHAPE, agents=1)
    streammerge.merge(base, agents, tmp_path / "folder", head=head)
    streammerge.merge(base, agents, tmp_path / "o.gguf", head=head, quantize="Q4_K_M", **PRE)
    arrays = arrays_of(tmp_path / "folder" / "model.safetensors")
    assert ("lm_head.weight" in arrays) is (head == "untied")
    check_file(tmp_path / "o.gguf", arrays, SHAPE)


def test_a_template_does_not_fit_another_vocabulary_or_head(tmp_path):
    base = write_checkpoint(tmp_path, "qwen2")
    template = recorded(tmp_path, "qwen2")
    arrays = weights_of("qwen2", seed=1)
    embedding = arrays["model.embed_tokens.weight"]
    rows, extra = len(embedding), np.zeros((4, embedding.shape[1]), embedding.dtype)
    longer = {n: np.concatenate([a, extra]) if a.shape == embedding.shape else a for n, a in arrays.items()}
    agent = save_checkpoint(tmp_path / "agent", longer, config_of("qwen2"))
    for folder, tokens in ((base, rows), (agent, rows + 1)):
        content = {"model": {"vocab": {f"t{n}": n for n in range(tokens)}}}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    said = "is a file of the base, but the output has other tokens; merge to safetensors and convert that"
    with pytest.raises(MismatchError, match=said):
        streammerge.plan(base, [agent], tmp_path / "o.gguf", gguf_template=template)
