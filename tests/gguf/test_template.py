"""Templates: compared with files that llama.cpp's converter made, and with files written here from known values."""

import re

import numpy as np
import pytest

from streammerge.checkpoint import open_checkpoint
from streammerge.errors import FormatError, MismatchError
from streammerge.formats.gguf import GgufSource, key_value
from streammerge.gguf import match
from streammerge.gguf.llama import read_llama
from streammerge.gguf.names import source_row
from streammerge.gguf.template import read_template
from tests.conftest import save_tensors
from tests.gguf.architectures import (
    ARCHITECTURES,
    HEADS,
    KV_HEADS,
    config_of,
    moved,
    plain_values,
    recorded,
    rounded,
    save_checkpoint,
    weights_of,
    write_checkpoint,
    write_gguf,
)
from tests.gguf.checkpoints import content


def applied(template, arrays):
    """The values that a template makes of a checkpoint's, with the row mapping that the rest of the tool uses."""
    made = {}
    for tensor in template.tensors:
        if not tensor.sources:
            made[tensor.name] = template.constants[tensor.name]
            continue
        values = np.concatenate([arrays[source].reshape(-1) for source in tensor.sources]).reshape(tensor.shape)
        order = [source_row(row, len(values), tensor.heads) for row in range(len(values))]
        made[tensor.name] = values[order] + np.float32(tensor.shift)
    return made


def template_of(tmp_path, kind, types=None, hidden=32, change=(), arrays=None, **more):
    """A template written here: llama.cpp's values for these weights, in the types given (by ending of the name)."""
    source = GgufSource(recorded(tmp_path, kind))
    weights = weights_of(kind, hidden) if arrays is None else arrays
    told = read_template(source.path, open_checkpoint(write_checkpoint(tmp_path, kind)), "F32")
    made = {}
    for tensor in told.tensors:  # the names are known to be right by the test with recorded files
        if not tensor.sources:
            made[tensor.name] = told.constants[tensor.name]
            continue
        parts = [weights[name] for name in tensor.sources]
        values = np.stack(parts) if len(parts) > 1 else parts[0]
        values = values + np.float32(1) if kind == "gemma3" and tensor.name.endswith("_norm.weight") else values
        part = re.search(r"attn_([qk])\.", tensor.name)
        permuted = part and kind in ("llama", "mixtral")
        made[tensor.name] = moved(values, HEADS if part[1] == "q" else KV_HEADS) if permuted else values
    made |= dict(change)
    named = {name: kind for end, kind in (types or {}).items() for name in made if name.endswith(end)}
    return write_gguf(tmp_path / "written.gguf", made, list(source.key_values.values()), named, **more)


def base_of(tmp_path, kind, arrays, dtype="BF16", **config):
    return open_checkpoint(save_checkpoint(tmp_path / "base", arrays, config_of(kind) | config, dtype))


def changes_of(template):
    return {t.name: (t.heads, t.shift) for t in template.tensors if (t.heads, t.shift) != (0, 0.0)}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_base_becomes_the_file_that_the_converter_made_of_it(tmp_path, kind):
    """Every tensor of the file, byte for byte; every key but those about the type; and the order of both."""
    source = GgufSource(recorded(tmp_path, kind))
    template = read_template(source.path, open_checkpoint(write_checkpoint(tmp_path, kind)), "BF16")
    assert [(t.name, t.dtype, t.shape) for t in template.tensors] == [
        (i.name, i.dtype, i.shape) for i in source.tensors.values()
    ]
    for name, values in applied(template, weights_of(kind)).items():
        assert rounded(source.tensors[name].dtype, values).tobytes() == content(source, name), name
    dropped = ("general.file_type", "general.quantization_version")
    assert list(template.key_values) == [p for k, p in source.key_values.items() if k not in dropped]
    assert {key for key in dropped if key in source.key_values}


def test_a_llama_is_matched_as_the_built_in_one_is_made(tmp_path):
    path, base = recorded(tmp_path, "llama"), open_checkpoint(write_checkpoint(tmp_path, "llama"))
    template = read_template(path, base, "F16")
    assert list(template.tensors) == read_llama(base.config).tensors(base.tensors.values(), "F16")
    assert list(template.constants) == ["rope_freqs.weight"]


def test_what_was_done_to_each_architecture(tmp_path):
    """Qwen's rows stay, Gemma's norms are one more, experts are stacked in their order."""
    found = {}
    for kind in ("qwen2", "gemma3", "mixtral"):
        base = open_checkpoint(write_checkpoint(tmp_path, kind))
        found[kind] = read_template(recorded(tmp_path, kind), base, "BF16")
    assert changes_of(found["qwen2"]) == {}
    norms = {t.name for t in found["gemma3"].tensors if t.name.endswith("norm.weight")}
    assert changes_of(found["gemma3"]) == dict.fromkeys(norms, (0, 1.0)) and len(norms) == 13
    sources = {t.name: t.sources for t in found["mixtral"].tensors}
    experts = tuple(f"model.layers.1.block_sparse_moe.experts.{i}.w2.weight" for i in range(3))
    assert sources["blk.1.ffn_down_exps.weight"] == experts


MATRICES = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "token_embd.weight", "ffn_up.weight")


@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q4_0", "Q3_K", "Q2_K"]
)
def test_templates_of_any_type_tell_how_rows_were_moved(tmp_path, kind):
    types = dict.fromkeys(MATRICES, kind)
    for model, wanted in (("llama", {"q": HEADS, "k": KV_HEADS}), ("qwen2", {})):
        folder = tmp_path / model
        folder.mkdir()
        path = template_of(folder, model, types, hidden=256)
        assert GgufSource(path).tensors["blk.0.attn_q.weight"].dtype == kind
        template = read_template(path, base_of(folder, model, weights_of(model, 256)), "BF16")
        heads = {t.name: t.heads for t in template.tensors if t.heads}
        ends = ("weight", "bias") if model == "llama" else ("weight",)
        assert heads == {f"blk.{n}.attn_{p}.{end}": h for n in range(2) for p, h in wanted.items() for end in ends}


@pytest.mark.parametrize("kind", ["F16", "Q4_K"])
def test_a_few_rows_are_enough(tmp_path, monkeypatch, kind):
    """The same with tensors that are not looked at as a whole."""
    monkeypatch.setattr(match, "_SAMPLE", 256)
    path = template_of(tmp_path, "llama", dict.fromkeys(MATRICES, kind), hidden=256)
    template = read_template(path, base_of(tmp_path, "llama", weights_of("llama", 256)), "BF16")
    heads = {t.name: t.heads for t in template.tensors if t.name.endswith("weight") and t.heads}
    assert heads == {f"blk.{n}.attn_{p}.weight": h for n in range(2) for p, h in (("q", HEADS), ("k", KV_HEADS))}


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 4096, 1), (4096, 4096, 1), (262_144, 8192, 1), (8192, 28_672, 1),
                                   (300_000, 1, 1), (1408, 2048, 128), (4096, 14_336, 8)])  # fmt: skip
def test_what_is_looked_at_is_small_and_reaches_both_ends(shape):
    rows, columns, matrices = shape
    places = list(match._places(rows, columns, matrices))
    assert places[0][0] == 0 and all(0 <= start < stop <= rows for start, stop in places)
    assert places[-1][1] == rows or matrices > 4
    looked = sum(stop - start for start, stop in places) * columns * matrices
    assert looked <= max(1 << 18, columns * matrices)


@pytest.mark.parametrize(("stored", "kind"), [("F16", "F32"), ("F16", "F16"), ("F32", "F16"), ("F32", "BF16")])
def test_a_base_of_another_type_is_rounded_as_the_template_is(tmp_path, stored, kind):
    arrays = {n: (a * np.float32(1 + 2**-9)).astype("f2").astype("f4") for n, a in weights_of("gemma3").items()}
    if kind == "BF16":
        arrays = weights_of("gemma3")
    path = template_of(tmp_path, "gemma3", dict.fromkeys(MATRICES, kind), arrays=arrays)
    template = read_template(path, base_of(tmp_path, "gemma3", arrays, stored), "F16")
    assert {shift for _, shift in changes_of(template).values()} == {1.0}


def test_norms_that_were_added_to_in_f16_are_known(tmp_path):
    arrays = {n: a.astype("f2").astype("f4") for n, a in weights_of("gemma3").items()}
    exact = plain_values(GgufSource(template_of(tmp_path, "gemma3", arrays=arrays)))
    coarse = {n: v.astype("f2").astype("f4") for n, v in exact.items() if n.endswith("norm.weight")}
    assert any((coarse[name] != exact[name]).any() for name in coarse)
    (tmp_path / "again").mkdir()
    path = template_of(tmp_path / "again", "gemma3", arrays=arrays, change=coarse)
    template = read_template(path, base_of(tmp_path, "gemma3", arrays, "F16"), "F16")
    assert len(changes_of(template)) == len(coarse)
    with pytest.raises(MismatchError, match="its values are not those of"):
        read_template(path, base_of(tmp_path / "f32", "gemma3", arrays, "F32"), "F16")


def test_a_quantized_template_keeps_what_may_not_be_quantized_in_f32(tmp_path):
    """A router is F32 by the converter's rule; what it stored in F32 against that rule stays, if nothing rounds it."""
    path = template_of(tmp_path, "mixtral", {"ffn_up_exps.weight": "F16", "token_embd.weight": "F16"})
    found = {
        t.name: t.dtype
        for t in read_template(path, base_of(tmp_path, "mixtral", weights_of("mixtral")), "BF16").tensors
    }
    assert found["blk.0.ffn_gate_inp.weight"] == found["blk.0.attn_norm.weight"] == "F32"
    assert found["blk.0.ffn_up_exps.weight"] == found["blk.0.attn_v.weight"] == "BF16"


def test_a_split_template(tmp_path):
    path = template_of(tmp_path, "llama", max_shard_bytes=20_000)
    assert "-00001-of-" in path.name
    template = read_template(path, base_of(tmp_path, "llama", weights_of("llama")), "BF16")
    assert len(template.tensors) == len(GgufSource(recorded(tmp_path, "llama")).tensors)
    assert not [pair.key for pair in template.key_values if pair.key.startswith("split.")]


# --- heads and embeddings --------------------------------------------------------------------------------------------


def test_a_template_without_a_head_takes_none_from_a_base_that_ties_it(tmp_path):
    arrays = weights_of("llama")
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    path = recorded(tmp_path, "llama")
    template = read_template(path, base_of(tmp_path, "llama", arrays), "BF16")
    assert "output.weight" not in {t.name for t in template.tensors}
    with pytest.raises(MismatchError, match=r"1 tensor \('lm_head.weight'\) of .* have no place in this file"):
        read_template(path, base_of(tmp_path / "untied", "llama", arrays, tie_word_embeddings=False), "BF16")


def test_a_template_may_have_the_embedding_as_head_too(tmp_path):
    arrays = weights_of("llama")
    head = {"output.weight": arrays["model.embed_tokens.weight"]}
    template = read_template(template_of(tmp_path, "llama", change=head), base_of(tmp_path, "llama", arrays), "BF16")
    assert {t.name: t.sources for t in template.tensors}["output.weight"] == ("model.embed_tokens.weight",)
    (tmp_path / "other").mkdir()
    other = template_of(tmp_path / "other", "llama", change={"output.weight": head["output.weight"][::-1]})
    with pytest.raises(MismatchError, match="'output.weight': its values are not those of 'model.embed_tokens.weight'"):
        read_template(other, open_checkpoint(tmp_path / "base"), "BF16")


def test_buffers_are_left_out(tmp_path):
    arrays = weights_of("llama") | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, "f4")}
    read_template(recorded(tmp_path, "llama"), base_of(tmp_path, "llama", arrays), "BF16")


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(path, base, said):
    with pytest.raises(MismatchError, match=said) as caught:
        read_template(path, base, "BF16")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K", "Q2_K"])
def test_another_model_is_refused(tmp_path, kind):
    path = template_of(tmp_path, "qwen2", dict.fromkeys(MATRICES, kind), hidden=256)
    arrays = weights_of("qwen2", 256)
    name = "model.layers.1.self_attn.q_proj.weight"
    other = arrays | {name: weights_of("qwen2", 256, seed=1)[name]}
    said = f"'blk.1.attn_q.weight': its values are not those of '{name}' in .*base.*; it was made of another model"
    refused(path, base_of(tmp_path, "qwen2", other), said)


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_one_value_that_differs_is_enough_where_types_are_exact(tmp_path, kind):
    arrays = weights_of("qwen2")
    path = template_of(tmp_path, "qwen2", {"ffn_up.weight": kind})
    name = "model.layers.0.mlp.up_proj.weight"
    arrays[name][5, 7] *= 2
    refused(path, base_of(tmp_path, "qwen2", arrays), f"'blk.0.ffn_up.weight': its values are not those of '{name}'")


def test_one_wrong_expert_is_refused(tmp_path):
    arrays = weights_of("mixtral", 256)
    path = template_of(tmp_path, "mixtral", {"exps.weight": "F16", "ffn_up_exps.weight": "Q8_0"}, hidden=256)
    first, last = (f"model.layers.0.block_sparse_moe.experts.{i}.w3.weight" for i in (0, 2))
    arrays[first], arrays[last] = arrays[last], arrays[first]
    refused(
        path,
        base_of(tmp_path, "mixtral", arrays),
        r"'blk.0.ffn_up_exps.weight': its values are not those of .*off by 1\.",
    )


def test_a_matrix_whose_rows_are_all_the_same_tells_nothing(tmp_path):
    arrays = weights_of("llama", 256)
    name = "model.layers.1.self_attn.k_proj.weight"
    arrays[name][:] = arrays[name][0]
    for kind in ("F16", "Q4_K"):
        (tmp_path / kind).mkdir()
        path = template_of(tmp_path / kind, "llama", {"attn_k.weight": kind}, hidden=256, arrays=arrays)
        base = base_of(tmp_path / kind, "llama", arrays)
        refused(path, base, f"'blk.1.attn_k.weight': its values do not tell how they follow from '{name}' in .*: "
                "rows as they are or rows moved for 2 heads; give a template of type F32")  # fmt: skip


def test_a_bias_moves_as_its_weight_does(tmp_path):
    """Of zeros nothing can be seen, but a bias is added to what its weight gives."""
    arrays = weights_of("llama")
    arrays["model.layers.0.self_attn.q_proj.bias"][:] = 0
    path, base = template_of(tmp_path, "llama", arrays=arrays), base_of(tmp_path, "llama", arrays)
    assert changes_of(read_template(path, base, "BF16"))["blk.0.attn_q.bias"] == (HEADS, 0.0)
    (tmp_path / "unmoved").mkdir()
    name = "model.layers.1.self_attn.q_proj.bias"
    refused(
        template_of(tmp_path / "unmoved", "llama", arrays=arrays, change={"blk.1.attn_q.bias": arrays[name]}),
        base,
        f"'blk.1.attn_q.bias': its values are not those of '{name}'",
    )


def test_tensors_that_are_missing_or_too_many_are_named(tmp_path):
    arrays, path = weights_of("qwen2"), recorded(tmp_path, "qwen2")
    gone = {n: a for n, a in arrays.items() if "up_proj" not in n and "down_proj" not in n}
    said = (
        r"nothing in .*base is called like its 4 tensors \('blk.0.ffn_down.weight', .*, \.\.\.\); it belongs to another"
    )
    refused(path, base_of(tmp_path, "qwen2", gone), said)
    more = arrays | {
        "model.layers.2.mlp.up_proj.weight": np.ones((4, 4), "f4"),
        "model.vision.weight": np.ones(4, "f4"),
    }
    said = r"2 tensors \('model.layers.2.mlp.up_proj.weight', 'model.vision.weight'\) of .* have no place in this file"
    refused(path, base_of(tmp_path / "more", "qwen2", more), said)


def test_experts_must_be_complete(tmp_path):
    arrays = {n: a for n, a in weights_of("mixtral").items() if ".experts.1.w1" not in n}
    with pytest.raises(
        MismatchError, match=r"base: 2 tensors .* are all called 'blk.0.ffn_gate_exps.weight'.*without a gap"
    ):
        read_template(recorded(tmp_path, "mixtral"), base_of(tmp_path, "mixtral", arrays), "BF16")
    arrays = {n: a for n, a in weights_of("mixtral").items() if ".experts.2." not in n}
    said = r"'blk.0.ffn_gate_exps.weight' is \[3, 24, 32\], but .* is 2 times BF16 \[24, 32\]"
    refused(recorded(tmp_path, "mixtral"), base_of(tmp_path / "fewer", "mixtral", arrays), said)


def test_shapes_must_fit(tmp_path):
    arrays, name = weights_of("qwen2"), "model.embed_tokens.weight"
    arrays[name] = arrays[name][:-1]
    said = rf"'token_embd.weight' is \[40, 32\], but '{name}' in .* is BF16 \[39, 32\]"
    refused(recorded(tmp_path, "qwen2"), base_of(tmp_path, "qwen2", arrays), said)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([], "not of a model: architecture None"),
        ([("general.architecture", "str", "qwen2")], "architecture 'qwen2' with None layers"),
        (
            [("general.architecture", "str", "none"), ("none.block_count", "u32", 1)],
            "'none' is not known to the gguf package",
        ),
        (
            [("general.architecture", "str", "llama"), ("llama.block_count", "u32", 2**31)],
            "architecture 'llama' with 2147483648 layers",
        ),
        (
            [
                ("general.architecture", "str", "llama"),
                ("llama.block_count", "u32", 2),
                ("general.type", "str", "adapter"),
            ],
            "is a GGUF file, but not of a model",
        ),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path, pairs, said):
    path = write_gguf(tmp_path / "m.gguf", {"a": np.ones(4, "f4")}, [key_value(*pair) for pair in pairs], {})
    with pytest.raises(FormatError, match=said):
        read_template(path, base_of(tmp_path, "qwen2", weights_of("qwen2")), "BF16")


def test_what_is_said_anew_for_every_file_is_left_out(tmp_path):
    source = GgufSource(recorded(tmp_path, "qwen2"))
    more = [key_value("quantize.imatrix.file", "str", "x"), key_value("general.alignment", "u32", 32)]
    pairs = [*source.key_values.values(), *more]
    path = write_gguf(tmp_path / "m.gguf", plain_values(source), pairs, {})
    template = read_template(path, base_of(tmp_path, "qwen2", weights_of("qwen2")), "BF16")
    kept = {pair.key for pair in template.key_values}
    assert {pair.key for pair in pairs} - kept == {
        "quantize.imatrix.file", "general.alignment", "general.file_type", "general.quantization_version",
    }  # fmt: skip


def test_large_constants_are_refused(tmp_path):
    change = {"rope_freqs.weight": np.ones((1 << 18) + 1, "f4")}
    path = template_of(tmp_path, "llama", change=change)
    with pytest.raises(FormatError, match="'rope_freqs.weight' has 1048580 bytes, too many"):
        read_template(path, base_of(tmp_path, "llama", weights_of("llama")), "BF16")


# --- single tensors --------------------------------------------------------------------------------------------------


def by_hand(tmp_path, architecture, base, template, types=None, pairs=()):
    """What comes of a base and a template of these values, with one layer."""
    said = [("general.architecture", "str", architecture), (f"{architecture}.block_count", "u32", 1), *pairs]
    path = write_gguf(tmp_path / "hand.gguf", template, [key_value(*pair) for pair in said], types or {})
    checkpoint = open_checkpoint(save_checkpoint(tmp_path / "base", base, {}, "F32"))
    return {t.name: t for t in read_template(path, checkpoint, "BF16").tensors}


def spread(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("f4")


HEADS_SAID = [("llama.attention.head_count", "u32", 4), ("llama.attention.head_count_kv", "u32", 2)]
QUERY, MOVED_QUERY = "model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight"


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q2_K"])
def test_rows_that_are_much_alike_do_not_tell_enough(tmp_path, kind):
    """The other change is further off than the type's error, but not as far as other weights would be."""
    values = spread(1, 256) + np.float32(0.35) * spread(32, 256)
    with pytest.raises(MismatchError, match="its values do not tell how they follow"):
        by_hand(tmp_path, "llama", {QUERY: values}, {MOVED_QUERY: moved(values, 4)}, {MOVED_QUERY: kind}, HEADS_SAID)


@pytest.mark.parametrize(("kind", "off"), [("Q8_0", 0.12), ("Q4_K", 0.25), ("Q3_K", 0.5), ("IQ4_XS", 0.25)])
def test_weights_that_are_off_by_more_than_their_type_explains_are_refused(tmp_path, kind, off):
    values = spread(64, 256)
    other = values + np.float32(off) * spread(65, 256)[1:]
    names = ("model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight")
    with pytest.raises(MismatchError, match=rf"off by 0\.\d\d of their size, at most 0\.\d is {kind}'s"):
        by_hand(tmp_path, "llama", {names[0]: other}, {names[1]: values}, {names[1]: kind})


def test_heads_of_two_rows_look_the_same_moved_or_not(tmp_path):
    found = by_hand(tmp_path, "llama", {QUERY: spread(8, 32)}, {MOVED_QUERY: spread(8, 32)}, pairs=HEADS_SAID)
    assert found[MOVED_QUERY].heads == 0


def test_the_number_of_heads_may_differ_by_layer(tmp_path):
    said, values = [("llama.attention.head_count", "[i32]", [2])], spread(16, 32)
    found = by_hand(tmp_path, "llama", {QUERY: values}, {MOVED_QUERY: moved(values, 2)}, pairs=said)
    assert found[MOVED_QUERY].heads == 2


def test_more_than_ten_experts_are_in_the_order_of_their_numbers(tmp_path):
    names = [f"model.layers.0.mlp.experts.{number}.up_proj.weight" for number in range(12)]
    values, stacked = spread(12, 4, 32), "blk.0.ffn_up_exps.weight"
    found = by_hand(tmp_path, "qwen2moe", dict(zip(names, values)), {stacked: values})
    assert found[stacked].sources == tuple(names)


def test_the_bias_of_a_norm_is_not_shifted_with_it(tmp_path):
    weight, bias = spread(32), spread(33)[1:]
    base = {"model.layers.0.input_layernorm.weight": weight, "model.layers.0.input_layernorm.bias": bias}
    names = ("blk.0.attn_norm.weight", "blk.0.attn_norm.bias")
    found = by_hand(tmp_path, "nemotron", base, {names[0]: weight + np.float32(1), names[1]: bias})
    assert [found[name].shift for name in names] == [1.0, 0.0]


def test_axes_of_one_element_may_go(tmp_path):
    base = {"backbone.layers.0.mixer.conv1d.weight": spread(8, 1, 4)}
    found = by_hand(tmp_path, "mamba", base, {"blk.0.ssm_conv1d.weight": spread(8, 4)})
    assert found["blk.0.ssm_conv1d.weight"].shape == (8, 4)


def test_names_that_the_converter_rewrites(tmp_path):
    base = {"model.layers.0.mlp.gate.e_score_correction_bias": spread(8)}
    assert list(by_hand(tmp_path, "deepseek2", base, {"blk.0.exp_probs_b.bias": spread(8)})) == [
        "blk.0.exp_probs_b.bias"
    ]


@pytest.mark.parametrize(("stored", "wanted"), [("F32", "F32"), ("F16", "BF16")])
def test_what_is_delicate_stays_in_f32_if_it_was(tmp_path, stored, wanted):
    name = "blk.0.time_mix_w1.weight"
    base = {"model.layers.0.attention.w1": spread(4, 32)}
    found = by_hand(tmp_path, "rwkv7", base, {name: spread(4, 32)}, {name: stored})
    assert found[name].dtype == wanted


def test_elements_that_are_no_weights_are_refused(tmp_path):
    names = ("model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight")
    with pytest.raises(FormatError, match="'blk.0.ffn_up.weight' holds 8 elements of type I32, which are no weights"):
        by_hand(tmp_path, "llama", {names[0]: spread(2, 4)}, {names[1]: spread(2, 4)}, {names[1]: "I32"})
    integers = {names[0]: ("I32", (2, 4), bytes(32))}
    save_tensors(tmp_path / "base" / "model.safetensors", integers)
    path = write_gguf(
        tmp_path / "m.gguf", {names[1]: spread(2, 4)},
        [key_value("general.architecture", "str", "llama"), key_value("llama.block_count", "u32", 1)], {},
    )  # fmt: skip
    refused(path, open_checkpoint(tmp_path / "base"), r"'blk.0.ffn_up.weight' is \[2, 4\], but .* is I32 \[2, 4\]")


def test_a_type_that_is_not_read_is_refused_by_name(tmp_path, monkeypatch):
    names = ("model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight")
    monkeypatch.setattr(
        "tests.gguf.architectures.encoded", lambda dtype, values: np.zeros(values.size // 32 * 40, "u1")
    )
    with pytest.raises(FormatError, match="hand.gguf: tensor 'blk.0.ffn_up.weight': cannot read elements of type Q8_1"):
        by_hand(tmp_path, "llama", {names[0]: spread(2, 32)}, {names[1]: spread(2, 32)}, {names[1]: "Q8_1"})
