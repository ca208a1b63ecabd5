"""The types that the policy chooses, compared with recorded choices of llama.cpp and, if it is there, with itself.

``python -m tests.gguf.test_policy`` records them anew.
"""

import json
from itertools import groupby
from pathlib import Path

import pytest

from streammerge.errors import RecipeError
from streammerge.formats.contract import OutputTensor
from streammerge.formats.gguf import key_value, layout
from streammerge.gguf.policy import (
    FILE_TYPES,
    ModelFacts,
    choose_types,
    find_file_type,
    find_tensor_type,
    fit_to_row,
    may_quantize,
    model_facts,
    quantized_key_values,
)
from tests.gguf.models import Shape, llama_quantize, write_gguf

RECORDED = Path(__file__).parent / "types.json"
SHAPES = {
    "tied": Shape(3),
    "untied": Shape(9, tied=False),
    "gqa": Shape(17, heads=8, kv_heads=2, tied=False),
    "multi-query": Shape(33, heads=8, kv_heads=1),
    "rows of 32": Shape(8, hidden=96, feed=288, heads=3, kv_heads=1, tied=False),
    "mixed rows": Shape(8, hidden=576, feed=1536, heads=9, kv_heads=3),
    "odd rows": Shape(2, hidden=40, feed=72, heads=2, kv_heads=1, tied=False),
    "70B": Shape(80, heads=8, kv_heads=1, tied=False, hidden=256, feed=256),
    "65B": Shape(80, heads=4, kv_heads=4, tied=False, hidden=256, feed=256),
    "8 experts": Shape(16, experts=8, tied=False, kv_heads=1, feed=256),
    "4 experts": Shape(9, experts=4, kv_heads=2, feed=256),
    "falcon": Shape(17, architecture="falcon", kv_heads=1, tied=False),
    "qwen2 70B": Shape(80, architecture="qwen2", heads=8, kv_heads=1, feed=256, tied=False),
}
NAMED = {"attn_v": "Q8_0", r"ffn_(up|gate)": "Q5_0", r"blk\.[0-3]\.": "BF16"}
OPTIONS = {
    "": {},
    "imatrix": {"imatrix": True},
    "pure": {"pure": True},
    "named": {"tensor_types": NAMED},
    "ends": {"output": "Q8_0", "embedding": "Q4_0"},
    "head": {"output": "BF16"},
}


def cases():
    """Every file type on every shape (on large ones those that tell them apart); every option on two shapes."""
    for shape in SHAPES:
        large = SHAPES[shape].layers == 80
        for file_type in ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "IQ4_XS") if large else FILE_TYPES:
            yield shape, file_type, "imatrix" if file_type == "Q2_K_S" else ""
    for shape in ("gqa", "mixed rows"):
        for file_type in ("Q4_K_M", "Q4_0", "Q5_0", "Q2_K_S", "IQ4_XS", "Q8_0", "BF16", "TQ1_0", "MXFP4_MOE"):
            for option in OPTIONS:
                if option and not (file_type == "Q2_K_S" and option != "imatrix"):
                    yield shape, file_type, option


def chosen(shape, file_type, option):
    options, tensors = OPTIONS[option], SHAPES[shape].tensors(rows=2)
    return choose_types(
        tensors,
        FILE_TYPES[file_type],
        model_facts(SHAPES[shape].key_values()),
        imatrix={t.name for t in tensors} if options.get("imatrix") else None,
        pure=options.get("pure", False),
        tensor_types=options.get("tensor_types", {}).items(),
        output_tensor_type=options.get("output"),
        token_embedding_type=options.get("embedding"),
    )


def written_short(types):
    """'Q6_K Q4_K*3': the types of the matrices in order, repeated ones counted."""
    matrices = [kind for name, kind in types.items() if "norm" not in name]
    runs = [(kind, len(list(run))) for kind, run in groupby(matrices)]
    return " ".join(kind if count == 1 else f"{kind}*{count}" for kind, count in runs)


@pytest.mark.parametrize("shape", SHAPES)
def test_types_are_those_that_llama_quantize_was_recorded_to_choose(shape):
    recorded = json.loads(RECORDED.read_text())
    for name, file_type, option in cases():
        if name == shape:
            case = f"{shape}/{file_type}/{option}"
            assert written_short(chosen(shape, file_type, option)) == recorded[case], case


@pytest.mark.parametrize("shape", SHAPES)
def test_types_are_those_that_llama_quantize_chooses(tmp_path, shape):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: only recorded choices are compared")
    _, source = write_gguf(tmp_path, SHAPES[shape].tensors(rows=2), SHAPES[shape].key_values())
    for name, file_type, option in cases():
        if name == shape:
            theirs, _ = llama_quantize(source, tmp_path / "out.gguf", FILE_TYPES[file_type].number, **OPTIONS[option])
            assert list(chosen(shape, file_type, option).items()) == list(theirs.items()), (file_type, option)


@pytest.mark.parametrize("shape", ["untied", "odd rows", "8 experts"])
def test_the_header_is_the_one_that_llama_quantize_writes(tmp_path, shape):
    """Key-values, order, types, offsets and size: all of it is known before the first byte."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    sizes, file_type = SHAPES[shape], FILE_TYPES["Q4_K_M"]
    tensors = sizes.tensors(rows=2)
    pairs = [*sizes.key_values(), key_value("general.file_type", "u32", 0), key_value("last", "str", "one")]
    _, source = write_gguf(tmp_path, sorted(tensors, key=lambda tensor: tensor.name), pairs)
    llama_quantize(source, tmp_path / "out.gguf", file_type.number)
    types = choose_types(tensors, file_type, model_facts(pairs))
    outputs = [OutputTensor(t.name, types[t.name], t.shape) for t in tensors]
    (ours,) = layout(outputs, quantized_key_values(pairs, file_type))
    theirs = (tmp_path / "out.gguf").read_bytes()
    assert ours.header == theirs[: len(ours.header)]
    assert ours.size == len(theirs)


@pytest.mark.parametrize(
    ("text", "name"), [("q4_k_m", "Q4_K_M"), ("Q4_K", "Q4_K_M"), ("15", "Q4_K_M"), ("bf16", "BF16"), ("fp16", "F16")]
)
def test_a_file_type_is_found_by_name_alias_and_number(text, name):
    assert find_file_type(text).name == name


@pytest.mark.parametrize("name", ["IQ2_XS", "iq1_s", "IQ3_M", "NVFP4"])
def test_what_is_not_made_here_is_refused_with_the_two_commands(name):
    said = f"{name.upper()} is not made here.*streammerge .*BF16.*llama-quantize .*{name.upper()}"
    with pytest.raises(RecipeError, match=said):
        find_file_type(name)
    with pytest.raises(RecipeError, match="is not made here"):
        find_tensor_type("IQ2_XS")


def test_unknown_types_name_the_known_ones():
    with pytest.raises(RecipeError, match="unknown quantization 'Q9'; known are F32, F16"):
        find_file_type("Q9")
    with pytest.raises(RecipeError, match="unknown tensor type 'Q4_K_M'; Q4_K_M is a mixture for whole files"):
        find_tensor_type("Q4_K_M")


def test_q2_k_s_needs_an_importance_matrix_for_every_tensor():
    facts, tensors = model_facts(SHAPES["tied"].key_values()), SHAPES["tied"].tensors()
    with pytest.raises(RecipeError, match=r"'blk.0.attn_k.weight': Q2_K_S needs an importance matrix"):
        choose_types(tensors, FILE_TYPES["Q2_K_S"], facts)
    names = {t.name for t in tensors} - {"blk.1.attn_q.weight"}
    with pytest.raises(RecipeError, match=r"'blk.1.attn_q.weight'.*none for this tensor"):
        choose_types(tensors, FILE_TYPES["Q2_K_S"], facts, imatrix=names)


def test_wrong_options_are_refused():
    facts, tensors = model_facts(SHAPES["odd rows"].key_values()), SHAPES["odd rows"].tensors()
    with pytest.raises(RecipeError, match=r"'output.weight': rows of 40 are not whole Q6_K blocks of 256.*such as F16"):
        choose_types(tensors, FILE_TYPES["Q8_0"], facts, output_tensor_type="Q6_K")
    with pytest.raises(RecipeError, match="not a regular expression"):
        choose_types(tensors, FILE_TYPES["Q8_0"], facts, tensor_types=[("(", "F16")])
    with pytest.raises(RecipeError, match="unknown tensor type 'Q77'"):
        choose_types(tensors, FILE_TYPES["Q8_0"], facts, tensor_types=[("attn", "Q77")])
    with pytest.raises(RecipeError, match=r"llama.block_count is missing"):
        model_facts(
            [key_value("general.architecture", "str", "llama"), key_value("llama.attention.head_count", "u32", 4)]
        )


@pytest.mark.parametrize(
    ("name", "shape", "may"),
    [
        ("blk.0.attn_q.weight", (4, 4), True),
        ("blk.0.attn_q.bias", (4, 4), False),
        ("blk.0.attn_norm.weight", (4, 4), False),
        ("blk.0.ffn_gate_inp.weight", (4, 4), False),
        ("blk.0.ffn_gate_inp_shexp.weight", (1, 4), False),
        ("blk.0.ffn_gate_inp_shexp.weight", (4, 1), True),
        ("rope_freqs.weight", (32,), False),
        ("position_embd.weight", (4, 4), False),
        ("scalar.weight", (), False),
    ],
)
def test_which_tensors_keep_their_type(name, shape, may):
    assert may_quantize(name, shape) is may
    kept = choose_types([OutputTensor(name, "F64", shape)], FILE_TYPES["F16"], ModelFacts("llama", 1, 1, 1))
    assert kept == {name: "F16" if may else "F64"}


def test_a_row_that_does_not_fit_takes_a_smaller_block_then_f16():
    assert [fit_to_row("Q4_K", columns) for columns in (512, 96, 40)] == ["Q4_K", "Q5_0", "F16"]
    assert [fit_to_row("Q8_0", columns) for columns in (96, 40)] == ["Q8_0", "F16"]


def record():
    """What llama.cpp chooses today."""
    import tempfile

    lines = {}
    with tempfile.TemporaryDirectory() as folder:
        for shape, file_type, option in cases():
            source = Path(folder) / f"{shape}.gguf"
            if not source.exists():
                write_gguf(Path(folder), SHAPES[shape].tensors(rows=2), SHAPES[shape].key_values(), name=source.name)
            number = FILE_TYPES[file_type].number
            types, _ = llama_quantize(source, Path(folder) / "out.gguf", number, **OPTIONS[option])
            lines[f"{shape}/{file_type}/{option}"] = written_short(types)
    RECORDED.write_text(json.dumps(lines, indent=0) + "\n")


if __name__ == "__main__":
    record()
