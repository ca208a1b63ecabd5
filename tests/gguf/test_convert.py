"""Names, types, hyperparameters, tokenizers: compared with what llama.cpp's converter made of the same checkpoints."""

import json

import numpy as np
import pytest

from streammerge.checkpoint import open_checkpoint
from streammerge.errors import FormatError, MismatchError, RecipeError
from streammerge.gguf import pretokenizer, tokenizer
from streammerge.gguf.llama import read_llama, rope_factors
from streammerge.gguf.metadata import Origin, general_key_values, matrix_type, model_key_values
from streammerge.gguf.names import Heads, Names, row_runs, source_row, unquantized_type
from streammerge.gguf.policy import FILE_TYPES, model_facts
from tests.gguf.checkpoints import CHECKPOINTS, RECORDED, config_of, write_checkpoint


def converted(path, name=None):
    """Key-values and tensors that we make of a checkpoint."""
    checkpoint = open_checkpoint(path)
    model, kind = read_llama(checkpoint.config), matrix_type(checkpoint.tensors.values())
    tensors = model.tensors(checkpoint.tensors.values(), kind)
    pairs = model_key_values(
        path, checkpoint.config, model, tensors, FILE_TYPES[kind], name=name, pre_tokenizer="llama-bpe"
    )
    return pairs, tensors


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_becomes_what_the_converter_makes_of_it(tmp_path, kind):
    recorded = json.loads(RECORDED.read_text())[kind]
    pairs, tensors = converted(write_checkpoint(tmp_path, kind))
    assert [[p.key, p.kind, p.value] for p in pairs] == recorded["key_values"]
    assert [[t.name, t.dtype, list(t.shape)] for t in tensors] == recorded["tensors"]


@pytest.mark.parametrize("kind", ["plain", "untied f16", "llama3", "biases", "mistral"])
def test_rows_of_queries_are_where_the_converter_puts_them(tmp_path, kind):
    recorded = json.loads(RECORDED.read_text())[kind]["queries"]
    path = write_checkpoint(tmp_path, kind)
    _, tensors = converted(path)
    ours = next(t for t in tensors if t.name == "blk.1.attn_q.weight")
    info = open_checkpoint(path).tensors[ours.sources[0]]
    content = info.file.read_bytes()[info.offset : info.offset + info.nbytes]
    first = np.frombuffer(content, "u2").reshape(info.shape)[:, 0]
    assert [first[source_row(row, info.shape[0], ours.heads)] for row in range(info.shape[0])] == recorded


@pytest.mark.parametrize("kind", ["llama3", "old llama3 spelling"])
def test_rope_factors_are_those_of_the_converter(kind):
    recorded = json.loads(RECORDED.read_text())[kind]["rope_factors"]
    assert rope_factors(read_llama(config_of(kind))).tobytes().hex() == recorded


@pytest.mark.parametrize(("rows", "heads"), [(8, 1), (8, 2), (24, 3), (64, 4)])
def test_runs_of_rows_are_the_permutation_whatever_the_chunk(rows, heads):
    """The oracle: split each head in two halves and take one row of each in turn."""
    wanted = np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).ravel()
    for start in range(rows):
        for stop in range(start, rows + 1):
            found = np.full(rows, -1)
            for run in row_runs(start, stop, rows, heads):
                targets = run.target + run.step * np.arange(run.count)
                found[targets] = run.source + np.arange(run.count)
            assert list(found[start:stop]) == list(wanted[start:stop])
            assert set(found[:start]) | set(found[stop:]) <= {-1}
            whole = {row // (rows // heads) for row in range(start, stop)}
            assert len(row_runs(start, stop, rows, heads)) <= 2 * len(whole)


def test_rows_that_are_not_moved_are_one_run():
    (run,) = row_runs(3, 7, 10, 0)
    assert (run.source, run.count, run.target, run.step) == (3, 4, 3, 1)
    assert row_runs(3, 3, 10, 0) == []


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("blk.0.attn_q.weight", (4, 4), "BF16"),
        ("blk.0.attn_q.bias", (4,), "F32"),
        ("blk.0.attn_norm.weight", (4,), "F32"),
        ("blk.0.ffn_gate_inp.weight", (4, 4), "F32"),
        ("blk.0.ffn_gate_exps.bias", (4, 4), "F32"),
        ("token_embd.weight", (4, 4), "BF16"),
        ("output.weight", (4, 4), "BF16"),
    ],
)
def test_unquantized_types(name, shape, kind):
    assert unquantized_type(name, shape, "BF16") == kind


def test_buffers_are_left_out_and_unknown_tensors_refused():
    names = Names("llama", 2)
    assert names.find("model.layers.1.self_attn.rotary_emb.inv_freq") is None
    assert names.find("model.layers.1.mlp.up_proj.weight") == "blk.1.ffn_up.weight"
    for unknown in ("model.layers.2.mlp.up_proj.weight", "model.vision.weight"):
        with pytest.raises(MismatchError, match=f"'{unknown}' has no place in a GGUF file of architecture llama"):
            names.find(unknown)


def test_heads_must_fit_the_rows():
    heads = Heads(4, 2)
    assert heads.of("model.layers.0.self_attn.k_proj.bias", (8,)) == 2
    assert heads.of("model.layers.0.self_attn.v_proj.weight", (8, 8)) == 0
    with pytest.raises(MismatchError, match="'x.q_proj.weight' has 12 rows, which are not 4 heads of an even size"):
        heads.of("x.q_proj.weight", (12, 8))


def test_the_facts_for_the_policy_are_in_the_key_values(tmp_path):
    pairs, _ = converted(write_checkpoint(tmp_path, "plain"))
    facts = model_facts(pairs)
    assert (facts.architecture, facts.layers, facts.heads, facts.kv_heads, facts.experts) == ("llama", 2, 4, 2, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"architectures": ["MixtralForCausalLM"]},
            "MixtralForCausalLM is not built in for GGUF.*--gguf-template.*convert_hf_to_gguf",
        ),
        ({"architectures": None}, "architecture none is not built in"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None, wanted a positive number"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        (
            {"rope_scaling": {"type": "longrope", "factor": 2.0}},
            "rope scaling .*longrope.* cannot be written as GGUF yet",
        ),
    ],
)
def test_a_config_that_cannot_be_written_is_refused(change, said):
    config = config_of("plain") | change
    with pytest.raises(FormatError, match=said):
        read_llama(config).key_values(1)


def test_what_a_merge_says_about_itself(tmp_path):
    path = write_checkpoint(tmp_path, "card")
    origins = [Origin("Base", "org/base"), Origin("agent")]
    pairs = general_key_values(path, 135_000_000, name="Merged", origins=origins, tags=["merge", "streammerge"])
    found = {pair.key: pair.value for pair in pairs}
    assert next(iter(found)) == "general.architecture"
    assert found["general.name"] == "Merged"
    assert found["general.size_label"] == "135M"
    assert found["general.license"] == "apache-2.0"
    assert found["general.base_model.count"] == 2
    assert found["general.base_model.0.name"] == "Base"
    assert found["general.base_model.0.organization"] == "org"
    assert found["general.base_model.0.repo_url"] == "https://huggingface.co/org/base"
    assert found["general.base_model.1.name"] == "agent"
    assert "general.base_model.1.repo_url" not in found
    assert found["general.tags"] == ["merge", "streammerge"]


# --- tokenizers ------------------------------------------------------------------------------------------------------


def test_a_pre_tokenizer_is_recognized_by_the_ids_of_a_text(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")
    path = write_checkpoint(tmp_path, "plain") / "tokenizer.json"
    with pytest.raises(
        RecipeError, match=r"its pre-tokenizer is not known \(hash [0-9a-f]{64}\).*--pre-tokenizer: .*gpt-2"
    ) as caught:
        pretokenizer.Recognition(path).name()
    found = str(caught.value).partition("hash ")[2][:64]
    text, _ = pretokenizer.known_pre_tokenizers()
    monkeypatch.setattr(pretokenizer, "known_pre_tokenizers", lambda: (text, {found: "smollm"}))
    assert pretokenizer.Recognition(path).name() == "smollm"


def test_a_finetune_that_adds_other_special_tokens_has_the_same_pre_tokenizer(tmp_path, monkeypatch):
    """llama3's template puts <s> before a text, plain's nothing: each is known by the hash of the other."""
    library = pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")
    path = write_checkpoint(tmp_path, "llama3") / "tokenizer.json"
    text, _ = pretokenizer.known_pre_tokenizers()
    plain = library.Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids
    for ids, bos in ((plain, None), ([7, *plain], 7)):
        monkeypatch.setattr(
            pretokenizer, "known_pre_tokenizers", lambda ids=ids: (text, {pretokenizer.hash_ids(ids): "it"})
        )
        assert pretokenizer.Recognition(path).name(bos) == "it"
    with pytest.raises(RecipeError, match="is not known"):
        pretokenizer.Recognition(path).name(8)


def test_the_table_of_pre_tokenizers_is_whole():
    text, known = pretokenizer.known_pre_tokenizers()
    assert len(known) == 95
    assert {"llama-bpe", "smollm", "qwen2", "gpt-2", "tekken"} <= set(known.values())
    assert all(len(key) == 64 for key in known)
    assert text.startswith("\n \n\n") and text.endswith("a'lL")


def test_without_the_tokenizers_library_the_pre_tokenizer_must_be_named(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path, "plain")
    (tmp_path / "tokenizers.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RecipeError, match=r"pip install 'streammerge\[gguf\]'.*--pre-tokenizer"):
        tokenizer.tokenizer_key_values(path, {}, 37)
    assert tokenizer.tokenizer_key_values(path, {}, 37, "llama-bpe")
    with pytest.raises(RecipeError, match="--pre-tokenizer 'no-such' is not known; known are default, .*llama-bpe"):
        tokenizer.tokenizer_key_values(path, {}, 37, "no-such")


def test_what_the_tokenizers_library_cannot_use_is_named(tmp_path):
    pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(FormatError, match=r"tokenizer\.json: the tokenizers library cannot use it: .*Missing vocab"):
        pretokenizer.Recognition(tmp_path / "tokenizer.json").name()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["model"].update(type="Unigram"), "the tokenizer is of type Unigram; only byte-level BPE"),
        (lambda t: t["model"].update(byte_fallback=True), "the tokenizer is a sentencepiece model"),
        (
            lambda t: t["model"]["vocab"].update(far=99),
            "token 'far' has the id 99, but vocab_size in config.json is 37",
        ),
        (lambda t: t["added_tokens"][0].update(id=37), "token '<s>' has the id 37"),
    ],
)
def test_a_tokenizer_that_cannot_be_written_is_refused(tmp_path, change, said):
    path = write_checkpoint(tmp_path, "plain")
    content = json.loads((path / "tokenizer.json").read_text())
    change(content)
    (path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(FormatError, match=said):
        tokenizer.tokenizer_key_values(path, {}, 37, "llama-bpe")


def test_a_missing_tokenizer_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"tokenizer.json: is missing; a GGUF file holds its tokenizer"):
        tokenizer.tokenizer_key_values(tmp_path, {}, 37)
