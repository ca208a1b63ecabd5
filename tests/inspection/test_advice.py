"""Advice, provoked for real: agents that went through quantized blocks, copies, strangers, dense deltas."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import streammerge
from streammerge.formats import quants
from streammerge.formats.quants import QUANTS
from streammerge.inspection.advice import advise
from tests.inspection.models import inspect, uncommon

MATRICES = [f"model.layers.{layer}.{module}.weight" for layer in range(3) for module in ("q_proj", "up_proj")]


@pytest.fixture(scope="module")
def base():
    rng = np.random.default_rng(0)
    norms = {f"model.layers.{layer}.norm.weight": np.ones(256, ml_dtypes.bfloat16) for layer in range(3)}
    return {name: uncommon(rng, (256, 256)) for name in MATRICES} | norms


def reinforced(model, seed, share=0.1):
    """A share of the weights moved by 1 to 4 units in the last place, as reinforcement learning in bfloat16 does."""
    rng = np.random.default_rng(seed)

    def move(values):
        steps = rng.choice([-4, -3, -2, -1, 1, 2, 3, 4], values.shape)
        steps = np.where((rng.random(values.shape) < share) & (values != 0), steps, 0)
        return (values.view(np.uint16).astype(np.int32) + steps).astype(np.uint16).view(ml_dtypes.bfloat16)

    return {name: move(values) if values.ndim > 1 else values for name, values in model.items()}


def finetuned(model, seed, size=0.01):
    """Every weight moved by a normally distributed amount, as supervised finetuning does."""
    rng = np.random.default_rng(seed)
    moved = {n: v.astype("f4") + rng.standard_normal(v.shape) * 0.02 * size for n, v in model.items()}
    return {name: values.astype(ml_dtypes.bfloat16) for name, values in moved.items()}


def quantized(model, kind):
    """Once through blocks of this type and back to bfloat16; vectors stay, as in GGUF."""

    def through(values):
        flat, quant = np.ravel(values.astype("f4")), QUANTS[kind]
        packed = np.empty(flat.size // quant.block * quant.nbytes, np.uint8)
        quants.encode(kind, flat, values.shape[-1], None, packed)
        back = np.empty_like(flat)
        quants.decode(kind, packed, back)
        return back.reshape(values.shape).astype(ml_dtypes.bfloat16)

    return {name: through(values) if values.ndim > 1 else values for name, values in model.items()}


def rules(found):
    return [item.rule for item in advise(found)]


def warnings(found):
    return [item.rule for item in advise(found) if item.kind == "warning"]


def test_sparse_agents_are_well(base, tmp_path):
    found = inspect(tmp_path, base, [reinforced(base, 1), reinforced(base, 2)])
    assert warnings(found) == [] and "sparse" in rules(found)
    assert any("ram and ram+ are made for these agents" in item.text for item in advise(found))


@pytest.mark.parametrize("size", [0.005, 0.01, 0.1])
def test_dense_deltas_are_not_for_ram(base, tmp_path, size):
    found = inspect(tmp_path, base, [finetuned(base, 1, size), reinforced(base, 2)])
    assert warnings(found) == ["dense"]
    assert (
        "agent0 changed" in advise(found)[0].text and "ram and ram+ are not for dense deltas" in advise(found)[0].text
    )


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q5_0", "Q4_K", "Q4_0", "Q2_K", "IQ4_XS", "MXFP4"])
def test_quantized_agents_of_a_whole_base_are_noise(base, tmp_path, kind):
    found = inspect(tmp_path, base, [quantized(reinforced(base, seed), kind) for seed in (1, 2)])
    assert warnings(found) == ["quantized", "quantized"]
    assert "it was quantized, the base was not" in advise(found)[0].text


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q4_K", "Q4_0", "Q2_K"])
def test_agents_and_base_quantized_each_for_itself_are_noise(base, tmp_path, kind):
    found = inspect(tmp_path, quantized(base, kind), [quantized(reinforced(base, seed), kind) for seed in (1, 2)])
    assert warnings(found) == ["quantized", "quantized"]
    assert "base and agent were quantized" in advise(found)[0].text


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_a_quantized_base_of_whole_agents_is_noise(base, tmp_path, kind):
    found = inspect(tmp_path, quantized(base, kind), [reinforced(base, 1), reinforced(base, 2)])
    assert warnings(found) == ["quantized", "quantized"]
    assert "the base was quantized, the agents were not" in advise(found)[0].text


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q4_K"])
def test_training_from_values_that_were_quantized_is_no_noise(base, tmp_path, kind):
    start = quantized(base, kind)
    assert warnings(inspect(tmp_path, start, [reinforced(start, 1), reinforced(start, 2, 0.3)])) == []
    assert warnings(inspect(tmp_path, start, [finetuned(start, 1), finetuned(start, 2)])) == ["dense", "dense"]


def test_a_copy_of_the_base_and_twins_are_found(base, tmp_path):
    agent = reinforced(base, 1)
    found = inspect(tmp_path, base, [agent, base, agent])
    assert warnings(found) == ["unchanged", "identical"]
    assert "agent1 equals the base" in advise(found)[0].text
    assert "agent0 and agent2 have the same deltas" in advise(found)[1].text


def test_changes_under_epsilon_are_no_changes(base, tmp_path):
    found = inspect(tmp_path, base, [reinforced(base, 1)], epsilon=0.5)
    assert warnings(found) == ["unchanged"] and "under epsilon (0.5)" in advise(found)[0].text


def test_nearly_the_same_agents_are_found(base, tmp_path):
    agent = finetuned(base, 1)
    other = {name: values.copy() for name, values in agent.items()}
    other[MATRICES[0]][0, :3] = base[MATRICES[0]][0, :3]
    found = inspect(tmp_path, base, [agent, other])
    assert "identical" in warnings(found) and any("nearly the same" in item.text for item in advise(found))


def test_a_model_from_elsewhere_is_found(base, tmp_path):
    rng = np.random.default_rng(9)
    stranger = {name: uncommon(rng, values.shape) for name, values in base.items()}
    found = inspect(tmp_path, base, [stranger, reinforced(base, 1)])
    assert warnings(found) == ["foreign"] and "agent0 did not come from this base" in advise(found)[0].text


def test_tensors_that_no_agent_touched_are_counted(base, tmp_path):
    agent = reinforced(base, 1)
    agent[MATRICES[0]] = base[MATRICES[0]]
    found = inspect(tmp_path, base, [agent])
    assert "frozen" in rules(found) and "4 of 9 tensors, 17% of the weights" in " ".join(x.text for x in advise(found))


def test_three_real_agents_are_well(tmp_path):
    """Trained by reinforcement learning from a base whose own values were once quantized: nothing to warn of."""
    folder = Path(__file__).parents[2] / "sample" / "smollm2"
    agents = [folder / name for name in ("sum", "caps", "json")]
    if not all((path / "model.safetensors").exists() for path in (folder / "base", *agents)):
        pytest.skip("no sample/smollm2; scripts/demo makes it")
    found = streammerge.inspect(folder / "base", agents, max_ram="1G")
    assert warnings(found) == []
    assert float(found.matrices.base_coarseness) > 0.4
