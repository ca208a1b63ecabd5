"""Records what mergekit 0.1.5 makes of recipes whose parameters vary by tensor: for tests/test_mergekit_recipes.py.

    python scripts/record_recipes.py             (in an environment with mergekit==0.1.5; writes the fixture anew)

The recipes are texts that both programs are given as they are; MODELS stands for the folder of the checkpoints.
"""

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from scripts.record_mergekit import (
    FIXTURE,
    Size,
    fingerprint,
    flat_bits,
    magnitudes_are_distinct,
    make_models,
    pack,
    run_mergekit,
    write_models,
)

RECORDED = FIXTURE.with_name("recipes.npz")
SIZE = Size(hidden=16, intermediate=24, layers=4, vocabulary=32)

_SLERP_T = """
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: float32
"""
_MODELS = """
base_model: MODELS/base
models:
  - {model: MODELS/base}
  - {model: MODELS/agent1, parameters: {ONE}}
  - {model: MODELS/agent2, parameters: {TWO}}
  - {model: MODELS/agent3}
dtype: float32
"""


def _recipe(text: str, one: str, two: str) -> str:
    return text + _MODELS.replace("{ONE}", one).replace("{TWO}", two)


RECIPES = {
    # the recipe that most people know, over all layers and as a list of models
    "slerp": """
slices:
  - sources:
      - {model: MODELS/base, layer_range: [0, 4]}
      - {model: MODELS/agent3, layer_range: [0, 4]}
merge_method: slerp
base_model: MODELS/base
""" + _SLERP_T,
    "slerp_far": "merge_method: slerp\nbase_model: MODELS/base\nmodels: [{model: MODELS/far}]" + _SLERP_T,
    "task_arithmetic": _recipe(
        "merge_method: task_arithmetic\n"
        "parameters: {weight: [{filter: norm, value: 2}, {filter: layers.2, value: -0.5}, {value: [0.1, 1e-1, 0.9]}],\n"
        "             lambda: [{filter: Norm, value: 0}, {filter: mlp, value: [0.5, 1.25]}], int8_mask: true}",
        "{weight: [{filter: mlp.up, value: [0.25, 0.75]}, {filter: mlp, value: 0.3}]}",
        "{weight: [1, 0.7]}",
    ),
    "ties": _recipe(
        "merge_method: ties\n"
        "parameters: {weight: [0.4, 0.8], density: {filter: '*', value: 0.3},\n"
        "             normalize: [true, false, true], lambda: [{filter: down_proj, value: 1.5}]}",
        "{density: [{filter: self_attn, value: [0.2, 0.5]}, {filter: lm_head, value: 1}]}",
        "{weight: 1.1, density: [0.4, 0.1]}",
    ),
    "dare_linear": _recipe(
        "merge_method: dare_linear\n"
        "parameters: {weight: 0.5, density: 1, rescale: true, normalize: [{filter: self_attn, value: true}]}",
        "{weight: [{filter: k_proj, value: 0.9}]}",
        "{weight: [{filter: layers.1., value: 0}]}",
    ),
    "ram": "merge_method: ram\nbase_model: MODELS/base\nmodels: [{model: MODELS/agent1}, {model: MODELS/agent2}]\n"
    "parameters: {epsilon: [{filter: mlp, value: [1e-5, 1e-3]}, {filter: o_proj, value: 1e-4}]}\ndtype: float32",
    "ramplus_tl": _recipe(
        "merge_method: ramplus_tl\n"
        "parameters: {r: [0.1, 0.9, 0.3], alpha: [{filter: self_attn, value: 2}],\n"
        "             epsilon: [{filter: mlp, value: 1e-4}]}",
        "{}",
        "{}",
    ),
    # the base, not among the models, is one more input
    "linear": "merge_method: linear\nbase_model: MODELS/base\n"
    "models: [{model: MODELS/agent1, parameters: {weight: [0.2, 0.8]}}, {model: MODELS/agent2}]\n"
    "parameters: {weight: [{filter: mlp, value: 0.3}, {value: 0.6}], normalize: [{filter: q_proj, value: false}]}\n"
    "dtype: float32",
}  # fmt: skip
DENSITIES = (0.1, 0.2, 0.3, 0.4, 0.5)


def recipe_text(name: str, models: Path) -> str:
    """A recipe as a file has it; the checkpoints lie in ``models``."""
    return RECIPES[name].replace("MODELS", str(models))


def main() -> None:
    """Write the fixture."""
    models = make_models(size=SIZE)
    assert all(magnitudes_are_distinct(models, density) for density in DENSITIES), "choose another seed"
    base = flat_bits(models["base"])
    kept: dict[str, Any] = {"inputs": fingerprint(models), "mergekit": version("mergekit")}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder / "models", models, SIZE)
        for name in RECIPES:
            configuration = yaml.safe_load(recipe_text(name, folder / "models"))
            kept[name] = pack(flat_bits(run_mergekit(configuration, folder / name)) ^ base)
    np.savez_compressed(RECORDED, **kept)
    print(f"{RECORDED}: {RECORDED.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
