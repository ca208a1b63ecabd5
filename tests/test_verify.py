"""Manifests and what is verified against them. Checksums are compared with the xxhash package on plain bytes."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import xxhash
from safetensors import safe_open

import streammerge
from bench.sample.generate import Shape
from streammerge.errors import FormatError, RecipeError
from streammerge.formats.gguf import GgufSource
from tests.conftest import save_floats
from tests.gguf.merging import PRE, make_models, write_dat

SHAPE = Shape(layers=2, hidden=256, intermediate=640, heads=4, kv_heads=2, vocab=1024, tied=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Models with a tokenizer; their merge as a folder, sharded, and as a quantized file."""
    folder = tmp_path_factory.mktemp("verify")
    base, agents = make_models(folder, SHAPE)
    streammerge.merge(base, agents, folder / "out", max_shard_size=600_000)
    streammerge.merge(base, agents, folder / "out.gguf", quantize="Q4_K_M", **PRE)
    return folder


@pytest.fixture
def out(made, tmp_path):
    """A copy of the merged folder, to be damaged."""
    return shutil.copytree(made / "out", tmp_path / "out")


def models(made):
    return [made / "base", made / "agent-0", made / "agent-1"]


def tensor_bytes(folder, name):
    for file in folder.glob("*.safetensors"):
        raw = file.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        entry = json.loads(raw[8:start]).get(name)
        if entry:
            begin, end = entry["data_offsets"]
            return file, start + begin, raw[start + begin : start + end]
    raise KeyError(name)


def checksum(raw, segment):
    """By the manifest's own words: XXH3-128 of the XXH3-128 of every segment."""
    pieces = [xxhash.xxh3_128(raw[at : at + segment]).digest() for at in range(0, len(raw), segment)]
    return xxhash.xxh3_128(b"".join(pieces)).hexdigest()


def test_the_manifest_has_the_checksum_of_every_tensor(made):
    manifest = json.loads((made / "out/streammerge-manifest.json").read_text())
    names = {
        name
        for file in (made / "out").glob("*.safetensors")
        for name in safe_open(file, "np").keys()  # noqa: SIM118
    }
    assert manifest["tensors"].keys() == names and len(manifest["files"]) > 2
    for name, facts in manifest["tensors"].items():
        file, _, raw = tensor_bytes(made / "out", name)
        assert facts["file"] == file.name and facts["checksum"] == checksum(raw, facts["segment"])
        assert facts["origin"] == "merged" and facts["from"] == [name]
    assert manifest["companions"].keys() == {
        "config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    raw = (made / "out/config.json").read_bytes()
    assert manifest["companions"]["config.json"] == xxhash.xxh3_128(raw).hexdigest()
    assert [model["name"] for model in manifest["inputs"]] == ["base", "agent-0", "agent-1"]
    assert "modified" not in json.dumps(manifest)


def test_a_gguf_manifest_too(made):
    manifest = json.loads((made / "out.gguf.manifest.json").read_text())
    source = GgufSource(made / "out.gguf")
    raw = (made / "out.gguf").read_bytes()
    assert manifest["tensors"].keys() == source.tensors.keys()
    for name, info in source.tensors.items():
        facts = manifest["tensors"][name]
        assert (facts["dtype"], tuple(facts["shape"])) == (info.dtype, info.shape)
        assert facts["checksum"] == checksum(raw[info.offset : info.offset + info.nbytes], facts["segment"])


def test_the_same_merge_gives_the_same_manifest(made, tmp_path):
    streammerge.merge(*_split(made), tmp_path / "out", max_shard_size=600_000, threads=1, max_ram="190M", io="mmap")
    ours, theirs = (folder / "out/streammerge-manifest.json" for folder in (made, tmp_path))
    assert ours.read_bytes() == theirs.read_bytes()


def _split(made):
    base, *agents = models(made)
    return base, agents


def test_what_is_whole_is_verified(made):
    for output in ("out", "out.gguf"):
        found = streammerge.verify(made / output)
        assert found.problems == () and found.tensors > 10
    assert found.weights == sum(info.elements for info in GgufSource(made / "out.gguf").tensors.values())


@pytest.mark.parametrize("at", [0, 77_777, -1])
def test_one_changed_bit_is_found(out, at):
    file, start, raw = tensor_bytes(out, "model.embed_tokens.weight")
    content = bytearray(file.read_bytes())
    content[start + at % len(raw)] ^= 1
    file.write_bytes(content)
    (problem,) = streammerge.verify(out).problems
    assert problem == f"{file}: tensor 'model.embed_tokens.weight' is not what was written: its checksum differs"


def test_nan_is_found_and_placed(out):
    file, start, _ = tensor_bytes(out, "model.layers.1.mlp.up_proj.weight")
    content = bytearray(file.read_bytes())
    content[start + 2 * 70_000 : start + 2 * 70_000 + 2] = b"\xc0\x7f"
    file.write_bytes(content)
    problems = streammerge.verify(out).problems
    assert any("holds 1 values that are not finite, the first at index 70000" in text for text in problems)


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda out: (out / "config.json").write_text("{}"), r"config\.json: was changed after the merge"),
        (lambda out: (out / "tokenizer.json").unlink(), r"tokenizer\.json: is missing"),
        (lambda out: (out / "README.md").write_text("mine"), None),
    ],
)
def test_files_beside_the_weights(out, damage, told):
    import re

    damage(out)
    problems = streammerge.verify(out).problems
    assert (not problems) if told is None else re.search(told, problems[0]) and len(problems) == 1


def test_a_shard_of_another_merge_is_found(made, out, tmp_path):
    base, agents = _split(made)
    streammerge.merge(base, agents[:1], tmp_path / "other", max_shard_size=600_000, method="ram")
    shard = "model-00002-of-00005.safetensors"
    names = sorted(path.name for path in out.glob("*.safetensors"))
    shard = names[1]
    shutil.copy(tmp_path / "other" / shard, out / shard)
    assert any(shard in text and "its checksum differs" in text for text in streammerge.verify(out).problems)


def test_truncated_and_missing_files_are_errors(out):
    shards = sorted(out.glob("*.safetensors"))
    with open(shards[0], "rb+") as file:
        file.truncate(shards[0].stat().st_size - 1)
    with pytest.raises(FormatError, match="is truncated"):
        streammerge.verify(out)
    (out / "streammerge-manifest.json").unlink()
    with pytest.raises(FormatError, match=r"manifest\.json: no such file; only outputs with a manifest"):
        streammerge.verify(out)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("output, options", [("out", {}), ("out.gguf", {})])
def test_computed_again_from_the_models(made, output, options, share):
    found = streammerge.verify(made / output, models(made), share=share, **options)
    assert found.problems == () and 0 < found.recomputed <= 1 and (share < 1 or found.recomputed == 1)


def test_a_lie_with_a_right_checksum_is_found_by_computing_again(made, out):
    """Weights and manifest changed together: only the models tell."""
    name = "model.layers.0.mlp.gate_proj.weight"
    file, start, raw = tensor_bytes(out, name)
    content = bytearray(file.read_bytes())
    content[start + 1000] ^= 1
    file.write_bytes(content)
    manifest = json.loads((out / "streammerge-manifest.json").read_text())
    facts = manifest["tensors"][name]
    facts["checksum"] = checksum(bytes(content[start : start + len(raw)]), facts["segment"])
    (out / "streammerge-manifest.json").write_text(json.dumps(manifest))
    assert streammerge.verify(out).problems == ()
    (problem,) = streammerge.verify(out, models(made), share=1.0).problems
    assert problem == f"{file}: tensor '{name}' is not what the merge gives, from byte 1000 on"


def test_other_models_are_told_from_those_that_were_merged(made, tmp_path):
    base, one, two = models(made)
    with pytest.raises(RecipeError, match=r"--against is needed 3 times, 2 given, for: base, agent-0, agent-1"):
        streammerge.verify(made / "out", [base, one])
    (problem, _) = streammerge.verify(made / "out", [base, two, one]).problems
    assert "agent-1: is not what was merged" in problem and "checksum" in problem
    copy = shutil.copytree(two, tmp_path / "renamed")
    assert streammerge.verify(made / "out", [base, one, copy]).problems == ()


def test_the_command_line_says_it_and_exits(made, out):
    run = [sys.executable, "-m", "streammerge", "verify"]
    done = subprocess.run([*run, str(out)], capture_output=True, text=True)
    assert done.returncode == 0 and "all as they were written" in done.stdout
    (out / "config.json").unlink()
    done = subprocess.run([*run, str(out), "--json"], capture_output=True, text=True)
    assert done.returncode == 1 and json.loads(done.stdout)["problems"] == [f"{out}/config.json: is missing"]


# --- outputs of every shape ------------------------------------------------------------------------------------------


def test_unquantized_gguf_is_computed_again(made, tmp_path):
    streammerge.merge(*_split(made), tmp_path / "out.gguf", **PRE)
    found = streammerge.verify(tmp_path / "out.gguf", models(made), share=1.0)
    assert found.problems == () and found.recomputed == 1


def test_gguf_in_several_files_or_in_a_folder(made, tmp_path):
    streammerge.merge(*_split(made), tmp_path / "out.gguf", quantize="Q8_0", max_shard_size=300_000, **PRE)
    streammerge.merge(*_split(made), tmp_path / "folder", quantize="Q8_0", **PRE)
    first, *others = sorted(tmp_path.glob("*.gguf"))
    for output in (tmp_path / "out.gguf", first, tmp_path / "folder"):
        found = streammerge.verify(output, models(made), share=1.0)
        assert found.problems == () and found.recomputed == 1
    content = bytearray(others[-1].read_bytes())
    content[-40] ^= 1
    others[-1].write_bytes(content)
    assert streammerge.verify(first).problems


def test_a_file_that_nobody_wrote_is_found(made, out):
    """Loaders prefer model.safetensors to shards, and a template in a file to one in the tokenizer's settings."""
    shutil.copy(made / "base/model.safetensors", out)
    (out / "chat_template.jinja").write_text("mine")
    (out / ".gitattributes").write_text("hidden files are no part of a model")
    told = [f"{out / name}: was not written by this merge" for name in ("chat_template.jinja", "model.safetensors")]
    assert list(streammerge.verify(out).problems) == told


def test_what_is_copied_need_not_be_finite(tmp_path):
    weights = {"a.weight": np.ones((8, 16), "f4"), "mask": np.full(4, -np.inf, "f4")}
    base = save_floats(tmp_path / "base", weights)
    agent = save_floats(tmp_path / "agent", {**weights, "a.weight": weights["a.weight"] + 1})
    streammerge.merge(base, [agent], tmp_path / "out", exclude=["^mask$"])
    assert streammerge.verify(tmp_path / "out", [base, agent]).problems == ()


def test_what_was_merged_with_nan_is_computed_again(tmp_path):
    base, agent = (
        save_floats(tmp_path / name, {"a.weight": np.full((8, 16), value, "f4")})
        for name, value in (("base", 1), ("agent", np.nan))
    )
    streammerge.merge(base, [agent], tmp_path / "out", allow_non_finite=True)
    found = streammerge.verify(tmp_path / "out", [base, agent], share=1.0)
    assert found.problems == () and found.recomputed == 1


def test_a_damaged_manifest_is_one_error(made, out):
    path = out / "streammerge-manifest.json"
    whole = json.loads(path.read_text())
    name = next(iter(whole["tensors"]))
    damaged = [{k: v for k, v in whole.items() if k != key} for key in ("recipe", "inputs", "files", "tensors")]
    damaged += [{**whole, "tensors": {name: {**whole["tensors"][name], key: 0}}} for key in ("segment", "parts")]
    damaged += [{**whole, "inputs": [7]}, {**whole, "companions": {"config.json": {}}}]
    for facts in damaged:
        path.write_text(json.dumps(facts))
        with pytest.raises(FormatError, match=r"manifest\.json: .*; it is not as it was written"):
            streammerge.verify(out, models(made))


def test_another_importance_matrix_is_told(made, tmp_path):
    weights = {"blk.0.ffn_down.weight": np.ones(640, "f4")}
    used, other = write_dat(tmp_path / "a.dat", weights), tmp_path / "b.dat"
    streammerge.merge(*_split(made), tmp_path / "out.gguf", quantize="Q4_K_M", imatrix=used, **PRE)
    write_dat(other, {name: values * 2 for name, values in weights.items()})
    renamed = shutil.copy(used, tmp_path / "renamed.dat")
    (problem,) = streammerge.verify(tmp_path / "out.gguf", models(made), imatrix=other).problems
    assert problem.startswith(f"{other}: is not what was merged: ")
    assert streammerge.verify(tmp_path / "out.gguf", models(made), imatrix=renamed).problems == ()
