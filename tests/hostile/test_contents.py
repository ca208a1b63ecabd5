"""Contents made to do harm, by name: configuration, tokenizers, cards, recipes, and names where they are shown."""

import json
import os
import struct
import sys

import numpy as np
import pytest
import yaml

import streammerge
from streammerge import budget
from streammerge.cli import main
from streammerge.errors import FormatError, RecipeError, StreammergeError
from streammerge.escape import code, markdown, printable
from streammerge.formats.gguf import GgufSource
from streammerge.formats.inputs import MAX_DEPTH, read_input
from streammerge.gguf.imatrix import read_imatrix
from streammerge.gguf.llama import read_llama, rope_factors
from streammerge.gguf.metadata import general_key_values
from streammerge.gguf.pretokenizer import Recognition
from streammerge.gguf.tokenizer import tokenizer_key_values
from streammerge.mergekit_yaml import read_yaml
from streammerge.tokens import compare_tokenizers
from streammerge.yamltext import parse_yaml
from tests.conftest import save_floats
from tests.fuzz.corpus import corpus
from tests.gguf.checkpoints import tokenizer
from tests.gguf.merging import PRE
from tests.hostile.conftest import change, merged, refused

HUGE = int("9" * 4000)


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


def test_half_of_a_pair_in_a_config_is_written_as_it_was(pair, tmp_path):
    base, _ = pair
    (base / "config.json").write_text('{"torch_dtype": "float16", "x": "\\udc80"}')
    assert json.loads((merged(pair, tmp_path) / "config.json").read_text())["x"] == "\udc80"


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


def test_what_the_gguf_package_thinks_of_a_model_card_is_not_printed(llama, caplog):
    base, _ = llama
    (base / "README.md").write_text("---\nbase_model: [[a]]\n---\n")
    general_key_values(base, 1, name="m")
    assert caplog.records == []


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


def test_a_long_key_of_a_gguf_file_is_not_read(tmp_path):
    """Shown in an error, a key of 60 MB took another 240 MB."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 60 << 20))
    os.truncate(path, 2**40)
    with pytest.raises(FormatError, match="has 62914560 bytes, at most 65535 are read"):
        GgufSource(path)


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
    with pytest.raises(RecipeError, match=said) as caught:
        parse_yaml(tmp_path / "r.yml", text)
    assert len(str(caught.value)) < 1000
    (tmp_path / "r.yml").write_text(text)
    with pytest.raises(RecipeError, match=r"r\.yml") as caught:
        read_yaml(tmp_path / "r.yml")
    assert len(str(caught.value)) < 1000


def test_an_alias_of_a_value_is_its_value(tmp_path):
    assert parse_yaml(tmp_path, "a: &a {x: [1, 2]}\nb: *a") == {"a": {"x": [1, 2]}, "b": {"x": [1, 2]}}


def test_a_long_dtype_is_not_repeated_in_full(pair):
    base, agent = pair
    with pytest.raises(RecipeError, match="unknown dtype 'aaa") as caught:
        streammerge.plan(base, [agent], dtype="a" * 10_000)
    assert len(str(caught.value)) < 300


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


# --- code ------------------------------------------------------------------------------------------------------------


def test_no_process_of_ours_imports_from_the_folder_that_one_stands_in(tmp_path, monkeypatch):
    """Which may be a model that was just downloaded."""
    for name in ("json", "numpy", "struct", "tokenizers", "ctypes"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for name in ("a", "b"):
        (tmp_path / name).write_text(json.dumps(tokenizer(("<s>", "</s>")), indent="ab".index(name)))
    monkeypatch.chdir(tmp_path)
    assert compare_tokenizers([tmp_path / "a", tmp_path / "b"]).conflict is None
    with Recognition(tmp_path / "a") as recognition, pytest.raises(StreammergeError, match="pre-tokenizer"):
        recognition.name()
    assert not (tmp_path / "ran").exists()
