"""Inputs made to do harm, by name. Each was seen to do it: a traceback, a hang, a large allocation, a foreign file."""

import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import yaml

import streammerge
from streammerge import budget
from streammerge.checkpoint import open_checkpoint
from streammerge.cli import main
from streammerge.errors import BudgetError, FormatError, OutputError, RecipeError, StreammergeError
from streammerge.escape import code, markdown, printable
from streammerge.formats.gguf import GgufSource
from streammerge.formats.inputs import MAX_DEPTH, MAX_VALUES, parse_json, read_input, read_json
from streammerge.formats.safetensors import INDEX, MAX_HEADER, MAX_TENSORS, read_header
from streammerge.gguf.imatrix import read_imatrix
from streammerge.gguf.llama import read_llama, rope_factors
from streammerge.gguf.metadata import general_key_values
from streammerge.gguf.tokenizer import tokenizer_key_values
from streammerge.recipe import read_yaml
from streammerge.yamltext import parse_yaml
from tests.conftest import save_floats, save_tensors
from tests.formats.test_safetensors import entry, raw_file
from tests.fuzz.corpus import corpus
from tests.gguf.checkpoints import tokenizer
from tests.gguf.merging import PRE

needs_fifo = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
HUGE = int("9" * 4000)


@pytest.fixture
def llama(tmp_path):
    """A whole tiny Llama with everything beside it, and an agent."""
    for path, raw in corpus().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(raw)
    return tmp_path / "base", tmp_path / "agent"


def change(path, **fields):
    """A JSON file with some fields replaced."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(said, base, agent, output=None, **options):
    with pytest.raises(StreammergeError, match=said) as caught:
        streammerge.plan(base, [agent], output, method="ram", **options)
    assert len(str(caught.value)) < 1000 and len(printable(str(caught.value)).splitlines()) == 1


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


# --- what is copied --------------------------------------------------------------------------------------------------


def merged(pair, tmp_path):
    base, agent = pair
    streammerge.merge(base, [agent], tmp_path / "out", method="ram")
    return tmp_path / "out"


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
    base, agent = pair
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


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [None, True, -1, 2**70, HUGE, 1.5, float("nan"), float("inf"), "", "\ud800", [], {}, [1]]
)
def test_any_value_of_any_key_is_an_error_of_ours_or_none(llama, tmp_path, value):
    base, agent = llama
    for file in ("config.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        whole = (base / file).read_text()
        more = ("text_config", "quantization_config", "rope_parameters", "chat_template", "added_tokens_decoder",
                "extra_special_tokens", "top_k", "_name_or_path")  # fmt: skip
        keys = dict.fromkeys((*json.loads(whole), *more))
        for key in keys:
            (base / file).write_text(json.dumps({**json.loads(whole), key: value}))
            for output, given in ((tmp_path / "o", {}), (tmp_path / "o.gguf", {"quantize": "Q8_0", **PRE})):
                try:
                    streammerge.plan(base, [agent], output, method="ram", **given)
                except StreammergeError as error:
                    assert len(str(error)) < 1500
        (base / file).write_text(whole)


def test_layers_and_sizes_that_are_not_there_are_not_believed(llama, tmp_path):
    """Names were listed for 2,000,000,000 layers, factors computed for a head of 2,000,000,000 rows."""
    base, agent = llama
    config = json.loads((base / "config.json").read_text())
    for key, said in (("head_dim", "up to 65536"), ("vocab_size", "up to 2000000")):
        with pytest.raises(FormatError, match=said):
            read_llama({**config, key: 2_000_000_000})
    tensors = {"model.layers.1999999999.x.weight": np.ones((2, 32), "f4")}
    for folder in (base, agent):
        save_floats(folder, tensors)
    change(base / "config.json", num_hidden_layers=2_000_000_000)
    refused("num_hidden_layers is 2000000000", base, agent, tmp_path / "o.gguf", quantize="Q8_0", **PRE)


def test_rope_factors_that_are_no_numbers_are_refused():
    config = json.loads(corpus()["base/config.json"])
    config["rope_scaling"]["factor"] = 1e-40
    with pytest.raises(FormatError, match="divides frequencies by 0 or infinity"):
        rope_factors(read_llama(config))


def test_json_as_deep_as_allowed_is_written_again(pair, tmp_path):
    base, _ = pair
    deep = None
    for _ in range(MAX_DEPTH - 2):
        deep = [deep]
    (base / "config.json").write_text(json.dumps({"torch_dtype": "float16", "x": deep}))
    assert json.loads((merged(pair, tmp_path) / "config.json").read_text())["x"] == deep


# --- tokenizer, model card, template, importance matrix --------------------------------------------------------------


def test_many_added_tokens_are_counted_once(tmp_path):
    """The union of two large tables was made anew for each of them."""
    made = tokenizer(("<s>",))
    made["model"]["vocab"] |= {f"w{number}": number + 100 for number in range(30_000)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    decoder = {str(number): {"content": f"x{number}"} for number in range(30_000)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    with pytest.raises(FormatError, match="has the id"):
        tokenizer_key_values(tmp_path, {}, 30_200, "llama-bpe")
    pairs = {pair.key: pair for pair in tokenizer_key_values(tmp_path, {}, 70_000, "llama-bpe")}
    assert pairs["tokenizer.ggml.tokens"].value[-1] == "[PAD69999]"


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [" + "*c, " * 5000 + "]", "more than 20000 values"),
        ("base_model: [{name: 3}]\ntags: [1, a]", "cannot be written to a GGUF file"),
        ("name: [a]", None),  # the merge has its own
        ("license: [1]", "cannot be written to a GGUF file"),
        ("a: !!int ''", "cannot be read as YAML"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_model_card_that_the_gguf_package_would_choke_on(llama, card, said):
    base, _ = llama
    (base / "README.md").write_text(f"---\n{card}\n---\n")
    if said is None:
        general_key_values(base, 1, name="m")
    else:
        with pytest.raises(FormatError, match=said):
            general_key_values(base, 1, name="m")


def test_a_model_card_does_not_reach_the_terminal(llama, capfd):
    base, _ = llama
    (base / "README.md").write_text('---\nbase_model: [["\\e[2J"]]\n---\n')
    general_key_values(base, 1, name="m")
    assert capfd.readouterr() == ("", "")


def gguf_with(path, counts=(0, 1), value=b""):
    key = b"k"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + struct.pack("<Q", len(key)) + key + value)
    return path


@pytest.mark.parametrize(
    ("counts", "value", "hole", "said"),
    [
        ((150_001, 0), b"", 2**40, "at most 150000, 65536 are read"),
        ((0, 65_537), b"", 2**40, "at most 150000, 65536 are read"),
        ((0, 1), struct.pack("<IIQ", 9, 0, 2_000_001), 2**40, "at most 2000000 are read"),
        ((0, 1), struct.pack("<IQ", 8, 2**36), 2**40, "longer than the 67108864 bytes"),
        ((0, 2**15), struct.pack("<IIQ", 9, 8, 2_000_000) * 2, 2**40, "or 4000000 values|stands twice"),
    ],
)
def test_counts_in_a_gguf_file_are_not_believed_because_a_hole_is_large_enough(tmp_path, counts, value, hole, said):
    path = gguf_with(tmp_path / "m.gguf", counts, value)
    os.truncate(path, hole)
    before = budget.peak()
    with pytest.raises(FormatError, match=said):
        GgufSource(path)
    assert budget.peak() - before < 100 << 20


def test_an_importance_matrix_of_many_empty_entries(tmp_path):
    (tmp_path / "i.dat").write_bytes(struct.pack("<i", 2**31 - 1) + bytes(1 << 20))
    with pytest.raises(FormatError, match="2147483647 entries, at most 150000"):
        read_imatrix(tmp_path / "i.dat", 1 << 30)


# --- recipes ---------------------------------------------------------------------------------------------------------


def laughs(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (laughs(12), "more than 20000 values, aliases written out"),
        ("a: &a\n  b: *a", "more than 20000 values"),
        ("a: &a {x: 1}\nb: &b {<<: [" + "*a, " * 9000 + "]}\nc: {<<: [*b, *b]}", "more than 20000 values"),
        ("[" * 3000, "RecursionError"),
        ("a: " + "1" * 5000, "ValueError"),
        ("a: 2001-99-99", "ValueError"),
        ("a: !!bool maybe", "KeyError"),
        ("a: !!int ''", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.system ['touch evil']", "could not determine a constructor"),
        ("a: \0", "special characters are not allowed"),
        ("x" * (1 << 20 | 1), "at most 1048576 are read"),
    ],
)
def test_yaml_does_not_grow_and_runs_nothing(tmp_path, text, said):
    (tmp_path / "r.yml").write_text(text)
    with pytest.raises(RecipeError, match=said) as caught:
        read_yaml(tmp_path / "r.yml")
    assert len(str(caught.value)) < 1000


def test_an_alias_of_a_value_is_its_value(tmp_path):
    assert parse_yaml(tmp_path, "a: &a {x: [1, 2]}\nb: *a") == {"a": {"x": [1, 2]}, "b": {"x": [1, 2]}}


@pytest.mark.parametrize("value", ["1" * 400, [10**400], 10**400, "a" * 10_000, [["a"] * 1000] * 10])
def test_parameters_that_are_no_numbers(pair, value):
    base, agent = pair
    with pytest.raises(RecipeError, match="is not a number|out of range") as caught:
        streammerge.plan(base, [agent], method="ram", parameters={"epsilon": value})
    assert len(str(caught.value)) < 300


# --- what is printed and quoted --------------------------------------------------------------------------------------


def test_text_from_elsewhere_is_shown_not_obeyed():
    assert printable("a\x1b[2J\n\u202eb\ud800ü") == r"a\x1b[2J\n\u202eb\ud800ü"
    assert markdown("a|b`<script>*_[x](y)&amp;") == r"a\|b\`&lt;script&gt;\*\_\[x\](y)&amp;amp;"
    assert code("plain") == "`plain`"
    assert code("a`b``c`") == "``` a`b``c` ```"


EVIL = "evil`|<script>alert(1)</script> ``` \n---\n# x"


def test_a_model_card_shows_names_and_nothing_of_them_is_markup(tmp_path):
    rng = np.random.default_rng(0)
    name = "a`</code><img src=x onerror=alert(1)>|"
    weights = {"w": rng.standard_normal(64).astype("f4"), name: np.ones(4, "f4")}
    base = save_floats(tmp_path / "base", weights)
    agent = save_floats(tmp_path / (EVIL.replace("/", "_") + "y" * 60), {n: w + 1 for n, w in weights.items()})
    streammerge.merge(base, [agent], tmp_path / "o<b>ut", method="ram", exclude=["onerror"])
    card = (tmp_path / "o<b>ut" / "README.md").read_text()
    head, front, body = card.split("---\n", 2)
    assert head == "" and yaml.safe_load(front)["base_model"][1].startswith("evil`|<script>")
    assert "# o&lt;b&gt;ut" in body
    before, block, after = body.split("```yaml\n")[0], *body.split("```yaml\n")[1].split("\n```\n", 1)
    assert yaml.safe_load(block)["base_model"] == "base"
    assert "<" not in before + after.replace(f"`` {name} ``", "") and f"- `` {name} ``: excluded" in after
    row = next(line for line in after.splitlines() if line.startswith("| evil"))
    assert row.count("|") - row.count("\\|") == 5 and "\\`" in row


def test_the_terminal_is_not_steered_by_names(tmp_path, capsys, monkeypatch):
    base = tmp_path / "ba\x1b[31mse"
    monkeypatch.setattr(sys, "argv", ["streammerge", "plan", str(base), str(tmp_path / "two\nlines")])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "\x1b" not in said and r"ba\x1b[31mse" in said


def test_a_whole_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "f").write_bytes(b"12345")
    assert read_input(tmp_path / "f", 5) == b"12345"
    with pytest.raises(FormatError, match="is 5 bytes long, more than the 4"):
        read_input(tmp_path / "f", 4)
