"""Recipes whose parameters vary by tensor, against what mergekit 0.1.5 made of the same texts.

They are recorded by scripts/record_recipes.py.
Equal to the bit but for the sign of zero, with the exceptions of tests/methods/test_mergekit.py: linear, slerp.
"""

import importlib.util

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from scripts.record_mergekit import fingerprint, flat_bits, make_models, run_mergekit, unpack, write_models
from scripts.record_recipes import RECIPES, RECORDED, SIZE, recipe_text
from streammerge.api import merge_recipe, plan_recipe, recipe_of
from streammerge.mergekit_yaml import read_yaml
from tests.checks import check_close, check_same_bits, check_same_numbers

EXACT = [name for name in RECIPES if name not in ("linear", "slerp", "slerp_far")]


@pytest.fixture(scope="module")
def models():
    return make_models(size=SIZE)


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORDED) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    write_models(folder, models, SIZE)
    return folder


@pytest.fixture
def compare(models, recorded, folder, tmp_path):
    """(ours, mergekit's) of one recipe: all weights in a row."""

    def both(name):
        (tmp_path / "recipe.yml").write_text(recipe_text(name, folder))
        merge_recipe(recipe_of(**read_yaml(tmp_path / "recipe.yml"), output=tmp_path / "out"))
        ours = load_file(tmp_path / "out" / "model.safetensors")
        theirs = unpack(recorded[name]) ^ flat_bits(models["base"])
        return flat_bits(ours).view(np.float32), theirs.view(np.float32)

    return both


def weights(models, name):
    return flat_bits(models[name]).view(np.float32)


def test_the_recordings_belong_to_these_checkpoints(models, recorded):
    assert str(recorded["inputs"]) == fingerprint(models)
    assert str(recorded["mergekit"]) == "0.1.5"


@pytest.mark.parametrize("name", EXACT)
def test_equal_to_the_bit(compare, name):
    ours, theirs = compare(name)
    check_same_numbers(ours, theirs, name)


def test_the_classic_slerp(models, compare):
    ours, theirs = compare("slerp")
    base = weights(models, "base")
    unchanged = weights(models, "agent3") == base
    check_same_numbers(ours[~unchanged], theirs[~unchanged])
    check_same_bits(ours[unchanged], base[unchanged])


def test_slerp_on_the_arc(compare):
    ours, theirs = compare("slerp_far")
    check_close(ours, theirs, 1e-6 * np.abs(theirs).max())


def test_linear(models, compare):
    ours, theirs = compare("linear")
    agents = np.stack([weights(models, name) for name in ("agent1", "agent2", "base")])
    check_close(ours, theirs, 2 * np.spacing(2 * np.abs(agents).max(axis=0)))
    assert (
        len(np.unique(np.round(theirs / agents[2], 1))) > 1
    )  # where weights are not normalized they do not add up to 1


def test_a_plan_builds_each_method_once(folder, tmp_path):
    (tmp_path / "recipe.yml").write_text(recipe_text("slerp", folder))
    plan = plan_recipe(recipe_of(**read_yaml(tmp_path / "recipe.yml")))
    found = {job.name: plan.method_of(job) for job in plan.jobs}
    assert found["model.layers.1.mlp.up_proj.weight"] is found["model.layers.1.mlp.down_proj.weight"]
    assert found["model.layers.0.self_attn.q_proj.weight"].t == 0
    assert found["model.layers.3.mlp.up_proj.weight"].t == 0
    assert found["lm_head.weight"] is found["model.layers.2.input_layernorm.weight"]
    assert len({id(method) for method in found.values()}) == len({method.t for method in found.values()}) < 9
    assert plan.to_dict()["method"]["parameters"]["t"][0] == {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}


@pytest.mark.skipif(importlib.util.find_spec("mergekit") is None, reason="mergekit is not installed")
def test_mergekit_makes_today_what_was_recorded(models, recorded, folder, tmp_path):
    live = run_mergekit(yaml.safe_load(recipe_text("ties", folder)), tmp_path / "live")
    recorded_bits = unpack(recorded["ties"]) ^ flat_bits(models["base"])
    check_same_numbers(flat_bits(live).view(np.float32), recorded_bits.view(np.float32))
