"""Recipe files: what is read, what is refused and where, and that a saved recipe gives the same again."""

import json

import pytest
import yaml
from click.testing import CliRunner

import streammerge
from streammerge.api import merge_recipe, plan_recipe, recipe_of
from streammerge.cli import cli
from streammerge.errors import OutputError, RecipeError
from streammerge.mergekit_yaml import read_yaml
from streammerge.saved_recipe import recipe_yaml, saving
from streammerge.varying import ByTensor, Rule

BY_LAYER = ByTensor((Rule((0.1, 0.9)),))
TIES = "merge_method: ties\nbase_model: b\nmodels:\n  - model: x\n  - model: y\n"


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads a text as recipe.yml in a folder that has models b, x, y and z."""
    monkeypatch.chdir(tmp_path)
    for name in "bxyz":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"num_hidden_layers": 4}')

    def read(text):
        (tmp_path / "recipe.yml").write_text(text)
        return read_yaml(tmp_path / "recipe.yml")

    return read


def names(fields):
    return str(fields["base"]), [str(agent) for agent in fields["agents"]]


# --- what is read ---------------------------------------------------------------------------------------------------


def test_mergekits_yaml_is_read_as_it_is(read):
    fields = read(
        "merge_method: ties\nbase_model: b\ndtype: float32\nout_dtype: torch.bfloat16\ntokenizer_source: base\n"
        "parameters: {normalize: yes, int8_mask: true, rescale: false}\nchat_template: null\n"
        "models:\n  - model: b\n  - {model: x, parameters: {weight: 0.5, density: 0.3}}\n"
        "  - {model: {model: {path: y}}, parameters: {weight: 1e-1, density: 1}}\n"
    )
    assert names(fields) == ("b", ["x", "y"])
    assert fields["method"] == "ties" and fields["dtype"] == "BF16" and fields["notices"] == ()
    assert fields["parameters"] == {"normalize": True, "weight": (0.5, 0.1), "density": (0.3, 1.0)}


def test_a_models_own_rules_come_before_the_shared_ones(read):
    fields = read(
        "merge_method: ties\nbase_model: b\n"
        "parameters:\n  weight: [{filter: mlp, value: 1}, {filter: '*', value: [0, 1]}, {value: 9}]\n"
        "  density: {filter: norm, value: 0.5}\n"
        "models:\n  - {model: x, parameters: {weight: [{filter: attn, value: 2}]}}\n"
        "  - {model: y, parameters: {weight: 3, density: [0.25]}}\n"
    )
    shared = (Rule(1.0, "mlp"), Rule((0.0, 1.0), "*"))
    assert fields["parameters"]["weight"] == (ByTensor((Rule(2.0, "attn"), *shared)), 3.0)
    assert fields["parameters"]["density"] == (ByTensor((Rule(0.5, "norm"),)), 0.25)


def test_density_has_a_default_for_the_models_that_have_none(read):
    fields = read("merge_method: ties\nbase_model: b\nmodels: [{model: x, parameters: {density: 0.1}}, {model: y}]")
    assert fields["parameters"] == {"density": (0.1, 1.0)}


def test_an_average_without_a_base_takes_the_first_models_names(read):
    fields = read(
        "merge_method: linear\nmodels: [{model: x, parameters: {weight: 1}}, {model: y, parameters: {weight: 2}}]"
    )
    assert names(fields) == ("x", ["x", "y"])


def test_an_average_has_its_base_as_one_more_input_as_in_mergekit(read):
    text = "merge_method: linear\nbase_model: b\nmodels: [{model: x, parameters: {weight: 2}}, {model: y}]\n"
    fields = read(text + "parameters: {weight: 1}")
    assert names(fields) == ("b", ["x", "y", "b"]) and fields["parameters"] == {"weight": (2.0, 1.0, 1.0)}
    with pytest.raises(RecipeError, match="recipe.yml:2: weight is given for other models, but not for this one"):
        read(text.replace("y}", "y, parameters: {weight: 1}}"))
    assert names(read(text.replace("base_model: b", "base_model: y") + "parameters: {weight: 1}")) == ("y", ["x", "y"])


def test_a_slice_of_all_layers_is_a_list_of_models(read):
    text = (
        "slices:\n- sources:\n  - {model: b, layer_range: [0, 4]}\n  - {model: x, layer_range: [0, 4]}\n"
        "  parameters: {t: {filter: mlp, value: 0.1}}\n"
        "merge_method: slerp\nbase_model: b\nparameters: {t: 0.5}\n"
    )
    fields = read(text)
    assert names(fields) == ("b", ["x"]) and fields["parameters"]["t"] == ByTensor((Rule(0.1, "mlp"), Rule(0.5)))
    with pytest.raises(RecipeError, match=r"recipe.yml:4: layer_range: \[1, 4\] is not .* supported is \[0, 4\]"):
        read(text.replace("x, layer_range: [0", "x, layer_range: [1"))
    with pytest.raises(RecipeError, match="recipe.yml:2: slices: only one that has all layers is supported"):
        read(text.replace("merge_method", "- sources: []\nmerge_method"))
    with pytest.raises(RecipeError, match="recipe.yml:2: slices: there are models, too"):
        read(text + "models: [{model: x}]")


def test_models_lie_where_the_program_runs_else_beside_the_recipe(read, tmp_path, monkeypatch):
    read(TIES)
    (tmp_path / "elsewhere" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    fields = read_yaml(tmp_path / "recipe.yml")
    assert [str(agent) for agent in fields["agents"]] == ["x", str(tmp_path / "y")]


def test_anchors_and_merged_mappings_are_read(read):
    fields = read(
        "merge_method: ties\nbase_model: b\nmodels:\n"
        "  - {model: x, parameters: &p {weight: 0.5, density: 0.2}}\n"
        "  - {model: y, parameters: &q {<<: *p, weight: 1}}\n  - {model: z, parameters: {<<: *q}}\n"
    )
    assert fields["parameters"] == {"weight": (0.5, 1.0, 1.0), "density": 0.2}


def test_rescaling_of_dare_is_a_truth_in_mergekit(read):
    text = TIES.replace("ties", "dare_linear")
    assert read(text + "parameters: {rescale: true}")["parameters"] == {"rescale": "l1"}
    assert read(text + "parameters: {rescale: false}")["parameters"] == {"rescale": "none"}
    assert read(text + "parameters: {rescale: inverse_density}")["parameters"] == {"rescale": "inverse_density"}


@pytest.mark.parametrize(
    ("text", "notices"),
    [
        (TIES + "dtype: float32", ()),
        (TIES + "dtype: bfloat16", ("6: dtype bfloat16: computed in float32 all the same, rounded once",)),
        (
            TIES.replace("ties", "task_arithmetic") + "parameters: {density: 1}",
            ("6: density has no effect with task_",),
        ),
        (TIES + "  - {model: b, parameters: {weight: 1}}", ("6: the parameters of the base model have no effect",)),
    ],
)
def test_what_has_no_effect_is_told(read, text, notices):
    found = read(text)["notices"]
    assert len(found) == len(notices) and all(f"recipe.yml:{said}" in text for said, text in zip(notices, found))


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ".yml: is empty"),
        ("- 1", ":1: a recipe: wanted a mapping, found a list"),
        ("a: [", ":1: cannot be read as YAML"),
        ("\x00", "cannot be read as YAML"),
        ("--- {}\n--- {}", ":2: cannot be read as YAML"),
        ("a: !!python/object:os.system x", ":1: a recipe: a is not known"),
        ("merge_method: !!python/name:os.system x", ":1: merge_method: wanted a number, a text"),
        ("merge_method: !!int ''", ":1: merge_method: '' cannot be read"),
        (TIES + "parameters: {<<: 1}", ":6: parameters: expected a mapping or list of mappings for merging"),
        ("!!timestamp x: 1", ":1: key: wanted a number, a text"),
        ("base_model: b\n\nmerge_methd: ties", ":3: a recipe: merge_methd is not known; did you mean merge_method?"),
        ("merge_method: nope", ":1: merge_method: nope is not known; known are ram, "),
        ("merge_method: task_arithmetik", "did you mean task_arithmetic?"),
        ("merge_method: [ties]", ":1: merge_method: wanted a single value, found a list"),
        ("models: [{model: x}]", ":1: merge_method is missing"),
        ("merge_method: ties\nbase_model: b", ":1: models is missing"),
        ("merge_method: ties\nmodels: [{model: x}]", ":1: base_model is missing; ties needs it"),
        ("merge_method: linear\nmodels: []", ":2: models: the list is empty"),
        ("merge_method: ties\nbase_model: b\nmodels: [{model: b}]", "there is none beside the base"),
        ("merge_method: ties\nbase_model: b\nmodels: [x]", ":3: model: wanted a mapping, found 'x'"),
        ("merge_method: ties\nbase_model: b\nmodels: [{parameters: {}}]", ":3: model is missing"),
        ("merge_method: ties\nbase_model: b\nmodels: {x: 1}", ":3: models: wanted a list, found a mapping"),
        (TIES + "  - {model: x, weight: 1}", ":6: model: weight is not known; known are model, parameters"),
        (TIES + "  - model: ./x", ":6: x stands twice, at .*recipe.yml:4 already"),
        (TIES + "  - model: org/name", ":6: org/name: no such folder or file, here or beside the recipe; models"),
        (TIES + "  - model: x+lora", ":6: .*merging a LoRA adapter is not supported yet"),
        (TIES + "  - model: {model: {path: z, revision: main}}", ":6: revision: is not supported yet"),
        (TIES + "  - model: {model: {path: z}, lora: {path: x}}", ":6: lora: is not supported yet"),
        (TIES + "  - model: 7", ":6: path: wanted a text, found '7'"),
        (TIES + "models: []", ":6: models stands twice, in line 3 already"),
        (TIES + "modules: {}", ":6: modules: is not supported yet; supported are merge_method, "),
        (TIES + "chat_template: auto", ":6: chat_template: is not supported yet"),
        (TIES + "tokenizer_source: union", ":6: tokenizer_source: union is not supported yet; supported is base"),
        (TIES + "tokenizer: {source: base, tokens: {}}", ":6: tokens: is not supported yet"),
        (TIES + "dtype: int64", ":6: dtype: unknown dtype 'int64'"),
        (TIES + "parameters: {densiti: 1}", ":6: parameters: densiti is not known; did you mean density?"),
        (TIES + "parameters: {density: 2}", ":6: density=2 is out of range; wanted a number from 0 up to 1"),
        (TIES + "parameters:\n  density:\n  - value: no", ":8: density=False is not a number from 0 up to 1"),
        (TIES + "parameters: {density: '0.1,0.2'}", ":6: density: wanted one value, found '0.1,0.2'"),
        (TIES + "parameters: {density: []}", ":6: density: the list is empty"),
        (TIES + "parameters: {density: [1, [2]]}", ":6: density: wanted a single value, found a list"),
        (TIES + "parameters: {density: [{value: 1}, 2]}", ":6: density: wanted a mapping, found '2'"),
        (TIES + "parameters: {density: {filter: a}}", ":6: density: value is missing"),
        (TIES + "parameters: {density: {filter: [a], value: 1}}", ":6: filter: wanted a single value, found a list"),
        (TIES + "parameters: {density: {filtr: a, value: 1}}", ":6: density: filtr is not known; did you mean filter?"),
        (TIES + "parameters: {density: .nan}", ":6: density=nan is out of range"),
        (TIES + "parameters: {density: 2026-01-01}", ":6: density: wanted a number, a text, true or false"),
        (TIES + "parameters: {rescale: true}", ":6: rescale: ties cannot rescale yet; supported is false"),
        (TIES + "  - {model: z, parameters: {lambda: 2}}", ":6: lambda is one for all models: it has no effect here"),
        (TIES + "  - {model: z, parameters: {weight: 2}}", ":4: weight is given for other models, but not for this"),
        (TIES + "streammerge: {exclud: [x]}", ":6: streammerge: exclud is not known; did you mean exclude?"),
        (TIES + "streammerge: {exclude: x}", ":6: exclude: wanted a list, found 'x'"),
        (TIES + "streammerge: {pure: 1}", ":6: pure: wanted true or false, found 1"),
        (TIES + "streammerge: {max_shard_size: big}", ":6: max_shard_size: 'big' is not a size"),
        (TIES + "streammerge: {imatrix: nowhere}", ":6: nowhere: no such folder or file"),
        (TIES + "streammerge: {base: x}", ":6: base: ties has its base in base_model"),
        (TIES + "streammerge: {max_ram: 8G}", ":6: streammerge: max_ram is not known"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_an_error_with_its_line(read, text, said):
    with pytest.raises(RecipeError, match=f"recipe.yml{said}" if said[0] == ":" else said) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def of_aliases(key):
    before = chr(ord(key) - 1)
    return f"{key}: &{key} [{','.join([f'*{before}'] * 8)}]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]", "has more than 100,000 values, with every alias written out"),
        ("a: &a {<<: *a}", "has more than 100,000 values"),
        ("a: &a [1,1,1,1,1,1,1,1]\n" + "".join(map(of_aliases, "bcdefgh")), "has more than 100,000 values"),
        ("[" * 100_000, "nested too deeply"),
        ("{a: " * 20_000, "nested too deeply"),
        ("merge_method: " + "1" * 10_000, ":1: merge_method: .* cannot be read"),
        ("x" * (1 << 18) + "y", "too long for a recipe"),
    ],
    ids=["within itself", "merged into itself", "of aliases", "deep list", "deep mapping", "a long number", "long"],
)
def test_no_file_makes_it_slow(read, text, said):
    with pytest.raises(RecipeError, match=f"recipe.yml.*{said}"):
        read(text)


def test_what_cannot_be_opened_is_said(read, tmp_path):
    with pytest.raises(RecipeError, match="absent.yml: cannot be read: No such file"):
        read_yaml(tmp_path / "absent.yml")
    (tmp_path / "recipe.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="recipe.yml: cannot be read as YAML"):
        read_yaml(tmp_path / "recipe.yml")


# --- what is saved --------------------------------------------------------------------------------------------------


def merged(recipe, output):
    merge_recipe(recipe_of(**recipe, output=output, max_ram="1G"))
    return {file.name: file.read_bytes() for file in output.iterdir() if file.is_file()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "ram+", "parameters": {"preset": "authors", "r": "0.2"}},
        {"method": "ram+", "parameters": {"epsilon": ByTensor((Rule(1e-4, "mlp"),)), "r": BY_LAYER}},
        {"method": "task_arithmetic", "parameters": {"weight": "0.1,-2,1e-3", "lambda": 0.5}, "dtype": "f16"},
        {"method": "ties", "parameters": {"density": (0.3, ByTensor((Rule((0.1, 0.5), "attn"),)), 1.0)}},
        {"method": "dare_linear", "parameters": {"density": 0.5, "seed": 2**63 - 1, "rescale": "none"}},
        {"method": "dare_linear", "parameters": {"density": 0.5, "rescale": "inverse_density"}},
        {"method": "dare_linear", "parameters": {"density": 0.5, "rescale": ByTensor((Rule(("l1", "none"), "mlp"),))}},
        {"method": "linear", "parameters": {"weight": [1, 2, 3]}, "exclude": ["norm$", "ä"], "only": ["layers"]},
        {"max_shard_size": "100KB", "allow_non_finite": True, "mixed_dtypes": True, "method": "ram", "head": "tied"},
    ],
)  # fmt: skip
def test_a_saved_recipe_gives_the_same_bytes(tiny, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tiny)  # paths are saved in full
    agents = ["agent-0", "agent-1", "agent-2"]
    recipe = recipe_of("base", agents, **options)
    with saving(recipe, str(tmp_path / "recipe.yml")):
        first = merged({"base": "base", "agents": agents, **options}, tmp_path / "a" / "out")
    monkeypatch.chdir(tmp_path)
    fields = read_yaml(tmp_path / "recipe.yml")
    again = recipe_of(**fields)
    assert recipe_yaml(again) == (tmp_path / "recipe.yml").read_text()
    kept = ("method", "exclude", "only", "dtype", "max_shard_size", "allow_non_finite", "mixed_dtypes", "head", "gguf")
    for name in kept:
        assert getattr(again, name) == getattr(recipe, name), name
    assert merged(fields, tmp_path / "b" / "out") == first


def test_every_option_for_gguf_is_saved(tiny, tmp_path):
    (tmp_path / "imatrix.dat").write_bytes(b"")
    options = {
        "quantize": "Q4_K_M", "intermediate": "f32", "imatrix": tmp_path / "imatrix.dat", "pure": True,
        "tensor_types": ["a=b=Q6_K", "ffn=Q8_0"], "output_tensor_type": "F16", "token_embedding_type": "Q8_0",
        "gguf_template": tmp_path / "imatrix.dat", "pre_tokenizer": "llama-bpe", "max_shard_size": 0,
    }  # fmt: skip
    recipe = recipe_of(tiny / "base", [tiny / "agent-0"], method="ram", **options)
    (tmp_path / "recipe.yml").write_text(recipe_yaml(recipe))
    again = recipe_of(**read_yaml(tmp_path / "recipe.yml"))
    assert again.gguf == recipe.gguf and again.max_shard_size == 0 and again.agents == recipe.agents


def test_a_saved_gguf_recipe_gives_the_same_file(tmp_path):
    from bench.sample.generate import SHAPES
    from tests.gguf.merging import make_models

    base, agents = make_models(tmp_path / "models", SHAPES["tiny"])
    plain = [str(base), *map(str, agents), "--quantize", "Q8_0", "--pre-tokenizer", "llama-bpe", "--max-ram", "1G"]
    saved = str(tmp_path / "saved.yml")
    for arguments in ([*plain, "--save-recipe", saved, "-o", "a/m.gguf"], [saved, "--max-ram", "1G", "-o", "b/m.gguf"]):
        arguments[-1] = str(tmp_path / arguments[-1])
        done = CliRunner().invoke(cli, ["merge", *arguments, "-q"], catch_exceptions=False)
        assert done.exit_code == 0
    assert (tmp_path / "a/m.gguf").read_bytes() == (tmp_path / "b/m.gguf").read_bytes()


def test_what_is_saved_is_mergekits_as_far_as_it_goes(tiny):
    recipe = recipe_of(
        tiny / "base", [tiny / "agent-0", tiny / "agent-1"], method="ties", dtype="bf16", exclude=["norm"],
        parameters={"weight": "1,2", "density": ByTensor((Rule((0.1, 0.9), "mlp"),))},
    )  # fmt: skip
    assert yaml.safe_load(recipe_yaml(recipe)) == {
        "merge_method": "ties",
        "base_model": str(tiny / "base"),
        "models": [
            {"model": str(tiny / "agent-0"), "parameters": {"weight": 1.0}},
            {"model": str(tiny / "agent-1"), "parameters": {"weight": 2.0}},
        ],
        "parameters": {
            "density": [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 1.0}], "lambda": 1.0, "normalize": True,
        },
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "streammerge": {"exclude": ["norm"]},
    }  # fmt: skip


def test_the_model_card_has_the_recipe_with_names(tiny, tmp_path):
    streammerge.merge(tiny / "base", [tiny / "agent-0"], tmp_path / "out", method="linear", max_ram="1G")
    text = (tmp_path / "out/README.md").read_text().split("```yaml\n")[1].split("```")[0]
    said = yaml.safe_load(text)
    assert said["models"] == [{"model": "agent-0"}] and said["streammerge"] == {"base": "base"}


def test_a_recipe_is_saved_when_all_went_well_and_over_nothing(tiny, tmp_path):
    recipe = recipe_of(tiny / "base", [tiny / "agent-0"])
    target = tmp_path / "recipe.yml"
    with pytest.raises(ZeroDivisionError), saving(recipe, str(target)):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
    target.write_text("mine")
    with pytest.raises(OutputError, match="recipe.yml: exists already.*--overwrite"), saving(recipe, str(target)):
        raise AssertionError("too late")
    assert target.read_text() == "mine"
    with saving(recipe_of(tiny / "base", [tiny / "agent-0"], overwrite=True), str(target)):
        pass
    assert target.read_text().startswith("merge_method: ram+")
    for name, said in (("recipe.txt", "end it in .yml"), ("nowhere/r.yml", "not a file in a folder")):
        with pytest.raises(streammerge.StreammergeError, match=said), saving(recipe, str(tmp_path / name)):
            raise AssertionError("too late")


def test_options_that_are_given_go_before_the_recipes(tiny, tmp_path):
    recipe = recipe_of(tiny / "base", [tiny / "agent-0"], exclude=["norm"], mixed_dtypes=True, parameters={"r": 0.5})
    (tmp_path / "recipe.yml").write_text(recipe_yaml(recipe))

    def plan(*arguments):
        done = CliRunner().invoke(
            cli, ["plan", str(tmp_path / "recipe.yml"), "--json", "-q", "--max-ram", "1G", *arguments]
        )
        shown = json.loads(done.output)
        return {t["name"] for t in shown["tensors"] if t["action"] == "copy"}, shown["method"]["parameters"]["r"]

    copied, r = plan()
    assert copied and all("norm" in name for name in copied) and r == 0.5
    copied, r = plan("--exclude", "embed", "-p", "r=0.25", "--save-recipe", str(tmp_path / "saved.yml"))
    assert copied == {"model.embed_tokens.weight"} and r == 0.25
    said = yaml.safe_load((tmp_path / "saved.yml").read_text())
    assert said["parameters"]["r"] == 0.25 and said["streammerge"] == {"exclude": ["embed"], "mixed_dtypes": True}
    assert plan("-p", "preset=authors")[1] == 0.05


# --- what becomes of it ---------------------------------------------------------------------------------------------


def test_a_tensor_without_a_value_is_named(tiny):
    agents = [tiny / "agent-0", tiny / "agent-1"]
    some = ByTensor((Rule(1.0, "layers"),))
    with pytest.raises(RecipeError, match="ties: weight of .*agent-1 is not given for tensor '.*'; end its list"):
        plan_recipe(recipe_of(tiny / "base", agents, method="ties", parameters={"weight": (1, some)}))
    with pytest.raises(RecipeError, match="slerp: t is not given for tensor '"):
        plan_recipe(recipe_of(tiny / "base", agents[:1], method="slerp", parameters={"t": some}))
    assert plan_recipe(recipe_of(tiny / "base", agents, method="ties", parameters={"lambda": some}))


def test_a_bad_value_in_any_branch_fails_in_the_plan(tiny):
    only_heads = ByTensor((Rule((1.0, -1.0), "norm"), Rule(1.0)))
    agents = [tiny / "agent-0", tiny / "agent-1"]
    with pytest.raises(RecipeError, match="linear: the weights add up to 0"):
        plan_recipe(recipe_of(tiny / "base", agents, method="linear", parameters={"weight": (only_heads, -1.0)}))
    with pytest.raises(RecipeError, match="t=.* is out of range"):
        plan_recipe(recipe_of(tiny / "base", agents[:1], method="slerp", parameters={"t": only_heads}))


def test_a_filter_that_matches_nothing_is_told(tiny):
    filtered = ByTensor((Rule(1.0, "atn"), Rule(0.5)))
    plan = plan_recipe(recipe_of(tiny / "base", [tiny / "agent-0"], method="slerp", parameters={"t": filtered}))
    assert "t: the filter 'atn' matches no tensor that is merged" in plan.notices
