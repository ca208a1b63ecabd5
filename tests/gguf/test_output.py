"""Merges into GGUF: every byte against encoding the safetensors output as a whole; names, splits, refusals."""

import hashlib
import json
import shutil
from itertools import count

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import streammerge
from bench.sample.generate import make_agent, make_base
from bench.sample.shapes import SHAPES, Shape
from streammerge.errors import FormatError, MismatchError, NonFiniteError, OutputError, RecipeError
from streammerge.formats.gguf import GgufSource
from tests.gguf.checkpoints import tokenizer
from tests.gguf.merging import PRE, arrays_of, check_file, encoded, make_models, write_dat

# Rows of 256 and 768, heads of 64 rows (16,384 elements) that no block of 65,536 holds a whole number of.
SHAPE = Shape(layers=3, hidden=768, intermediate=1280, heads=12, kv_heads=4, vocab=300, tied=False)
_serial = count()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("gguf"), SHAPE)


@pytest.fixture(scope="module")
def merged(models, tmp_path_factory):
    """The same merge as safetensors, as float32 arrays, by method."""
    found = {}

    def arrays(method, **options):
        key = (method, *map(str, options.items()))
        if key not in found:
            output = tmp_path_factory.mktemp("merged") / "out.safetensors"
            streammerge.merge(*models, output, method=method, **options)
            found[key] = arrays_of(output)
        return found[key]

    return arrays


def to_gguf(models, folder, method="ram+", **options):
    output = folder / f"out{next(_serial)}.gguf"
    streammerge.merge(*models, output, method=method, **{**PRE, **options})
    return output


def importance(seed=1):
    """Weights for the columns of every matrix that has rows of 768 or 1280."""
    rng = np.random.default_rng(seed)
    names = {f"blk.{layer}.{part}.weight": 1280 if part == "ffn_down" else 768
             for layer in range(3) for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up",
                                                "ffn_down")}  # fmt: skip
    return {name: (rng.random(columns) ** 2 + 1e-3).astype("f4") for name, columns in names.items()}


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0", "Q5_1", "IQ4_XS", "Q2_K", "TQ1_0", "F16", "F32"])
def test_a_file_holds_the_merged_weights_quantized(models, merged, tmp_path, kind):
    check_file(to_gguf(models, tmp_path, quantize=kind), merged("ram+"), SHAPE)


@pytest.mark.parametrize("method", ["ram", "linear", "ties", "slerp", "dare_linear"])
def test_any_method_goes_into_gguf(models, merged, tmp_path, method):
    parameters = {"parameters": {"density": 0.3}} if method in ("ties", "dare_linear") else {}
    models = (models[0], models[1][:1]) if method == "slerp" else models
    if method == "slerp":
        output = tmp_path / "two.safetensors"
        streammerge.merge(*models, output, method=method)
        arrays = arrays_of(output)
    else:
        arrays = merged(method, **parameters)
    check_file(to_gguf(models, tmp_path, method, quantize="Q6_K", **parameters), arrays, SHAPE)


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M"])
def test_an_importance_matrix_weighs_the_columns(models, merged, tmp_path, kind):
    weights = importance()
    imatrix = write_dat(tmp_path / "imatrix.dat", weights)
    output = to_gguf(models, tmp_path, quantize=kind, imatrix=imatrix)
    check_file(output, merged("ram+"), SHAPE, weights)
    plain = to_gguf(models, tmp_path, quantize=kind)
    assert output.read_bytes()[-100_000:] != plain.read_bytes()[-100_000:]
    said = GgufSource(output).key_values
    assert said["quantize.imatrix.file"].value == str(imatrix) and said["quantize.imatrix.entries_count"].value == 21


def test_the_user_is_told_about_the_importance_matrix(models, tmp_path):
    imatrix = write_dat(tmp_path / "imatrix.dat", importance())
    planned = streammerge.plan(*models, tmp_path / "o.gguf", quantize="Q4_K_M", imatrix=imatrix, **PRE)
    assert any("21 tensors" in notice and "made for the base" in notice for notice in planned.notices)


@pytest.mark.parametrize("method", ["ram+", "ties"])
def test_the_bytes_do_not_depend_on_how_it_is_done(models, tmp_path, method, monkeypatch):
    from streammerge import budget

    parameters = {"parameters": {"density": 0.3}} if method == "ties" else {}
    imatrix = write_dat(tmp_path / "imatrix.dat", importance())
    seen = set()
    for chunk, way in [
        (16, {"max_ram": "8G", "threads": 1, "io": "pread"}),
        (16, {"max_ram": "8G", "threads": 4, "io": "mmap"}),
        (1, {"max_ram": "8G", "threads": 2}),
        (3, {"max_ram": "400M", "threads": 3}),
    ]:
        monkeypatch.setattr(budget, "_LARGEST_CHUNK", chunk * 65_536)
        output = to_gguf(models, tmp_path, method, quantize="Q4_K_S", imatrix=imatrix, **parameters, **way)
        tensors = GgufSource(output).tensors.values()
        seen.add(hashlib.sha256(output.read_bytes()[min(t.offset for t in tensors) :]).hexdigest())
    assert len(seen) == 1


@pytest.mark.parametrize(("intermediate", "dtype"), [("f16", "float16"), ("f32", "float32"), ("none", "float32")])
def test_what_values_are_rounded_to_before(models, merged, tmp_path, intermediate, dtype):
    output = to_gguf(models, tmp_path, quantize="Q5_K_M", intermediate=intermediate)
    check_file(output, merged("ram+", dtype=dtype), SHAPE)


def test_by_default_values_are_rounded_to_what_the_base_has(models, tmp_path):
    default, bf16, none = (
        to_gguf(models, tmp_path, quantize="Q8_0", **options)
        for options in ({}, {"intermediate": "bf16"}, {"intermediate": "none"})
    )
    ends = [path.read_bytes()[-1_000_000:] for path in (default, bf16, none)]
    assert ends[0] == ends[1] != ends[2]


def test_a_matrix_that_is_float32_is_rounded_once_more_as_the_converter_does(tmp_path):
    """Matrices of a bfloat16 model get bfloat16 in its GGUF file, also one that was stored as float32."""
    shape = Shape(layers=1, hidden=64, intermediate=64, heads=2, kv_heads=2, vocab=64, tied=True)
    base, agents = make_models(tmp_path, shape)
    values = np.random.default_rng(0).standard_normal((64, 64)).astype("f4")
    for path in (base, *agents):
        tensors = {n: v.astype(ml_dtypes.bfloat16) for n, v in arrays_of(path / "model.safetensors").items()}
        tensors["model.layers.0.mlp.up_proj.weight"] = values
        save_file(tensors, path / "model.safetensors")
    output = to_gguf((base, agents), tmp_path, quantize="Q8_0")
    arrays = arrays_of(base / "model.safetensors") | {
        "model.layers.0.mlp.up_proj.weight": values.astype(ml_dtypes.bfloat16).astype("f4")
    }
    source = GgufSource(output)
    info = source.tensors["blk.0.ffn_up.weight"]
    wanted = encoded(arrays["model.layers.0.mlp.up_proj.weight"], "Q8_0")
    assert output.read_bytes()[info.offset : info.offset + info.nbytes] == wanted != encoded(values, "Q8_0")


def test_excluded_tensors_are_the_bases(models, merged, tmp_path):
    output = to_gguf(models, tmp_path, quantize="Q4_K_M", exclude=["mlp"])
    base, arrays = arrays_of(models[0] / "model.safetensors"), dict(merged("ram+", exclude=["mlp"]))
    assert all(np.array_equal(arrays[name], base[name]) for name in base if "mlp" in name)
    check_file(output, arrays, SHAPE)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_folder_gets_a_file_named_by_the_convention(models, tmp_path):
    folder = tmp_path / "Some Model"
    folder.mkdir()
    (folder / "other.gguf").write_bytes(b"stays")
    report = streammerge.merge(*models, folder, quantize="Q4_K_M", **PRE)
    assert sorted(path.name for path in folder.iterdir()) == [
        "Some-Model-14M-Q4_K_M.gguf", "Some-Model-14M-Q4_K_M.gguf.manifest.json", "other.gguf",
    ]  # fmt: skip
    assert report.to_dict()["output"] == str(folder / "Some-Model-14M-Q4_K_M.gguf")
    with pytest.raises(OutputError, match=r"Q4_K_M\.gguf: exists already"):
        streammerge.merge(*models, folder, quantize="Q4_K_M", **PRE)


def test_split_files_hold_the_same_model(models, tmp_path):
    whole = GgufSource(to_gguf(models, tmp_path, quantize="Q4_K_M"))
    report = streammerge.merge(*models, tmp_path / "s.gguf", quantize="Q4_K_M", max_shard_size="2MB", **PRE)
    names = report.to_dict()["files"]
    assert len(names) > 2 and sorted(path.name for path in tmp_path.glob("s-*")) == names
    assert not list(tmp_path.glob("*.partial"))
    split = GgufSource(tmp_path / names[0])
    for name, info in whole.tensors.items():
        other = split.tensors[name]
        found = [i.file.read_bytes()[i.offset : i.offset + i.nbytes] for i in (info, other)]
        assert found[0] == found[1], name


def test_split_files_are_not_overwritten_unasked(models, tmp_path):
    options = {"quantize": "Q8_0", "max_shard_size": "2MB", **PRE}
    streammerge.merge(*models, tmp_path / "s.gguf", **options)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("s-*")}
    with pytest.raises(OutputError, match=r"s-00001-of-\d+\.gguf \(and \d+ more\): exists already"):
        streammerge.merge(*models, tmp_path / "s.gguf", **options)
    streammerge.merge(*models, tmp_path / "s.gguf", overwrite=True, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("s-*")} == before


def test_what_is_overwritten_goes_all_at_once(models, tmp_path):
    """A single file takes the place of split ones, and of as many as there were."""
    streammerge.merge(*models, tmp_path / "s.gguf", quantize="Q8_0", max_shard_size="2MB", **PRE)
    with pytest.raises(OutputError, match="exists already"):
        streammerge.merge(*models, tmp_path / "s.gguf", quantize="Q8_0", **PRE)
    streammerge.merge(*models, tmp_path / "s.gguf", quantize="Q8_0", overwrite=True, **PRE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.gguf", "s.gguf.manifest.json"]
    report = streammerge.merge(
        *models, tmp_path / "s.gguf", quantize="Q8_0", max_shard_size="4MB", overwrite=True, **PRE
    )
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == report.to_dict()["files"]


@pytest.mark.parametrize("option", ["imatrix", "gguf_template"])
def test_what_is_read_is_not_written_over(models, tmp_path, option):
    same = shutil.copytree(models[0], tmp_path / "same")
    template = to_gguf((models[0], [same]), tmp_path, quantize="Q8_0")
    imatrix = write_dat(tmp_path / "imatrix.gguf", importance())
    path = {"imatrix": imatrix, "gguf_template": template}[option]
    before = path.read_bytes()
    with pytest.raises(OutputError, match=f"would take the place of .*{path.name}, which is read"):
        streammerge.merge(*models, path, quantize="Q4_K_M", overwrite=True, **{option: path}, **PRE)
    assert path.read_bytes() == before


def test_a_split_template_is_not_replaced_by_a_single_file(models, tmp_path):
    same = shutil.copytree(models[0], tmp_path / "same")
    options = {"quantize": "Q8_0", "max_shard_size": "4MB", **PRE}
    streammerge.merge(models[0], [same], tmp_path / "base.gguf", **options)
    parts = sorted(tmp_path.glob("base-*.gguf"))
    with pytest.raises(OutputError, match="would take the place of .*base-00001-of"):
        streammerge.merge(
            *models, tmp_path / "base.gguf", quantize="Q8_0", overwrite=True, gguf_template=parts[0], **PRE
        )
    assert len(parts) > 1 and all(part.exists() for part in parts)


def test_notices_say_what_has_no_effect(models, tmp_path):
    weights = importance()
    del weights["blk.1.ffn_up.weight"]
    imatrix = write_dat(tmp_path / "imatrix.dat", weights)
    planned = streammerge.plan(
        *models, tmp_path / "o.gguf", quantize="Q4_K_M", imatrix=imatrix, tensor_types=["nothing=Q8_0"], **PRE
    )
    assert any(notice == "--tensor-type nothing=Q8_0 matches no tensor of the file" for notice in planned.notices)
    assert any("no entry for 3 quantized tensors" in n and "blk.1.ffn_up.weight" in n for n in planned.notices)


def test_aliases_are_names_too(models, tmp_path):
    streammerge.merge(*models, tmp_path / "My-Merge-Q4_K.gguf", quantize="Q4_K", **PRE)
    assert GgufSource(tmp_path / "My-Merge-Q4_K.gguf").key_values["general.name"].value == "My-Merge"
    with pytest.raises(RecipeError, match="is named Q5_K, but would be Q8_0"):
        streammerge.merge(*models, tmp_path / "My-Merge-Q5_K.gguf", quantize="Q8_0", **PRE)


def test_the_first_type_that_matches_counts(models, tmp_path):
    options = {"tensor_types": ["ffn_down=Q8_0", "ffn_down=Q5_K"]}
    types = GgufSource(to_gguf(models, tmp_path, quantize="Q4_K_M", **options)).tensors
    assert types["blk.0.ffn_down.weight"].dtype == "Q8_0"


def test_options_that_only_gguf_has_do_not_make_it_gguf(models, tmp_path):
    with pytest.raises(RecipeError, match="--intermediate is for GGUF; add --quantize TYPE, or name the output .gguf"):
        streammerge.merge(*models, tmp_path / "out", intermediate="bf16")
    streammerge.merge(*models, tmp_path / "out.GGUF", **PRE)
    assert (tmp_path / "out.GGUF").is_file()


def test_without_quantize_the_file_has_the_types_of_the_base(models, merged, tmp_path):
    output = to_gguf(models, tmp_path)
    assert {info.dtype for info in GgufSource(output).tensors.values()} == {"BF16", "F32"}
    check_file(output, merged("ram+"), SHAPE)


def test_the_lineage_is_in_the_metadata(models, tmp_path):
    said = {key: pair.value for key, pair in GgufSource(to_gguf(models, tmp_path, quantize="Q8_0")).key_values.items()}
    assert said["general.base_model.count"] == 3
    assert [said[f"general.base_model.{i}.name"] for i in range(3)] == ["base", "agent-0", "agent-1"]
    assert said["general.tags"] == ["merge", "streammerge"] and said["general.file_type"] == 7


def test_the_name_of_the_model_is_that_of_the_file_without_its_type(models, tmp_path):
    streammerge.merge(*models, tmp_path / "My-Merge-Q8_0.gguf", quantize="Q8_0", **PRE)
    assert GgufSource(tmp_path / "My-Merge-Q8_0.gguf").key_values["general.name"].value == "My-Merge"


def test_the_plan_says_the_type_of_every_tensor_and_the_size(models, tmp_path):
    from streammerge.plantext import plan_text

    output = tmp_path / "o.gguf"
    planned = streammerge.plan(*models, output, quantize="Q4_K_M", **PRE)
    text = plan_text(planned)
    for line in ("Q6_K   blk.2.attn_v.weight", "Q4_K   blk.0.attn_q.weight", "F32    output_norm.weight"):
        assert line in text
    streammerge.merge(*models, output, quantize="Q4_K_M", **PRE)
    assert output.stat().st_size == planned.bytes_to_write
    assert json.loads(planned.to_json())["quantize"] == "Q4_K_M"


def test_memory_does_not_grow_with_the_model(tmp_path):
    """70B with heads of a million weights and an embedding of a thousand million: planned from headers alone."""
    from streammerge.gguf import output as module  # noqa: F401  (imported before anything is measured)

    needed = []
    for name in ("1.24b", "70b"):
        folder = tmp_path / name
        folder.mkdir()
        base = make_base(folder / "base", SHAPES[name], sparse=True)
        (base / "tokenizer.json").write_text(json.dumps(tokenizer(("<s>", "</s>"))))
        agents = [make_agent(folder / f"a{i}", base, index=i, sparse=True) for i in range(8)]
        planned = streammerge.plan(base, agents, quantize="Q4_K_M", max_ram="512M", threads=2, **PRE)
        needed.append(planned.memory.projected - planned.memory.reserved)
    assert needed[0] <= needed[1] <= 200 << 20
    assert 42 * 10**9 < planned.bytes_to_write < 43 * 10**9  # what llama.cpp makes of this shape is 42.5 GB


@pytest.mark.parametrize("options", [{}, {"quantize": "Q8_0"}])
def test_a_file_is_not_called_what_it_is_not(models, tmp_path, options):
    found = options.get("quantize", "BF16")
    with pytest.raises(RecipeError, match=f"is named Q4_K_M, but would be {found}; add --quantize Q4_K_M"):
        streammerge.merge(*models, tmp_path / "My-Merge-Q4_K_M.gguf", **options, **PRE)


# --- types by option -------------------------------------------------------------------------------------------------


def test_types_can_be_chosen(models, tmp_path):
    output = to_gguf(
        models, tmp_path, quantize="q4_k_m", tensor_types=["ffn_down=q8_0", "blk.0.attn_q=F16"],
        output_tensor_type="Q5_K", token_embedding_type="Q4_0",
    )  # fmt: skip
    types = {name: info.dtype for name, info in GgufSource(output).tensors.items()}
    assert types["blk.2.ffn_down.weight"] == "Q8_0" and types["blk.0.attn_q.weight"] == "F16"
    assert types["output.weight"] == "Q5_K" and types["token_embd.weight"] == "Q4_0"
    pure = GgufSource(to_gguf(models, tmp_path, quantize="Q4_K_M", pure=True))
    assert {info.dtype for name, info in pure.tensors.items() if "norm" not in name} == {"Q4_K"}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"quantize": "Q9_K"}, RecipeError, "unknown quantization 'Q9_K'; known are F32"),
        ({"quantize": "IQ2_XS"}, RecipeError, "IQ2_XS is not made here; .*--quantize BF16.*llama-quantize"),
        ({"imatrix": "none.dat"}, RecipeError, "--imatrix says how to quantize; add --quantize TYPE"),
        ({"tensor_types": ["a=Q8_0"]}, RecipeError, "--tensor-type says how to quantize"),
        ({"quantize": "Q8_0", "imatrix": "none.dat"}, FormatError, "none.dat: cannot be read"),
        ({"quantize": "Q8_0", "tensor_types": ["Q8_0"]}, RecipeError, "write REGEX=TYPE"),
        ({"quantize": "Q8_0", "tensor_types": ["(=Q8_0"]}, RecipeError, "is not a regular expression"),
        ({"quantize": "Q8_0", "intermediate": "f64"}, RecipeError, "one of auto, bf16, f16, f32, none"),
        ({"quantize": "Q8_0", "intermediate": "f16", "dtype": "bf16"}, RecipeError, "leave out one"),
        ({"quantize": "Q2_K_S"}, RecipeError, "Q2_K_S needs an importance matrix"),
        ({"quantize": "Q8_0", "pre_tokenizer": None}, RecipeError, "its pre-tokenizer is not known"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_written(models, tmp_path, options, error, text):
    with pytest.raises(error, match=text):
        streammerge.merge(*models, tmp_path / "out.gguf", **{**PRE, **options})
    assert not list(tmp_path.iterdir())


def test_options_for_gguf_do_not_go_with_safetensors(models, tmp_path):
    with pytest.raises(RecipeError, match=r"o\.safetensors: is to be safetensors, but options for GGUF are given"):
        streammerge.merge(*models, tmp_path / "o.safetensors", quantize="Q8_0")


def test_an_importance_matrix_of_another_model_is_refused(models, tmp_path):
    other = write_dat(tmp_path / "other.dat", {"blk.0.attn_q.weight": np.ones(512, "f4")})
    with pytest.raises(MismatchError, match="512 values for tensor 'blk.0.attn_q.weight', wanted 1 x 768"):
        to_gguf(models, tmp_path, quantize="Q4_K_M", imatrix=other)


@pytest.mark.parametrize(("missing", "text"), [("config.json", "is missing"), ("tokenizer.json", "is missing")])
def test_a_base_without_what_gguf_needs_is_refused(models, tmp_path, missing, text):
    base = tmp_path / "base"
    base.mkdir()
    for file in models[0].iterdir():
        if file.name != missing:
            (base / file.name).symlink_to(file)
    with pytest.raises(FormatError, match=rf"base/{missing}: {text}"):
        to_gguf((base, models[1]), tmp_path, quantize="Q8_0")


def changed(models, tmp_path, file, change):
    """The base with one file changed by a function of its JSON."""
    base = tmp_path / "changed"
    base.mkdir()
    for source in models[0].iterdir():
        if source.name != file:
            (base / source.name).symlink_to(source)
    content = json.loads((models[0] / file).read_text())
    change(content)
    (base / file).write_text(json.dumps(content))
    return base


@pytest.mark.parametrize(
    "change",
    [
        {"head_dim": 32}, {"hidden_size": 64}, {"intermediate_size": 3}, {"vocab_size": 1_000_000_000},
        {"num_hidden_layers": 4}, {"num_hidden_layers": 2}, {"num_hidden_layers": 2**70}, {"num_key_value_heads": 2},
        {"architectures": {"a": 1}}, {"architectures": 1e30}, {"rms_norm_eps": "x"}, {"rms_norm_eps": [1]},
        {"rope_scaling": "linear"}, {"rope_parameters": [[]]}, {"rope_theta": "x"}, {"rope_theta": 1e300},
        {"rope_scaling": {"rope_type": "llama3", "factor": "x"}},
        {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 0}},
        {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 4}},
        {"max_position_embeddings": 2**40},
    ],
)  # fmt: skip
def test_a_config_that_is_nonsense_or_not_the_weights_is_refused(models, tmp_path, change):
    base = changed(models, tmp_path, "config.json", lambda config: config.update(change))
    with pytest.raises((FormatError, MismatchError), match=r"config\.json"):
        to_gguf((base, models[1]), tmp_path, quantize="Q8_0")


def _set(*path):
    *steps, last, value = path

    def change(content):
        for step in steps:
            content = content[step]
        content[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("model", float("inf")), _set("model", "vocab", float("inf")), _set("model", "vocab", {"a": []}),
        _set("added_tokens", [{"content": "x"}]), _set("added_tokens", [{"id": 1, "content": {}}]),
        _set("added_tokens", [5]), _set("model", "merges", [[5, "a"]]), _set("model", "merges", [True, None]),
        _set("post_processor", 1.5), _set("post_processor", {"type": "RobertaProcessing", "sep": 4}),
        _set("post_processor", {"type": "TemplateProcessing", "single": [None, None]}),
        _set("post_processor", {"type": "TemplateProcessing", "single": [{"Sequence": None}, {"Sequence": None}],
                                "pair": [{"Sequence": None}] * 3}),
        _set("normalizer", {"type": "Sequence", "normalizers": [1]}),
    ],
)  # fmt: skip
def test_a_tokenizer_that_is_nonsense_is_refused(models, tmp_path, change):
    base = changed(models, tmp_path, "tokenizer.json", change)
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        to_gguf((base, models[1]), tmp_path, quantize="Q8_0")


def test_values_that_no_scale_can_hold_are_an_error(tmp_path):
    shape = Shape(layers=1, hidden=64, intermediate=64, heads=2, kv_heads=2, vocab=64, tied=True)
    base, agents = make_models(tmp_path, shape)
    name = "model.layers.0.mlp.up_proj.weight"
    for path in (base, *agents):
        tensors = load_file_bf16(path)
        tensors[name][3, 5] = 1e30
        save_file(tensors, path / "model.safetensors")
    with pytest.raises(NonFiniteError, match=rf"'{name}': 1\.00\d+e\+30 is too large for Q8_0; .*--tensor-type"):
        to_gguf((base, agents), tmp_path, quantize="Q8_0")
    assert not list(tmp_path.glob("out*"))
    output = to_gguf((base, agents), tmp_path, quantize="Q8_0", tensor_types=["ffn_up=BF16"])
    assert GgufSource(output).tensors["blk.0.ffn_up.weight"].dtype == "BF16"


def load_file_bf16(path):
    return {n: v.astype(ml_dtypes.bfloat16) for n, v in arrays_of(path / "model.safetensors").items()}
