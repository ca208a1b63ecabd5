"""Parameters that vary by tensor: which value a tensor has, and what becomes of it in methods that count."""

import numpy as np
import pytest
from safetensors.numpy import load_file

import streammerge
from bench.sample.generate import SHAPES
from streammerge.varying import ByTensor, Rule, depths, methods_by_tensor
from tests import oracle
from tests.checks import check_same_bits, check_same_numbers, make_agent, make_base, merge
from tests.gguf.merging import PRE, check_file, make_models


def test_a_filter_is_a_part_of_the_name_and_the_first_that_matches_decides():
    value = ByTensor((Rule(1.0, "layers.1"), Rule(2.0, "MLP"), Rule(3.0, "mlp"), Rule(4.0, "*"), Rule(5.0)))
    assert value.at("model.layers.10.mlp.up", 0) == 1  # no pattern: layers.1 is in layers.10
    assert value.at("model.layers.2.mlp.up", 0) == 3
    assert value.at("lm_head", 0) == 4
    assert ByTensor((Rule(1.0, "a.*b"),)).at("a.b", 0) is None


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ((1.0, 2.0, 4.0), [1, 1.5, 2, 3, 4]),
        ((0.3, 0.7), [0.3, 0.75 * 0.3 + 0.25 * 0.7, 0.5, 0.25 * 0.3 + 0.75 * 0.7, 0.7]),
        ((True, False, True), [True, True, False, False, True]),
        (("l1", "none"), ["l1", "l1", "l1", "l1", "none"]),
    ],
)
def test_a_gradient_is_spread_over_the_layers(values, wanted):
    assert [ByTensor((Rule(values),)).at("w", depth) for depth in (0, 0.25, 0.5, 0.75, 1)] == wanted


def test_a_gradient_is_rounded_as_mergekit_rounds_it():
    assert ByTensor((Rule((0.3, 0.7)),)).at("w", 1 / 3) == (1 - 1 / 3) * 0.3 + 1 / 3 * 0.7 != 0.3 + 1 / 3 * (0.7 - 0.3)


def test_the_depth_of_a_tensor_is_its_layer_among_those_that_begin_alike():
    towers = [f"vision.blocks.{n}.w" for n in range(2)] + [f"model.layers.{n}.experts.7.w" for n in range(4)]
    found = depths([*towers, "model.embed.w", "model.norm.w", "h.0.w", "single.0.conv.3.w", "w.1", f"x.{'9' * 5000}.w"])
    assert [found[name] for name in towers] == [0, 1, 0, 1 / 3, 2 / 3, 1]
    assert found["model.embed.w"] == found["model.norm.w"] == found["w.1"] == 0  # also what comes after the layers
    assert found["h.0.w"] == found["single.0.conv.3.w"] == 1  # of one layer alone


def test_the_gaps_of_some_agents_are_the_default():
    some = ByTensor((Rule(0.5, "a"),))
    found = methods_by_tensor("ties", {"density": (some, 0.25)}, ["x", "y"], ["a", "b"], ["a", "b"])
    assert [found[name].density for name in "ab"] == [(0.5, 0.25), (1.0, 0.25)]
    found = methods_by_tensor("ram+", {"preset": "authors", "r": some, "alpha": some}, ["x"], ["a", "b"], ["a", "b"])
    assert [(found[name].r, found[name].alpha) for name in "ab"] == [(0.5, 0.5), (0.05, 1.0)]


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_ram_plus_counts_with_each_tensors_epsilon_and_blends_with_its_r_and_alpha(tmp_path, dtype):
    rng = np.random.default_rng(5)
    epsilon, r, alpha = (
        {"a": 1e-5, "b": 3e-3, "c": 1e-5},
        {"a": 0.1, "b": 2.0, "c": 2.0},
        {"a": 0.2, "b": 0.2, "c": 9.0},
    )
    base = {name: make_base(rng, (300, 257), dtype) for name in epsilon}
    agents = [{name: make_agent(rng, base[name]) for name in base} for _ in range(3)]
    rules = {
        name: ByTensor((*(Rule(value, key) for key, value in values.items() if key != "c"), Rule(values["c"])))
        for name, values in (("epsilon", epsilon), ("r", r), ("alpha", alpha))
    }
    plain = {name: oracle.as_float32(base[name]) for name in base}
    others = {name: np.stack([oracle.as_float32(agent[name]) for agent in agents]) for name in base}
    counts = sum(oracle.count_changes(plain[name], others[name], epsilon[name]) for name in base)
    one = sum(oracle.count_changes(plain[name], others[name], 1e-5) for name in base)
    assert np.all(counts != one)
    merged = merge(tmp_path, "ram+", base, agents, rules, max_ram="1G")
    for name in base:
        scales = oracle.ram_plus_scales(counts, r[name], alpha[name])
        wanted = oracle.as_stored(oracle.ram(plain[name], others[name], epsilon[name], scales), base[name])
        check_same_bits(merged.tensors[name], wanted, name)
    assert [(share.changed, share.unique, share.scale) for share in merged.report.agents] == [
        (changed, unique, None) for changed, unique in counts.tolist()
    ]


@pytest.mark.parametrize("budget", ["170M", "1G"])
def test_passes_that_only_some_tensors_need_change_no_byte(tmp_path, budget):
    """ties needs no passes where everything is kept: half of the tensors are blended at once."""
    rng = np.random.default_rng(6)
    base = {name: make_base(rng, (500, 400)) for name in ("a.0.w", "a.1.w", "b.w", "c.w")}
    agents = [{name: make_agent(rng, base[name]) for name in base} for _ in range(2)]
    density = ByTensor((Rule((0.2, 1.0), "a"), Rule(1.0, "b"), Rule(0.5)))
    merged = merge(tmp_path, "ties", base, agents, {"density": density}, max_ram=budget)
    for name, kept in (("a.0.w", 0.2), ("a.1.w", 1.0), ("b.w", 1.0), ("c.w", 0.5)):
        rows = np.stack([oracle.as_float32(agent[name]) for agent in agents])
        wanted = oracle.as_stored(oracle.ties(oracle.as_float32(base[name]), rows, density=kept), base[name])
        check_same_numbers(merged.tensors[name], wanted, name)


def test_a_gguf_file_has_the_same_values(tmp_path):
    base, agents = make_models(tmp_path / "models", SHAPES["tiny"])
    t = ByTensor((Rule((0.0, 1.0), "up_proj"), Rule(0.25)))
    for name in ("merged.safetensors", "merged.gguf"):
        options = PRE if name.endswith(".gguf") else {}
        output = tmp_path / name
        streammerge.merge(base, agents[:1], output, method="slerp", parameters={"t": t}, max_ram="1G", **options)
    merged = {name: values.astype(np.float32) for name, values in load_file(tmp_path / "merged.safetensors").items()}
    check_file(tmp_path / "merged.gguf", merged, SHAPES["tiny"])
