"""Vocabularies that differ in rows, heads that differ, companions that differ. Oracles in plain numpy."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import xxhash
from safetensors.numpy import load_file, save_file

import streammerge
from streammerge import budget, checksum
from streammerge.errors import FormatError, MismatchError, NonFiniteError
from streammerge.events import Notice
from tests import oracle
from tests.checks import check_same_bits
from tests.test_resume import digests, resumed, stopped

HIDDEN = 6
EMBEDDING, HEAD, BODY = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"


def tokenizer_of(tokens, kind="BPE", **parts):
    """A tokenizer.json with these tokens, a list by id or a dict; the last one is an added token."""
    tokens = dict(enumerate(tokens)) if isinstance(tokens, list) else tokens
    *plain, (added, text) = tokens.items()
    vocab = [[t, -1.0] for _, t in plain] if kind == "Unigram" else {t: i for i, t in plain}
    return {"added_tokens": [{"id": added, "content": text}], "model": {"type": kind, "vocab": vocab}, **parts}


def words(count, *more):
    return [f"w{i}" for i in range(count)] + list(more)


def save(folder, rows, tokens=None, *, seed=0, body=None, head=True, config=None, dtype=np.float32, kind="BPE"):
    """A model of ``rows`` rows; values depend on the seed. ``tokens``: a list, a dict, or a whole tokenizer.json."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    arrays = {EMBEDDING: rng.standard_normal((rows, HIDDEN)).astype(dtype)}
    arrays[BODY] = np.ones((4, HIDDEN), dtype) if body is None else body
    if head:
        arrays[HEAD] = rng.standard_normal((rows, HIDDEN)).astype(dtype)
    save_file(arrays, folder / "model.safetensors")
    said = {"vocab_size": rows, "tie_word_embeddings": not head, **(config or {})}
    (folder / "config.json").write_text(json.dumps(said))
    if tokens is not None:
        content = tokens if isinstance(tokens, dict) and "model" in tokens else tokenizer_of(tokens, kind)
        (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def arrays_of(folder):
    return dict(load_file(folder / "model.safetensors"))


def merged(base, agents, method="ram", **options):
    """Merge beside the base; the output folder, its arrays, its report, the notices."""
    notices = []
    output = base.parent / f"out-{len(list(base.parent.iterdir()))}"
    report = streammerge.merge(
        base, agents, output, method=method,
        listener=lambda event: notices.append(event.text) if isinstance(event, Notice) else None, **options,
    )  # fmt: skip
    return output, arrays_of(output), report, notices


def by_rows(name, base, agents, common, method=oracle.ram, **parameters):
    """The oracle for the common rows: where an agent has none the base's row stands in."""
    ours = arrays_of(base)[name][:common]
    theirs = []
    for agent in agents:
        own = arrays_of(agent)[name][:common]
        theirs.append(np.concatenate([own, ours[len(own) :]]))
    flat = method(ours.ravel(), np.stack([own.ravel() for own in theirs]), **parameters)
    return flat.reshape(common, HIDDEN)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [True, False])
def test_rows_that_one_agent_added_are_taken_as_they_are(tmp_path, head):
    base = save(tmp_path / "base", 10, words(10), head=head)
    agents = [
        save(tmp_path / "a", 12, words(10, "<tool>", "</tool>"), seed=1, head=head),
        save(tmp_path / "b", 10, words(10), seed=2, head=head),
    ]
    output, arrays, report, notices = merged(base, agents)
    assert arrays.keys() == arrays_of(base).keys()
    for name in [EMBEDDING, HEAD] if head else [EMBEDDING]:
        wanted = np.concatenate([by_rows(name, base, agents, 10), arrays_of(agents[0])[name][10:]])
        check_same_bits(arrays[name], wanted, name)
    assert json.loads((output / "config.json").read_text())["vocab_size"] == 12
    assert (output / "tokenizer.json").read_bytes() == (agents[0] / "tokenizer.json").read_bytes()
    assert any("rows 10 to 11, added tokens: agent 1" in notice for notice in notices)
    assert any(f"are those of {agents[0]}" in notice for notice in notices)
    assert report.to_dict()["tensors"][EMBEDDING]["action"] == "merge"
    assert "rows 10 to 11, added tokens: agent 1" in (output / "README.md").read_text()


@pytest.mark.parametrize("method", ["ram", "ram+", "ties", "linear", "task_arithmetic", "ramplus_tl", "dare_linear"])
def test_rows_that_an_agent_lacks_count_as_unchanged(tmp_path, method):
    """The same as a merge of an agent to which the base's rows were given by hand, counts included."""
    base = save(tmp_path / "base", 12, words(12))
    short = save(tmp_path / "a", 9, words(9), seed=1)
    other = save(tmp_path / "b", 12, words(12), seed=2)
    parameters = {"parameters": {"density": 0.5}} if method in ("ties", "dare_linear") else {}
    _, found, report, _ = merged(base, [short, other], method, **parameters)
    whole = arrays_of(short)
    for name in (EMBEDDING, HEAD):
        whole[name] = np.concatenate([whole[name], arrays_of(base)[name][9:]])
    filled = shutil.copytree(short, tmp_path / "filled")
    save_file(whole, filled / "model.safetensors")
    shutil.copy(base / "tokenizer.json", filled)
    _, wanted, other_report, _ = merged(base, [filled, other], method, **parameters)
    for name, values in wanted.items():
        check_same_bits(found[name], values, name)
    counts = [[(share.changed, share.unique) for share in one.agents] for one in (report, other_report)]
    assert counts[0] == counts[1]


def test_added_rows_are_not_counted(tmp_path):
    base = save(tmp_path / "base", 10, words(10))
    agents = [save(tmp_path / "a", 12, words(10, "x", "y"), seed=1), save(tmp_path / "b", 10, words(10), seed=2)]
    _, _, report, _ = merged(base, agents, "ram+")
    assert [share.changed for share in report.agents] == [2 * 10 * HIDDEN] * 2
    assert report.agents[0].density == 2 * 10 * HIDDEN / (2 * 10 * HIDDEN + 4 * HIDDEN)
    assert report.to_dict()["weights"] == {
        "merge": 20 * HIDDEN + 4 * HIDDEN, "copy": 4 * HIDDEN, "cast": 0, "average": 0
    }  # fmt: skip


def test_a_tensor_in_parts_is_inspected_once(tmp_path):
    base = save(tmp_path / "base", 12, words(12))
    agents = [save(tmp_path / f"agent{i}", 12 + i, words(12 + i), seed=i + 1) for i in range(2)]
    found = streammerge.inspect(base, agents)
    assert [tensor.name for tensor in found.tensors] == list(arrays_of(base))
    assert found.total.elements == sum(values.size for values in arrays_of(base).values())


def test_a_token_that_several_agents_added_is_their_mean(tmp_path):
    base = save(tmp_path / "base", 10, words(10))
    more = words(10, "x")
    agents = [save(tmp_path / n, 11, more, seed=seed) for n, seed in (("a", 1), ("b", 2), ("c", 3))]
    agents[1] = save(tmp_path / "bb", 12, [*more, "y"], seed=4)
    _, arrays, _, notices = merged(base, agents)
    rows = [arrays_of(agent)[EMBEDDING] for agent in agents]
    mean = (rows[0][10] + rows[1][10] + rows[2][10]) / np.float32(3)
    wanted = np.concatenate([by_rows(EMBEDDING, base, agents, 10), [mean], rows[1][11:]])
    check_same_bits(arrays[EMBEDDING], wanted)
    assert any("added tokens: the mean of agent 1 and agent 2 and agent 3" in notice for notice in notices)


def test_equal_added_rows_keep_their_bits(tmp_path):
    base = save(tmp_path / "base", 10, words(10))
    agents = [save(tmp_path / n, 11, words(10, "x"), seed=seed) for n, seed in (("a", 1), ("b", 2), ("c", 3))]
    row = np.array([0.1, -0.0, 1e-38, 3e38, 0.7, 1 / 3], np.float32)
    for agent in agents:
        arrays = arrays_of(agent)
        arrays[EMBEDDING][10] = row
        save_file(arrays, agent / "model.safetensors")
    check_same_bits(merged(base, agents)[1][EMBEDDING][10], row)


def test_what_is_not_finite_in_an_added_row_is_found(tmp_path):
    base = save(tmp_path / "base", 10, words(10))
    agents = [save(tmp_path / n, 11, words(10, "x"), seed=seed) for n, seed in (("a", 1), ("b", 2))]
    arrays = arrays_of(agents[1])
    arrays[HEAD][10, 3] = np.nan
    save_file(arrays, agents[1] / "model.safetensors")
    with pytest.raises(NonFiniteError, match=r"b: tensor 'lm_head.weight' holds nan at index \[10, 3\]"):
        merged(base, agents)


def test_a_bias_and_other_names_of_the_vocabulary(tmp_path):
    folders, rng = [], np.random.default_rng(0)
    for name, rows in (("base", 10), ("a", 12), ("b", 9)):
        folder = save(tmp_path / name, rows, words(rows))
        names = {"transformer.wte.weight": (rows, HIDDEN), "lm_head.bias": (rows,), "embed_out.weight": (rows, 3)}
        save_file({n: rng.standard_normal(s).astype("f4") for n, s in names.items()}, folder / "model.safetensors")
        folders.append(folder)
    _, arrays, _, _ = merged(folders[0], folders[1:])
    for name, values in arrays.items():
        base, longer, short = (arrays_of(folder)[name] for folder in folders)
        theirs = np.stack([longer[:10].ravel(), np.concatenate([short, base[9:]]).ravel()])
        flat = oracle.ram(base.ravel(), theirs).reshape(base.shape)
        check_same_bits(values, np.concatenate([flat, longer[10:]]), name)


def test_padding_is_kept(tmp_path):
    """10 tokens in 16 rows of the base; an agent has 12 tokens in 24 rows, one is not padded."""
    base = save(tmp_path / "base", 16, words(10))
    agents = [save(tmp_path / "a", 24, words(10, "x", "y"), seed=1), save(tmp_path / "b", 10, words(10), seed=2)]
    output, arrays, _, _ = merged(base, agents)
    ours, theirs = arrays_of(base)[EMBEDDING], arrays_of(agents[0])[EMBEDDING]
    wanted = [by_rows(EMBEDDING, base, agents, 10), theirs[10:12], ours[12:], theirs[16:]]
    check_same_bits(arrays[EMBEDDING], np.concatenate(wanted))
    assert json.loads((output / "config.json").read_text())["vocab_size"] == 24


def test_only_padding_differs(tmp_path):
    base = save(tmp_path / "base", 10, words(10))
    agent = save(tmp_path / "a", 16, words(10), seed=1)
    output, arrays, _, notices = merged(base, [agent])
    wanted = [by_rows(EMBEDDING, base, [agent], 10), arrays_of(agent)[EMBEDDING][10:]]
    check_same_bits(arrays[EMBEDDING], np.concatenate(wanted))
    assert (output / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert any("rows 10 to 15, padding: agent 1" in notice for notice in notices)


def test_a_token_in_the_bases_padding_comes_from_the_agent_that_has_it(tmp_path):
    base = save(tmp_path / "base", 16, words(10))
    agents = [save(tmp_path / "a", 16, words(10), seed=1), save(tmp_path / "b", 16, words(10, "x"), seed=2)]
    output, arrays, _, _ = merged(base, agents)
    theirs = arrays_of(agents[1])[EMBEDDING]
    wanted = [by_rows(EMBEDDING, base, agents, 10), theirs[10:11], arrays_of(base)[EMBEDDING][11:]]
    check_same_bits(arrays[EMBEDDING], np.concatenate(wanted))
    assert (output / "tokenizer.json").read_bytes() == (agents[1] / "tokenizer.json").read_bytes()


def test_equal_vocabularies_are_merged_whole_padding_included(tmp_path):
    base = save(tmp_path / "base", 16, words(10))
    agents = [save(tmp_path / "a", 16, words(10), seed=1), save(tmp_path / "b", 16, seed=2)]
    _, arrays, report, notices = merged(base, agents)
    check_same_bits(arrays[EMBEDDING], by_rows(EMBEDDING, base, agents, 16))
    assert len(report.plan.jobs) == 3 and not any("vocabulary" in notice for notice in notices)


def test_an_output_type_holds_for_added_rows_as_well(tmp_path):
    base = save(tmp_path / "base", 10, words(10))
    agents = [save(tmp_path / "a", 12, words(10, "x", "y"), seed=1), save(tmp_path / "b", 11, words(10, "x"), seed=2)]
    _, arrays, _, _ = merged(base, agents, dtype="f16")
    one, other = (arrays_of(agent)[EMBEDDING] for agent in agents)
    check_same_bits(arrays[EMBEDDING][10], ((one[10] + other[10]) / np.float32(2)).astype("f2"))
    check_same_bits(arrays[EMBEDDING][11], one[11].astype("f2"))


def test_a_nested_config_is_told_as_well(tmp_path):
    config = {"text_config": {"vocab_size": 10}}
    base = save(tmp_path / "base", 10, words(10), config=config)
    agent = save(tmp_path / "a", 12, words(10, "x", "y"), seed=1)
    output, *_ = merged(base, [agent])
    said = json.loads((output / "config.json").read_text())
    assert (said["vocab_size"], said["text_config"]["vocab_size"]) == (12, 12)


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_no_chunk_and_no_way_of_reading_changes_a_byte(tmp_path, monkeypatch, io):
    """Rows of 768 elements, which no chunk holds a whole number of."""
    rng = np.random.default_rng(0)
    folders, tokens = [], words(600)
    for name, rows, own in (("base", 640, tokens), ("a", 500, tokens[:500]), ("b", 700, [*tokens, "x", "y"])):
        folder = save(tmp_path / name, rows, own)
        values = {EMBEDDING: rng.standard_normal((rows, 768)).astype("f4"), BODY: rng.standard_normal((9, 768))}
        save_file({n: v.astype("f4") for n, v in values.items()}, folder / "model.safetensors")
        folders.append(folder)
    seen = set()
    for blocks in (1, 2, 3, 16):
        monkeypatch.setattr(budget, "_LARGEST_CHUNK", blocks * 65_536)
        for threads in (1, 3):
            output, arrays, report, _ = merged(folders[0], folders[1:], "ramplus_tl", io=io, threads=threads)
            seen.add((output / "model.safetensors").read_bytes())
            assert report.outcome.bytes_read == report.plan.bytes_to_read
    assert len(seen) == 1
    ours, theirs = (arrays_of(folders[k])[EMBEDDING] for k in (0, 2))
    check_same_bits(arrays[EMBEDDING][600:], np.concatenate([theirs[600:602], ours[602:640], theirs[640:]]))


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Many chunks of 65,536 weights, before and after the end of the base's vocabulary."""
    folder, rng = tmp_path_factory.mktemp("long"), np.random.default_rng(0)
    models = []
    for name, rows in (("base", 900), ("a", 1700), ("b", 1500)):
        model = save(folder / name, rows, words(rows))
        save_file({EMBEDDING: rng.standard_normal((rows, 768)).astype("f4")}, model / "model.safetensors")
        models.append(model)
    return models


@pytest.mark.parametrize("chunks", [3, 12, 15, 20])
def test_a_run_that_was_stopped_goes_on(long, tmp_path, monkeypatch, chunks):
    monkeypatch.setattr(budget, "_LARGEST_CHUNK", 65_536)
    options = {"method": "ram", "threads": 1}
    streammerge.merge(long[0], long[1:], tmp_path / "whole" / "out", **options)
    stopped((long[0], long[1:]), tmp_path / "out", chunks, **options)
    report, listener = resumed((long[0], long[1:]), tmp_path / "out", **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole" / "out")
    assert 0 < listener.read < report.plan.bytes_to_read


def test_the_manifest_has_a_checksum_of_each_part(long, tmp_path):
    streammerge.merge(long[0], long[1:], tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "streammerge-manifest.json").read_text())["tensors"][EMBEDDING]
    raw = arrays_of(tmp_path / "out")[EMBEDDING].tobytes()
    assert facts["parts"] == [rows * 768 * 4 for rows in (900, 600, 200)] and sum(facts["parts"]) == len(raw)
    parts, start = [], 0
    for size in facts["parts"]:
        part, step = raw[start : start + size], facts["segment"]
        pieces = [xxhash.xxh3_128_digest(part[at : at + step]) for at in range(0, size, step)]
        parts.append(xxhash.xxh3_128_digest(b"".join(pieces)))
        start += size
    assert facts["checksum"] == xxhash.xxh3_128_hexdigest(b"".join(parts))


@pytest.mark.parametrize("output", ["out", "out.safetensors"])
def test_verify_looks_at_every_part_and_computes_all_of_it_again(long, tmp_path, output):
    streammerge.merge(long[0], long[1:], tmp_path / output, method="ram")
    assert not streammerge.verify(tmp_path / output, long, share=1.0).problems
    weights = tmp_path / output / "model.safetensors" if output == "out" else tmp_path / output
    with open(weights, "r+b") as file:  # in the last row, which is padding of an agent
        file.seek(-5, os.SEEK_END)
        file.write(b"x")
    (problem,) = streammerge.verify(tmp_path / output).problems
    assert f"{EMBEDDING!r} is not what was written" in problem


# --- ids -------------------------------------------------------------------------------------------------------------


def swapped(tokens, one, other):
    tokens = list(tokens)
    tokens[one], tokens[other] = tokens[other], tokens[one]
    return tokens


@pytest.mark.parametrize("kind", ["BPE", "WordPiece", "Unigram"])
@pytest.mark.parametrize("rows", [10, 11])
def test_permuted_ids_are_refused_with_the_first_that_differs(tmp_path, kind, rows):
    base = save(tmp_path / "base", 10, words(10), kind=kind)
    agent = save(tmp_path / "a", rows, swapped(words(rows), 3, 7), seed=1, kind=kind)
    said = (
        r"a/tokenizer.json: token 3 is 'w7', in .*base/tokenizer.json it is 'w3' \(which is token 7 there\); .*--excl"
    )
    with pytest.raises(MismatchError, match=said):
        streammerge.plan(base, [agent])


def test_the_way_out_leaves_the_vocabulary_of_the_base(tmp_path):
    base = save(tmp_path / "base", 10, words(10))
    agent = save(tmp_path / "a", 11, swapped(words(11), 3, 7), seed=1)
    with pytest.raises(MismatchError) as refused:
        streammerge.plan(base, [agent])
    way = re.search("--exclude '(.*)'$", str(refused.value))
    output, arrays, _, _ = merged(base, [agent], exclude=[way[1]])
    check_same_bits(arrays[EMBEDDING], arrays_of(base)[EMBEDDING])
    assert (output / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_different_tokens_at_one_id_are_refused_between_agents(tmp_path):
    base = save(tmp_path / "base", 10, words(10))
    agents = [save(tmp_path / n, 11, words(10, f"<{n}>"), seed=1) for n in "ab"]
    with pytest.raises(MismatchError, match="b/tokenizer.json: token 10 is '<b>', in .*a/tokenizer.json it is '<a>'; "):
        streammerge.plan(base, agents)


def test_a_renamed_token_is_refused(tmp_path):
    base = save(tmp_path / "base", 10, words(9, "<reserved>"))
    agent = save(tmp_path / "a", 10, words(9, "<tool>"), seed=1)
    with pytest.raises(MismatchError, match="token 9 is '<tool>', in .* it is '<reserved>'; .*if it was only renamed"):
        streammerge.plan(base, [agent])


def test_without_a_tokenizer_rows_that_differ_cannot_be_told(tmp_path):
    base = save(tmp_path / "base", 10, words(10))
    agent = save(tmp_path / "a", 12, seed=1)
    said = r"a: has 12 rows in its vocabulary, .*base has 10, and no tokenizer.json .*put it there; .*--exclude"
    with pytest.raises(MismatchError, match=said):
        streammerge.plan(base, [agent])
    (base / "tokenizer.json").rename(agent / "tokenizer.json")
    with pytest.raises(MismatchError, match="base: has 10 rows in its vocabulary, .*a has 12, and no tokenizer.json"):
        streammerge.plan(base, [agent])


def test_tokens_that_no_model_has_all_of_are_refused(tmp_path):
    base = save(tmp_path / "base", 10, words(10))
    one = save(tmp_path / "a", 11, words(10, "x"), seed=1)
    gap = save(tmp_path / "b", 12, {**dict(enumerate(words(10))), 11: "y"}, seed=2)
    with pytest.raises(MismatchError, match="a/tokenizer.json: has the most tokens, but not all of .*b/tokenizer.json"):
        streammerge.plan(base, [one, gap])


NO_TOKENIZER = (
    "{", "[]", '{"model": {}}', '{"model": {"vocab": {"a": "b"}}}', '{"model": {"vocab": {}}}',
    '{"model": {"vocab": [3]}}', "\udcff", '{"a":' * 20_000,
)  # fmt: skip


@pytest.mark.parametrize("content", NO_TOKENIZER)
def test_a_tokenizer_that_is_none_is_an_error_only_where_it_is_needed(tmp_path, content):
    base = save(tmp_path / "base", 10, words(10))
    agent = save(tmp_path / "a", 11, seed=1)
    (agent / "tokenizer.json").write_text(content, errors="surrogateescape")
    with pytest.raises(FormatError, match="a/tokenizer.json: "):
        streammerge.plan(base, [agent])
    other = save(tmp_path / "b", 10, seed=1)
    shutil.copy(agent / "tokenizer.json", other)
    assert any("b/tokenizer.json: " in notice and "not compared" in notice
               for notice in streammerge.plan(base, [other]).notices)  # fmt: skip


def test_other_merges_are_said_and_spelled_otherwise_are_not(tmp_path):
    base = save(tmp_path / "base", 10, tokenizer_of(words(10)))
    content = tokenizer_of(words(10))
    for folder, merges in ((tmp_path / "a", [["w1", "w2"]]), (tmp_path / "b", ["w1 w2"]), (tmp_path / "c", [])):
        content["model"]["merges"] = merges
        save(folder, 10, content, seed=1)
    assert not streammerge.plan(tmp_path / "a", [tmp_path / "b"]).notices
    (notice,) = streammerge.plan(base, [tmp_path / "a"]).notices
    assert notice.endswith("but these differ: merges")
    content["normalizer"] = {"type": "NFC"}
    agent = save(tmp_path / "d", 10, content, seed=1)
    assert streammerge.plan(base, [agent]).notices[0].endswith("but these differ: normalizer")


def test_a_model_whose_embedding_and_head_differ_in_rows_is_refused(tmp_path):
    base = save(tmp_path / "base", 10, words(10))
    agent = save(tmp_path / "a", 12, words(10, "x", "y"), seed=1)
    arrays = arrays_of(agent)
    arrays[HEAD] = arrays[HEAD][:11].copy()
    save_file(arrays, agent / "model.safetensors")
    with pytest.raises(MismatchError, match=r"a: tensor '(lm_head|model.embed_tokens).weight' has 1[12] rows, "):
        streammerge.plan(base, [agent])
    with pytest.raises(MismatchError, match="'lm_head.weight' is excluded and keeps its 10 rows, but .* exclude all"):
        streammerge.plan(base, [agent], exclude=["lm_head"])


def test_rows_of_another_type_cannot_stand_in(tmp_path):
    base = save(tmp_path / "base", 10, words(10))
    agent = save(tmp_path / "a", 9, words(9), seed=1, dtype=np.float16)
    with pytest.raises(MismatchError, match="lacks rows of the base, which cannot stand in: it is F16, the base's F32"):
        streammerge.plan(base, [agent], mixed_dtypes=True)


# --- heads -----------------------------------------------------------------------------------------------------------


def test_heads_that_differ_are_explained(tmp_path):
    tied, untied = save(tmp_path / "t", 10, head=False), save(tmp_path / "u", 10, seed=1)
    for models in ((tied, untied), (untied, tied)):
        with pytest.raises(
            MismatchError,
            match=r"u: has a head of its own, 'lm_head.weight'; .*t has none .*--head tied .*--head untied",
        ):
            streammerge.plan(models[0], models[1:])


@pytest.mark.parametrize("first", ["tied", "untied"])
@pytest.mark.parametrize("choice", ["tied", "untied"])
def test_heads_by_choice(tmp_path, first, choice):
    models = [save(tmp_path / "t", 10, head=False), save(tmp_path / "u", 10, seed=1), save(tmp_path / "v", 10, seed=2)]
    base, *agents = models if first == "tied" else [models[1], models[0], models[2]]
    output, arrays, report, notices = merged(base, agents, head=choice)
    assert json.loads((output / "config.json").read_text())["tie_word_embeddings"] is (choice == "tied")
    check_same_bits(arrays[EMBEDDING], by_rows(EMBEDDING, base, agents, 10))
    assert (HEAD in arrays) is (choice == "untied")
    if choice == "untied":
        heads = [arrays_of(m).get(HEAD, arrays_of(m)[EMBEDDING]).ravel() for m in (base, *agents)]
        check_same_bits(arrays[HEAD].ravel(), oracle.ram(heads[0], np.stack(heads[1:])))
        assert all(job.counted for job in report.plan.jobs)
        assert any("t: has no 'lm_head.weight'; its embedding stands in" in notice for notice in notices)
    else:
        assert sum("'lm_head.weight' is left out" in notice for notice in notices) == 2


def test_of_a_head_that_is_left_out_no_byte_is_read(tmp_path, monkeypatch):
    """It comes first in its file: what is taken for the header of the file must not reach over it."""
    seen, sample = {}, checksum.sample_of_file
    monkeypatch.setattr(
        checksum, "sample_of_file", lambda file, head: seen.setdefault(file, head) and sample(file, head)
    )
    base, agent = save(tmp_path / "base", 10, head=False), save(tmp_path / "a", 10, seed=1)
    merged(base, [agent], head="tied")
    for file, head in seen.items():
        assert head == 8 + int.from_bytes(file.read_bytes()[:8], "little")


def test_where_every_config_ties_a_stored_head_is_left_out(tmp_path):
    base = save(tmp_path / "base", 10, head=False)
    agent = save(tmp_path / "a", 10, seed=1, config={"tie_word_embeddings": True})
    _, arrays, _, notices = merged(base, [agent])
    assert HEAD not in arrays and any("a: 'lm_head.weight' is left out" in notice for notice in notices)
    _, arrays, _, _ = merged(base, [agent], head="untied")
    assert HEAD in arrays


def test_a_choice_that_changes_nothing_is_said(tmp_path):
    base, agent = save(tmp_path / "base", 10), save(tmp_path / "a", 10, seed=1)
    _, arrays, _, notices = merged(base, [agent], head="tied")
    assert HEAD in arrays and any("--head tied has no effect" in notice for notice in notices)


def test_an_untied_head_with_added_tokens(tmp_path):
    """Both at once: a tied base, an agent with a head and two more rows, one with fewer."""
    base = save(tmp_path / "base", 10, words(10), head=False)
    agents = [
        save(tmp_path / "a", 12, words(10, "x", "y"), seed=1),
        save(tmp_path / "b", 8, words(8), seed=2, head=False),
    ]
    _, arrays, _, _ = merged(base, agents, head="untied")
    ours = arrays_of(base)[EMBEDDING]
    head, short = arrays_of(agents[0])[HEAD], np.concatenate([arrays_of(agents[1])[EMBEDDING], ours[8:]])
    flat = oracle.ram(ours.ravel(), np.stack([head[:10].ravel(), short.ravel()]))
    check_same_bits(arrays[HEAD], np.concatenate([flat.reshape(10, HIDDEN), head[10:]]))


# --- companions ------------------------------------------------------------------------------------------------------


def test_companions_that_differ_are_said(tmp_path):
    base, agent = (
        save(tmp_path / "base", 10, config={"rope_theta": 1e4}),
        save(tmp_path / "a", 10, config={"rope_theta": 1e6}),
    )
    for folder, template, eos in ((base, "{{ a }}", 2), (agent, "{{ b }}" * 40, [2, 7])):
        settings = {"chat_template": template, "eos_token": {"content": f"<{eos}>"}, "bos_token": "<s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "generation_config.json").write_text(
            json.dumps({"eos_token_id": eos, "transformers_version": str(eos)})
        )
    plan = streammerge.plan(base, [agent])
    assert list(plan.notices) == [
        f'tokenizer_config.json: chat_template is "{{{{ a }}}}" in the base, '
        f"\"{('{{ b }}' * 40)[:47]}... (282 characters) in {agent}; the output has the base's",
        f'tokenizer_config.json: eos_token is "<2>" in the base, "<[2, 7]>" in {agent}; the output has the base\'s',
        f"generation_config.json: eos_token_id is 2 in the base, [2, 7] in {agent}; the output has the base's",
        f"config.json: rope_theta is 10000.0 in the base, 1000000.0 in {agent}; the output has the base's",
    ]
    assert json.loads(plan.to_json())["notices"] == list(plan.notices)


def test_agents_that_agree_are_named_together_and_equal_ones_not_at_all(tmp_path):
    models = [save(tmp_path / n, 10, seed=k) for k, n in enumerate(("base", "a", "b", "c"))]
    for model, text in zip(models, ("x", "y", "y", "x")):
        (model / "chat_template.jinja").write_text(text)
    (notice,) = streammerge.plan(models[0], models[1:]).notices
    assert f'"y" in {models[1]}, {models[2]}; the output has' in notice


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"", b'{"a":' * 20_000])
def test_an_odd_companion_is_said_and_no_error(tmp_path, content):
    base, agent = save(tmp_path / "base", 10), save(tmp_path / "a", 10, seed=1)
    (base / "generation_config.json").write_text('{"eos_token_id": 2}')
    (agent / "generation_config.json").write_bytes(content)
    notices = streammerge.plan(base, [agent]).notices
    assert any("a/generation_config.json: " in notice and "not compared" in notice for notice in notices)


# --- whole models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_transformers_loads_added_tokens_and_either_head(tmp_path, head):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folders = []
    for name, rows, tied in (("base", 40, True), ("a", 48, False)):
        config = transformers.LlamaConfig(
            vocab_size=rows, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, tie_word_embeddings=tied,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(tokenizer_of(words(rows))))
        folders.append(tmp_path / name)
    output, arrays, _, _ = merged(folders[0], folders[1:], "ram+", head=head)
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert model.config.vocab_size == 48 == model.get_input_embeddings().weight.shape[0]
    own = arrays[HEAD if head == "untied" else EMBEDDING]
    assert torch.equal(model.get_output_embeddings().weight, torch.from_numpy(own))
    assert (arrays.get(HEAD) is None) == (head == "tied")
