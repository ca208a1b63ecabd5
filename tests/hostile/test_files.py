"""Files made to do harm, by name: headers, names, links, and what is no file at all."""

import json
import os
import subprocess
import sys

import pytest
import yaml

import streammerge
from streammerge.checkpoint import open_checkpoint
from streammerge.errors import BudgetError, FormatError, OutputError, RecipeError
from streammerge.formats.inputs import MAX_VALUES, parse_json, read_json
from streammerge.formats.safetensors import INDEX, MAX_HEADER, MAX_TENSORS, read_header
from streammerge.gguf.imatrix import read_imatrix
from streammerge.mergekit_yaml import read_yaml
from tests.conftest import save_tensors
from tests.formats.test_safetensors import entry, raw_file
from tests.gguf.merging import PRE
from tests.hostile.conftest import merged, refused

needs_fifo = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
HUGE = int("9" * 4000)


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": entry(shape=(HUGE, HUGE))}, "not a list of sizes"),  # its product cannot even be printed
        ({"a": entry(shape=[2**62] * 60)}, "more than any file can hold"),
        ({"a": entry(shape=(0, 2**62, 2**62))}, "more than any file can hold"),  # what overflows elsewhere, times 0
        ({"a": entry(shape=[1] * 65)}, "not a list of sizes"),
        ({"a": entry(0, HUGE)}, "are not two positions"),
        ({"a": entry(shape=(1e999,))}, "not a list of sizes"),
        ({"a": entry(dtype="x" * 10**6)}, "is not known"),
        ({"a" * 1001: entry()}, "not a usable name"),
        ({"a\x1b[31m": entry()}, r"'a\\x1b\[31m'.*not a usable name"),
        ({"a\nb": entry()}, "not a usable name"),
        ({"\ud800": entry()}, "not a usable name"),
        (b'{"a": ' + b"[" * 110 + b"]" * 110 + b"}", "nested deeper than 100"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"' + b"[" * MAX_VALUES + b'": 1}', "holds about 1400002 JSON values"),
    ],
)
def test_headers_that_lie_are_refused_in_one_short_line(tmp_path, header, said):
    path = raw_file(tmp_path / "bad.safetensors", header, bytes(8))
    with pytest.raises(FormatError, match=said) as caught:
        read_header(path)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))


def test_a_name_that_stands_twice_among_many_is_found_at_once(tmp_path):
    """It was looked for by counting each name: minutes."""
    raw = b"{" + b",".join(b'"%d": 0' % number for number in [*range(100_000), 99_999]) + b"}"
    with pytest.raises(FormatError, match="'99999' stands twice"):
        parse_json(tmp_path / "x", raw)


MEASURE = """
import sys
from pathlib import Path
from streammerge import budget
from streammerge.checkpoint import open_checkpoint
from streammerge.errors import FormatError
before = budget.peak()
try:
    open_checkpoint(Path(sys.argv[1]))
except FormatError as error:
    print(str(error)[-300:])
print((budget.peak() - before) >> 20)
"""


def many(count):
    """A header of so many tensors of one byte."""
    one = '"model.layers.%d.mlp.experts.%d.down_proj.weight":{"dtype":"U8","shape":[1,1],"data_offsets":[%d,%d]}'
    return ("{" + ",".join(one % (n // 1000, n, n, n + 1) for n in range(count)) + "}").encode()


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (many(115_000), 115_000, ""),
        (many(118_000), 118_000, "JSON values, more than the 1400000"),
        (b" " * (MAX_HEADER + 1), 0, "exceeds"),
        (b'{"a":[' + b"[]," * (MAX_VALUES // 2 - 3) + b"[]]}", 0, "not an object"),
        (b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(MAX_VALUES // 2 - 9)) + b"}}", 0, "no tensors"),
        ('{"😀%s":{}}'.encode() % (b"a" * (MAX_HEADER - 20)), 0, "not a usable name"),
    ],
    ids=["most tensors", "more tensors", "longer", "lists", "metadata", "a character of four bytes"],
)
def test_the_largest_headers_take_less_than_200_mb(tmp_path, header, data, said):
    path = raw_file(tmp_path / "large.safetensors", header, bytes(data))
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True)
    *words, grown = done.stdout.splitlines()
    assert said in " ".join(words) and bool(words) == bool(said), done.stdout + done.stderr
    assert int(grown) < 200


def test_more_tensors_than_any_model_has(tmp_path, monkeypatch):
    assert MAX_TENSORS == 150_000
    monkeypatch.setattr("streammerge.formats.safetensors.MAX_TENSORS", 3)
    for number in range(4):
        save_tensors(tmp_path / f"m-{number}.safetensors", {f"t{number}": ("U8", (1,), b"\1")})
    with pytest.raises(FormatError, match="more than 3 tensors"):
        open_checkpoint(tmp_path)


def test_many_links_to_one_header_without_tensors_end_at_the_first(tmp_path):
    raw_file(tmp_path / "large", b'{"__metadata__": {}}')
    names = [f"{number}.safetensors" for number in range(100)]
    for name in names:
        (tmp_path / name).symlink_to("large")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {name: name for name in names}}))
    with pytest.raises(FormatError, match=r"0\.safetensors: holds no tensors"):
        open_checkpoint(tmp_path)


# --- names of files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../m.safetensors", "/etc/passwd", "a\0b", "\ud800", "", "a\\b", "x/../../m", "\x1b[2J"]
)
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, name):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"t": name}}))
    with pytest.raises(FormatError, match="leads out of the folder, or is none"):
        open_checkpoint(tmp_path)


def test_a_name_that_is_too_long_is_no_traceback(tmp_path, pair):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"t": "a" * 900}}))
    with pytest.raises(FormatError, match="cannot be read: File name too long"):
        open_checkpoint(tmp_path)
    base, agent = pair
    refused("cannot be read: File name too long", tmp_path / ("a" * 300), agent)
    refused("cannot be read: embedded null byte", tmp_path / "a\0b", agent)
    refused("cannot be the place of an output: File name too long", base, agent, tmp_path / ("a" * 300))
    refused("cannot be the place of an output", base, agent, tmp_path / "a\0b")
    (tmp_path / "loop").symlink_to("loop")
    refused("exists already|cannot be the place", base, agent, tmp_path / "loop")
    refused("Too many levels of symbolic links", tmp_path / "loop", agent)


@pytest.mark.parametrize("label", ["../../../evil", "a\0b", "/etc/x", "\x1b[2J"])
def test_a_size_label_does_not_name_a_file_elsewhere(llama, tmp_path, label):
    base, agent = llama
    (base / "README.md").write_text(f"---\n{yaml.safe_dump({'size_label': label})}---\n")
    refused("the file in it would be called", base, agent, tmp_path / "deep" / "out", quantize="Q8_0", **PRE)


# --- what is no file -------------------------------------------------------------------------------------------------


@needs_fifo
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("config.json", {}),
        (INDEX, {}),
        ("model.safetensors", {}),
        ("notes.txt", {}),
        ("tokenizer_config.json", PRE),
        ("README.md", PRE),
        ("generation_config.json", PRE),
        ("special_tokens_map.json", PRE),
        ("chat_template.jinja", PRE),
        ("additional_chat_templates/tool.jinja", PRE),
        ("tokenizer.json", PRE),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(llama, tmp_path, name, options, kind):
    base, agent = llama
    place = base / name
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero")
    said = "not a regular file|neither a file nor a folder|folder"
    if options:
        refused(said, base, agent, tmp_path / "o.gguf", quantize="Q8_0", **options)
    elif kind != "folder" or name != "notes.txt":  # any other folder is one more to copy
        refused(said, base, agent, tmp_path / "o")


@needs_fifo
def test_pipes_on_the_command_line(llama, tmp_path):
    base, agent = llama
    os.mkfifo(tmp_path / "pipe")
    given = {"quantize": "Q4_0", **PRE}
    refused("not a regular file", base, agent, tmp_path / "o.gguf", imatrix=tmp_path / "pipe", **given)
    refused("is not a file", base, agent, tmp_path / "o.gguf", gguf_template=tmp_path / "pipe", quantize="Q4_0")
    refused("not a file or folder", tmp_path / "pipe", agent)
    with pytest.raises(RecipeError, match="not a regular file"):
        read_yaml(tmp_path / "pipe")


def test_a_file_without_an_end_is_not_read(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(FormatError, match="is 1099511627776 bytes long, more than the 16777216"):
        read_json(tmp_path / "config.json")
    with pytest.raises(BudgetError, match="1 TiB long and is kept in memory, of which 1 GiB are allowed"):
        read_imatrix(tmp_path / "config.json", 1 << 30)


def test_a_tokenizer_without_an_end_is_not_hashed(llama, tmp_path):
    base, agent = llama
    os.truncate(base / "tokenizer.json", 2**40)
    refused("tokenizer.json: is 1099511627776 bytes long, more than the 67108864", base, agent, tmp_path / "out")


# --- what is copied --------------------------------------------------------------------------------------------------


def test_a_link_out_of_the_model_is_not_copied_into_what_is_published(pair, tmp_path):
    base, agent = pair
    (tmp_path / "secret").write_text("secret")
    for target in (tmp_path / "secret", "/etc/passwd", "../secret"):
        (base / "notes.txt").unlink(missing_ok=True)
        (base / "notes.txt").symlink_to(target)
        refused("is a link to .*, outside of the model", base, agent, tmp_path / "out")
    (base / "notes.txt").unlink()
    (base / "more").symlink_to(tmp_path)
    refused("is a link to a folder", base, agent, tmp_path / "out")
    (base / "more").unlink()
    (base / "gone").symlink_to("nothing")
    refused("is a link to nothing", base, agent, tmp_path / "out")
    (base / "gone").unlink()
    (base / "round").symlink_to(".")
    refused("is a link to a folder", base, agent, tmp_path / "out")


def test_links_inside_of_a_model_and_those_of_the_hub_are_followed(pair, tmp_path):
    base, agent = pair
    (base / "a.txt").write_text("a")
    (base / "b.txt").symlink_to("a.txt")
    assert (merged(pair, tmp_path) / "b.txt").read_text() == "a"
    hub = tmp_path / "hub" / "models--org--model"
    (hub / "blobs").mkdir(parents=True)
    snapshot = hub / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (base / "b.txt").unlink()
    for file in base.iterdir():
        file.rename(hub / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert (merged((snapshot, agent), tmp_path / "second") / "a.txt").read_text() == "a"


def test_weights_may_be_linked_from_anywhere(pair, tmp_path):
    base, agent = pair
    farm = tmp_path / "farm"
    farm.mkdir()
    (farm / "model.safetensors").symlink_to(base / "model.safetensors")
    assert (merged((farm, agent), tmp_path) / "model.safetensors").is_file()


def test_a_folder_without_an_end_is_refused(pair, tmp_path):
    base, agent = pair
    (base / ("d/" * 20)).mkdir(parents=True)
    refused("nested deeper than 16", base, agent, tmp_path / "out")


def test_a_file_that_would_fill_the_disk_is_counted(pair, tmp_path):
    base, agent = pair
    with open(base / "notes.txt", "wb") as file:
        file.truncate(2**43)
    refused("needs 8 TiB", base, agent, tmp_path / "out")


def test_a_folder_called_like_the_output_is_no_traceback(pair, tmp_path):
    base, agent = pair
    (base / "model.safetensors").rename(base / "w.safetensors")
    names = [info.name for info in read_header(base / "w.safetensors")]
    (base / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "w.safetensors")}))
    (base / "model.safetensors").mkdir()
    (base / "model.safetensors" / "notes.txt").write_text("notes")
    with pytest.raises(OutputError, match="model.safetensors: cannot be made for .*notes.txt"):
        streammerge.merge(base, [agent], tmp_path / "out", method="ram")
    assert not (tmp_path / "out").exists()


def test_the_manifest_of_a_base_that_was_merged_itself_is_not_copied(pair, tmp_path):
    _, agent = pair
    first = merged(pair, tmp_path)
    assert merged((first, agent), tmp_path / "second").is_dir()


def test_nothing_in_a_model_is_run(pair, tmp_path):
    """Code beside weights is copied as it is, pickles are not even opened."""
    base, _ = pair
    (base / "modeling_x.py").write_text("raise SystemExit")
    (base / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling_x.Model"}}))
    (base / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch evil'\ntR.")
    out = merged(pair, tmp_path)
    assert (out / "modeling_x.py").read_text() == "raise SystemExit"
    assert not (out / "pytorch_model.bin").exists()
