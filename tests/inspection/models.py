"""Small models for these tests: names as checkpoints have them, agents of every kind."""

import numpy as np

import streammerge
from tests.checks import DTYPES, make_agent, make_base, save_models

SHAPES = {
    "model.embed_tokens.weight": (300, 64),
    "model.layers.0.self_attn.q_proj.weight": (300, 300),  # more than a block, and its last one is short
    "model.layers.0.input_layernorm.weight": (64,),
    "model.layers.1.self_attn.q_proj.weight": (64, 64),
    "model.layers.1.mlp.experts.0.w1.weight": (5, 3),  # shorter than a sample
    "model.layers.1.mlp.experts.1.w1.weight": (64, 32),
    "model.norm.weight": (64,),
}


def make_models(agents=3, dtype="F32", seed=0):
    """A base and agents, of which the first changes the norms not at all; the last one some weights by epsilon."""
    rng = np.random.default_rng(seed)
    base = {name: make_base(rng, shape, dtype) for name, shape in SHAPES.items()}
    made = [{name: make_agent(rng, values) for name, values in base.items()} for _ in range(agents)]
    made[0] |= {name: values.copy() for name, values in base.items() if "norm" in name}
    for model in (base, *made):
        model["model.norm.weight"][:2] = 0
    made[-1]["model.norm.weight"][:2] = 1e-5, -1e-5  # not changed: epsilon must be exceeded
    return base, made


def inspect(folder, base, agents, *, config=None, **options):
    paths = save_models(folder, base, agents, config)
    return streammerge.inspect(*paths, max_ram=options.pop("max_ram", "1G"), **options)


def uncommon(rng, shape, dtype="BF16"):
    """Weights as a trained matrix has them."""
    return (rng.standard_normal(shape) * 0.02).astype(DTYPES[dtype])
