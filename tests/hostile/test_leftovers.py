"""What earlier runs left, made to do harm, by name: journals, manifests, statistics."""

import json
import os
import sys

import pytest

import streammerge
import streammerge.statistics
from streammerge import tokens
from streammerge.errors import FormatError, OutputError, RecipeError, UnfinishedError
from streammerge.journal import read_journal, read_records
from streammerge.recompute import recipe_again
from tests.fuzz.corpus import age, corpus, crc_line
from tests.fuzz.targets import check_merged

MANIFEST = "streammerge-manifest.json"
needs_fifo = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")


@pytest.fixture
def left(tmp_path):
    """A folder with everything of the corpus, whose unfinished merge is that of long-base and long-agent."""
    for path, raw in corpus().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(raw)
    age(tmp_path)
    return tmp_path


def merge_long(left, **options):
    streammerge.merge(left / "long-base", [left / "long-agent"], left / "m", method="ram", threads=1, **options)
    return left / "m"


def rewrite(journal, change):
    """Records replaced by what ``change`` makes of them, with CRCs that fit."""
    records = change([json.loads(line[9:]) for line in journal.read_bytes().splitlines()])
    journal.write_bytes(b"".join(crc_line(json.dumps(record).encode()) + b"\n" for record in records))


# --- journals --------------------------------------------------------------------------------------------------------


def only(**fields):
    """Changes the first piece of work, and drops all others."""
    return lambda records: [records[0], {**records[1], **fields}]


@pytest.mark.parametrize(
    "change",
    [
        only(job=-1), only(job=10**9), only(job="0"), only(job=True), only(job=None), only(job=[0]),
        only(segments=[-1, 1]), only(segments=[0, -4]), only(segments=[4, 1]), only(segments=[0, 2**70]),
        only(segments=[0]), only(segments={}), only(segments=[0.0, 1]), only(segments=[0, 4]), only(digests="00"),
        only(digests="x" * 32), only(digests=7), only(digests=""), only(tally=[[1, 2], [3, 4]]), only(tally=[]),
        only(tally=[["a", "b"]]), only(tally=[[-1, 0]]), only(tally=[[2**70, 0]]), only(tally=[[1], [2, 3]]),
        only(non_finite=[0]), only(non_finite=[-1, 0]), only(non_finite=["a", 0]), only(whole=True), only(whole=[1]),
        lambda records: [records[0], *[{**records[1], "segments": [0, 1]}] * 4],
        lambda records: [records[0], records[1], {**records[2], "segments": [0, 3]}],
        lambda records: [records[0], {"measured": [[], 0], "numbers": []}, {"measured": 3}, {"measured": [0, "a"]}],
        lambda records: [records[0], {"measured": [0, "a.weight"], "numbers": [[1], [2, 3]]}, {}, {"job": 0}],
    ],
)  # fmt: skip
def test_records_that_no_run_has_written_are_work_to_be_done(left, change):
    (left / "m.partial/model.safetensors").write_bytes(bytes(len(corpus()["m.partial/model.safetensors"])))
    rewrite(left / "m.partial/.journal", change)
    out = merge_long(left, resume=True)
    check_merged(left, out, "long-base", "long-agent")
    assert streammerge.verify(out, [left / "long-base", left / "long-agent"], share=1.0).problems == ()


@pytest.mark.parametrize("first", [{}, {"run": None}, {"run": []}, {"run": {"versions": "x" * 9000}}, {"job": 0}])
def test_a_journal_of_nothing_known_is_of_another_run(left, first):
    rewrite(left / "m.partial/.journal", lambda records: [first, *records[1:]])
    with pytest.raises(UnfinishedError, match="of another merge") as caught:
        merge_long(left)
    assert len(str(caught.value)) < 1000
    check_merged(left, merge_long(left, overwrite=True), "long-base", "long-agent")


@pytest.mark.parametrize("text", [b"[]", b"0", b"{", b'{"a": 1, "a": 2}', b"[" * 2000, b'{"a":' + b"9" * 5000 + b"}"])
def test_a_line_that_is_no_object_ends_a_journal(tmp_path, text):
    (tmp_path / ".journal").write_bytes(crc_line(b'{"run":1}') + b"\n" + crc_line(text) + b"\n")
    assert list(read_journal(tmp_path)) == [{"run": 1}]


def test_a_line_without_end_is_not_read_to_its_end(tmp_path):
    (tmp_path / ".journal").touch()
    os.truncate(tmp_path / ".journal", 2**40)
    assert list(read_journal(tmp_path)) == []


@needs_fifo
@pytest.mark.parametrize("name", [".journal", ".lock", "model.safetensors"])
def test_pipes_in_an_unfinished_output_block_nobody(left, name):
    (left / "m.partial" / name).unlink()
    os.mkfifo(left / "m.partial" / name)
    try:
        out = merge_long(left, resume=True)
    except OutputError as error:
        assert name == "model.safetensors" and "no regular file" in str(error)
        out = merge_long(left, overwrite=True)
    check_merged(left, out, "long-base", "long-agent")


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("name", [".journal", ".lock", "model.safetensors", "."])
def test_links_in_an_unfinished_output_are_not_written_through(left, name, options):
    place = left / "m.partial" / name
    place.rename(left / "elsewhere")
    if name == "model.safetensors":
        (left / "elsewhere").write_bytes(b"\xa5" * (left / "elsewhere").stat().st_size)
    place.symlink_to(left / "elsewhere")
    before = {p: p.read_bytes() for p in [left / "elsewhere", *(left / "elsewhere").rglob("*")] if p.is_file()}
    if name in (".lock", "."):
        with pytest.raises(OutputError, match="link"):
            merge_long(left, **options)
    else:
        try:
            merge_long(left, **options)
        except OutputError:
            assert not options.get("overwrite")
    assert {p: p.read_bytes() for p in before} == before
    assert set((left / "elsewhere").rglob("*")) <= before.keys()


# --- manifests -------------------------------------------------------------------------------------------------------


def edited(left, *keys, value):
    """The merged folder, with a value of its manifest replaced; None removes it."""
    path = left / "merged" / MANIFEST
    facts = json.loads(path.read_text())
    inner = facts
    for key in keys[:-1]:
        inner = inner[key if isinstance(inner, list) or key in inner else next(iter(inner))]
    last = keys[-1] if keys[-1] != "*" else next(iter(inner))
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(facts))
    return left / "merged"


@pytest.mark.parametrize("key", ["recipe", "inputs", "beside", "files", "tensors", "companions", "non_finite"])
@pytest.mark.parametrize("value", [None, 1.5, "x", [[]]])
def test_a_manifest_without_what_is_needed_is_refused(left, key, value):
    with pytest.raises(FormatError, match=f"{key}'"):
        streammerge.verify(edited(left, key, value=value))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("tensors", "*"), 3), (("tensors", "*", "segment"), 0), (("tensors", "*", "segment"), -1),
        (("tensors", "*", "segment"), 1), (("tensors", "*", "segment"), 1.5), (("tensors", "*", "parts"), [-1]),
        (("tensors", "*", "parts"), 7), (("tensors", "*", "checksum"), []), (("tensors", "a\nb"), {}),
        (("files", "*"), []), (("files", "*", "size"), "x"), (("files", "*", "header_size"), 2**62),
        (("files", "*", "header"), None), (("inputs", 0), 3), (("inputs", 0, "files"), None),
        (("companions", "config.json"), 5),
    ],
)  # fmt: skip
def test_a_manifest_of_nonsense_is_refused(left, keys, value):
    with pytest.raises(FormatError, match=f"'{keys[0]}': what it says of"):
        streammerge.verify(edited(left, *keys, value=value))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", "..", ".", "", "a\0b", "x" * 300])
@pytest.mark.parametrize("key", ["files", "companions"])
def test_no_name_in_a_manifest_leads_out_of_the_folder(left, key, name):
    (left / "outside").write_text("secret")
    facts = {"size": 6, "header_size": 6, "header": ""} if key == "files" else ""
    with pytest.raises(FormatError, match="what it says of"):
        streammerge.verify(edited(left, key, name, value=facts))


@pytest.mark.parametrize(("field", "value"), [("parts", [8]), ("parts", [10**15]), ("parts", []), ("segment", 8195)])
def test_a_tensor_that_is_cut_otherwise_is_a_problem(left, field, value):
    problems = streammerge.verify(edited(left, "tensors", "*", field, value=value)).problems
    assert len(problems) == 1 and "not cut into segments as the manifest says" in problems[0]


def test_a_segment_that_would_take_all_memory_is_refused(left):
    out = edited(left, "tensors", "*", "segment", value=2**40)
    assert not streammerge.verify(out).problems  # of a small tensor it is all of it
    with pytest.raises(FormatError, match="what it says of"):
        streammerge.verify(edited(left, "tensors", "*", "parts", value=[2**40]))


def test_the_recipe_of_a_manifest_reads_no_other_models(left):
    models = [left / "base", left / "agent"]
    other = str(left / "wide")
    out = edited(left, "recipe", "models", value=[{"model": other}])
    with pytest.raises(RecipeError, match="of other models than its inputs"):
        streammerge.verify(out, models)
    facts = json.loads(corpus()[f"merged/{MANIFEST}"])
    for own in (3, {"imatrix": 3}, {"imatrix": ["x"]}):
        facts["recipe"]["streammerge"] = own
        with pytest.raises(RecipeError, match="cannot be understood"):
            recipe_again(facts, models, imatrix=None, gguf_template=None)


def test_a_recipe_that_gives_other_tensors_is_a_problem(left):
    out = edited(left, "recipe", "out_dtype", value="bfloat16")
    (problem,) = streammerge.verify(out, [left / "base", left / "agent"]).problems
    assert "gives other tensors" in problem


# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        [b"[]"], [b"\xff"], [b'{"measured": [0, "lm_head.weight"], "numbers": [[1, 2, 3]]}'],
        [b'{"measured": [0, "lm_head.weight"], "numbers": "x"}'], [b'{"measured": 0, "numbers": 0}'],
        [b'{"measured": [0, "lm_head.weight"], "numbers": [[-5, -5]]}'],
        [b'{"measured": [0, "lm_head.weight"], "numbers": [[9000000000000000000, 0]]}'],
        [b'{"measured": [0, "lm_head.weight"], "numbers": [[Infinity, 0]]}'],
        [b'{"measured": [0, "lm_head.weight"], "numbers": [[99999999999999999999, 0]]}'],
        [b'{"job": 0, "segments": [0, 1]}'], [b"{}"],
    ],
)  # fmt: skip
def test_statistics_that_cannot_be_are_measured_again(left, monkeypatch, lines):
    monkeypatch.setattr("streammerge.statistics.FOLDER", left / "statistics")
    (file,) = (left / "statistics").iterdir()
    whole = list(read_records(file))
    file.write_bytes(b"".join(crc_line(line) + b"\n" for line in lines))
    streammerge.merge(left / "base", [left / "agent"], left / "again", method="ram+", max_shard_size="20KB")
    for path in (left / "again").glob("*.safetensors"):
        assert path.read_bytes() == (left / "merged" / path.name).read_bytes()
    assert all(record in list(read_records(file)) for record in whole)


# --- vocabulary ------------------------------------------------------------------------------------------------------


def test_a_comparison_of_tokenizers_that_takes_for_ever_is_stopped(left, monkeypatch):
    monkeypatch.setattr(tokens, "_SECONDS", 0.001)
    with pytest.raises(FormatError, match="takes longer than"):
        tokens.compare_tokenizers([left / "base/tokenizer.json", left / "wide/tokenizer.json"])


@pytest.mark.parametrize("merges", [3, [3], {"a": 1}, True])
def test_merges_that_are_no_pairs_are_named(left, merges):
    file = left / "wide/tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = merges
    file.write_text(json.dumps(content))
    if merges == {"a": 1}:
        assert tokens.compare_tokenizers([file, file]).conflict is None
        return
    with pytest.raises(FormatError, match=r"wide/tokenizer\.json: model\.merges"):
        tokens.compare_tokenizers([left / "base/tokenizer.json", file])


@pytest.mark.skipif(sys.platform == "win32", reason="holes")
def test_the_tokenizer_files_of_an_agent_are_in_the_space_that_is_needed(left):
    """They were copied until the disk was full."""
    (left / "wide/chat_template.json").unlink()
    (left / "wide/chat_template.json").touch()
    os.truncate(left / "wide/chat_template.json", 2**42)
    with pytest.raises(OutputError, match="needs .* free"):
        streammerge.plan(left / "base", [left / "agent", left / "wide"], left / "new", method="ram")
