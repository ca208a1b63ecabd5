"""Every statistic against plain float64 numpy; and the same numbers however the work is cut."""

import json

import numpy as np
import pytest

from streammerge.inspection.document import json_pieces
from streammerge.inspection.places import Place, places_of
from streammerge.tree import Tree, rows_waiting
from tests.checks import save_models
from tests.inspection.models import SHAPES, inspect, make_models

EPSILON = np.float32(1e-5)


class Expected:
    """The statistics of some tensors together, as slowly and obviously as can be."""

    def __init__(self, base, agents, names, epsilon=EPSILON):
        self.base = np.concatenate([np.ravel(base[name]).astype("f4") for name in names])
        self.agents = [np.concatenate([np.ravel(agent[name]).astype("f4") for name in names]) for agent in agents]
        self.deltas = [(agent - self.base).astype("f8") for agent in self.agents]
        self.changed = np.stack([np.abs(delta) > epsilon for delta in self.deltas])
        self.count = self.changed.sum(axis=0)

    def whole(self):
        exactly = [int((self.count == k).sum()) for k in range(len(self.agents) + 1)]
        return {
            "weights": self.base.size,
            "changed_by_number_of_agents": exactly,
            "shared": int((self.count >= 2).sum()),
            "base_norm": np.linalg.norm(self.base.astype("f8")),
        }

    def agent(self, number):
        delta, changed = self.deltas[number], self.changed[number]
        n, unique = int(changed.sum()), int((changed & (self.count == 1)).sum())
        rho = (n - unique) / unique if unique else None if n else 0.0
        clipped = 0.0 if n == 0 else min(0.2 if rho is None else rho, 0.2)
        return {
            "changed": n,
            "unique": unique,
            "shared": n - unique,
            "density": n / delta.size,
            "update_sparsity": float((np.abs(delta) <= np.float32(1e-5)).mean()),
            "unique_share": unique / n if n else None,
            "overlap_ratio": rho,
            "scale": float(np.float32(1 + 0.1 * clipped)),
            "relative_norm": np.linalg.norm(delta) / np.linalg.norm(self.base.astype("f8")),
            "largest": float(np.abs(delta).max()),
            "norm": np.linalg.norm(delta),
        }

    def pair(self, first, second):
        x, y = self.deltas[first], self.deltas[second]
        both = self.changed[first] & self.changed[second]
        either = self.changed[first] | self.changed[second]
        norms = np.linalg.norm(x) * np.linalg.norm(y)
        return {
            "changed_by_both": int(both.sum()),
            "overlap": both.sum() / either.sum() if either.any() else None,
            "sign_agreement": (np.sign(x[both]) == np.sign(y[both])).mean() if both.any() else None,
            "cosine": float(x @ y / norms) if norms else None,
        }


def check_group(found, expected):
    for key, value in expected.whole().items():
        assert found[key] == pytest.approx(value, rel=1e-12), key
    for number, agent in enumerate(found["agents"]):
        for key, value in expected.agent(number).items():
            wanted = value if value is None or isinstance(value, int) else pytest.approx(value, rel=1e-12, abs=1e-300)
            assert agent[key] == wanted, (key, agent["agent"])
    pairs = [(i, k) for i in range(len(found["agents"])) for k in range(i + 1, len(found["agents"]))]
    assert len(found["pairs"]) == len(pairs)
    for pair, place in zip(found["pairs"], pairs):
        assert pair["agents"] == [found["agents"][number]["agent"] for number in place]
        for key, value in expected.pair(*place).items():
            wanted = value if value is None or isinstance(value, int) else pytest.approx(value, rel=1e-9, abs=1e-12)
            assert pair[key] == wanted, (key, place)


def as_json(found):
    return json.loads("".join(json_pieces(found)))


@pytest.mark.parametrize(("agents", "dtype"), [(1, "F32"), (3, "F32"), (3, "BF16"), (5, "F16")])
def test_every_number_is_that_of_numpy(tmp_path, agents, dtype):
    base, made = make_models(agents, dtype)
    found = as_json(inspect(tmp_path, base, made))
    check_group(found["total"], Expected(base, made, SHAPES))
    assert [tensor["tensor"] for tensor in found["tensors"]] == sorted(SHAPES)  # safetensors writes them so
    for tensor in found["tensors"]:
        check_group(tensor, Expected(base, made, [tensor["tensor"]]))
        assert tuple(tensor["shape"]) == SHAPES[tensor["tensor"]]
    for layer in found["layers"]:
        prefix = "model.layers." if layer["layer"] is None else f"model.layers.{layer['layer']}."
        names = [name for name in SHAPES if name.startswith(prefix) == (layer["layer"] is not None)]
        check_group(layer, Expected(base, made, names))
    modules = {module["module"]: module for module in found["modules"]}
    check_group(modules["q_proj"], Expected(base, made, [name for name in SHAPES if "q_proj" in name]))
    check_group(modules["experts.*.w1"], Expected(base, made, [name for name in SHAPES if "w1" in name]))
    for cell in found["cells"]:
        place = Place(cell["layer"], cell["module"])
        names = [name for name, at in places_of(SHAPES).items() if at == place]
        check_group(cell, Expected(base, made, names))
    assert len(found["cells"]) == 6 and len(found["layers"]) == 3


def test_epsilon_moves_the_counts_but_not_the_update_sparsity(tmp_path):
    base, made = make_models(2)
    found = as_json(inspect(tmp_path, base, made, epsilon=1e-3))
    check_group(found["total"], Expected(base, made, SHAPES, np.float32(1e-3)))
    assert found["epsilon"] == 1e-3


def test_repeated_values_are_those_of_the_first_32_of_each_run(tmp_path):
    base, made = make_models(2)
    coarse = [np.round(values * 100).astype("f4") / 100 for values in made[0].values()]
    made[0] = dict(zip(SHAPES, coarse))
    found = inspect(tmp_path, base, made)

    def repeats(model):
        count = samples = 0
        for name in SHAPES:
            values = np.ravel(model[name])
            for start in range(0, values.size, 8_192):
                sample = values[start : start + 32]
                if sample.size == 32:
                    samples += 32
                    count += sum(v != 0 and v in sample[:k] for k, v in enumerate(sample))
        return count / samples

    assert float(found.total.base_coarseness) == pytest.approx(repeats(base))
    for number, agent in enumerate(made):
        assert float(found.total.agent(number).coarseness) == pytest.approx(repeats(agent))
    assert repeats(made[0]) > 0.3 > 0.1 > repeats(made[1])


def test_numbers_do_not_depend_on_chunk_threads_or_reading(tmp_path, monkeypatch):
    base, made = make_models(3, "BF16")
    base["model.layers.2.mlp.up_proj.weight"] = np.tile(base["model.layers.0.self_attn.q_proj.weight"], (10, 1))
    for number, agent in enumerate(made):
        values = np.tile(agent["model.layers.0.self_attn.q_proj.weight"], (10, 1))
        agent["model.layers.2.mlp.up_proj.weight"] = np.roll(values, number * 31, axis=1)
    paths = save_models(tmp_path, base, made)
    import streammerge

    seen = set()
    for chunk, threads, io in ((16, 1, "pread"), (1, 1, "mmap"), (1, 3, "pread"), (3, 2, "pread"), (5, 4, "mmap")):
        monkeypatch.setattr("streammerge.budget._LARGEST_CHUNK", chunk * 65_536)
        found = streammerge.inspect(*paths, threads=threads, io=io, max_ram="1G")
        seen.add(found.rows.tobytes())
    assert len(seen) == 1


def test_a_tree_adds_up_the_same_in_any_order():
    rng = np.random.default_rng(0)
    for blocks in (1, 2, 3, 13, 64):
        rows = rng.standard_normal((blocks, 4)) * 10.0 ** rng.integers(-8, 8, (blocks, 4))
        totals = set()
        for _ in range(5):
            tree = Tree()
            for block in rng.permutation(blocks):
                tree.add(int(block), rows[block])
            totals.add(tree.total().tobytes())
            np.testing.assert_allclose(tree.total(), rows.sum(axis=0), rtol=1e-9, atol=1e-6)
        assert len(totals) == 1


def test_a_tree_keeps_few_rows():
    tree, most = Tree(), 0
    for block in range(10_000):
        tree.add(block, np.ones(1))
        most = max(most, len(tree._rows))
    assert tree.total() == 10_000 and most <= rows_waiting(10_000) < 40


def test_a_tied_head_is_counted_once_and_copied_tensors_are_named(tmp_path):
    base, made = make_models(2)
    for model in (base, *made):
        model["lm_head.weight"] = model["model.embed_tokens.weight"].copy()
        model["model.steps"] = np.arange(3)
    found = as_json(inspect(tmp_path, base, made, config={"tie_word_embeddings": True}, exclude=["norm"]))
    names = [name for name in SHAPES if "norm" not in name]
    check_group(found["total"], Expected(base, made, names))
    assert found["not_compared"] == {
        "lm_head.weight": "repeats the embedding, and is counted there",
        "model.steps": "I64 is not a floating-point type",
        **{name: "excluded by --exclude norm" for name in SHAPES if "norm" in name},
    }


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.12.self_attn.q_proj.weight", Place(12, "q_proj")),
        ("model.layers.12.self_attn.q_proj.bias", Place(12, "q_proj.bias")),
        ("model.layers.0.input_layernorm.weight", Place(0, "input_layernorm")),
        ("model.layers.3.block_sparse_moe.experts.7.w1.weight", Place(3, "experts.*.w1")),
        ("model.layers.3.block_sparse_moe.experts.11.w1.weight", Place(3, "experts.*.w1")),
        ("transformer.h.5.attn.c_attn.weight", Place(5, "c_attn")),
        ("model.embed_tokens.weight", Place(None, "model.embed_tokens")),
        ("lm_head.weight", Place(None, "lm_head")),
        ("7", Place(None, "7")),
    ],
)
def test_places_come_from_names_alone(name, place):
    module = place.module.rpartition("model.")[2]
    assert places_of([name]) == {name: Place(place.layer, module)}


def test_modules_of_one_short_name_keep_their_long_ones():
    names = ["m.layers.0.self_attn.q_proj", "m.layers.0.encoder_attn.q_proj", "m.layers.0.norm", "m.norm"]
    assert [place.module for place in places_of(names).values()] == [
        "self_attn.q_proj", "encoder_attn.q_proj", "norm", "m.norm"
    ]  # fmt: skip


def test_stacks_of_layers_are_told_apart():
    names = ["vision.blocks.3.attn.q_proj.weight", "text.layers.3.attn.q_proj.weight"]
    places = places_of(names)
    assert places[names[0]] == Place(3, "vision.blocks: q_proj") and places[names[1]] == Place(3, "text.layers: q_proj")
