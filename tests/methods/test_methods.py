"""Every method end to end, from checkpoint to checkpoint, against the oracle and against its promises."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streammerge import budget
from streammerge.errors import NonFiniteError, RecipeError
from streammerge.kernels.contract import BLOCK
from tests import oracle
from tests.checks import (
    DTYPES,
    bits,
    check_close,
    check_same_bits,
    check_same_model,
    check_same_numbers,
    make_agent,
    make_base,
    merge,
    merge_paths,
    save_models,
)

METHODS = ["ram", "ram+", "ramplus_tl", "linear", "task_arithmetic", "ties", "dare_linear", "slerp"]
# Parameters that give every pass of a method something to do.
EVERYTHING = {
    "ties": {"density": 0.2, "lambda": 0.8},
    "dare_linear": {"density": 0.4, "lambda": 0.8, "seed": 3},
    "slerp": {"t": 0.25},
}

# Powers of ten: what fine-tuning does, where SLERP is a straight line, and far more, where it is an arc.
SMALL_MOVES, LARGE_MOVES = (-6.5, -3.5), (-6.5, -1.0)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # no division by zero, no overflow, in any thread
each_method = pytest.mark.parametrize("method", METHODS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def agents_of(method, agents):
    return agents[:1] if method == "slerp" else agents


def make_models(seed, agents, shapes, dtype="F32", share=0.3, sizes=SMALL_MOVES):
    rng = np.random.default_rng(seed)
    base = {name: make_base(rng, shape, dtype) for name, shape in shapes.items()}
    return base, [{name: make_agent(rng, base[name], share, sizes) for name in base} for _ in range(agents)]


def on_the_arc(base, agent):
    return abs(oracle.cosine(oracle.as_float32(base), oracle.as_float32(agent))) <= 0.9995


def check_against_oracle(found, method, base, agents, parameters=None):
    """To the bit but on SLERP's arc: there float32 weights, products and their sum stand against float64."""
    wanted = oracle.merge(method, base, agents, parameters)
    assert found.keys() == wanted.keys()
    for name in wanted:
        if method == "slerp" and on_the_arc(base[name], agents[0][name]):
            step = np.abs(wanted[name].astype(np.float64)) * 2.0 ** -(7 if wanted[name].itemsize == 2 else 23)
            check_close(found[name], wanted[name], 1e-6 + step, name)
        else:
            check_same_bits(found[name], wanted[name], name)


# --- against the oracle ---------------------------------------------------------------------------------------------

SHAPES = st.dictionaries(
    st.sampled_from(["a", "model.norm.weight", "größe", "z"]),
    st.sampled_from([(), (0, 4), (1,), (7,), (3, 5), (2, 3, 4), (2049,), (BLOCK + 1,), (7, 19_001)]),
    min_size=1,
    max_size=3,
).filter(lambda shapes: any(np.prod(shape) for shape in shapes.values()))
EPSILON = st.sampled_from([0.0, 1e-6, 1e-5, 1e-3, 1.0])
WEIGHT = st.floats(-2, 2, width=32, allow_subnormal=False) | st.just(1.0)
DENSITY = st.floats(0, 1) | st.sampled_from([0.0, 0.29, 0.5, 1.0])
RATIO = st.floats(0, 3)


def one_or_each(value, agents):
    return value | st.lists(value, min_size=agents, max_size=agents)


def parameters_of(method, agents):
    overlap = {"r": RATIO, "alpha": RATIO, "epsilon": EPSILON}
    deltas = {"weight": one_or_each(WEIGHT, agents), "lambda": WEIGHT, "normalize": st.booleans()}
    density = one_or_each(DENSITY, agents)
    return st.fixed_dictionaries(
        {},
        optional={
            "ram": {"epsilon": EPSILON},
            "ram+": overlap,
            "ramplus_tl": overlap,
            "linear": {"weight": one_or_each(st.floats(0.125, 2, width=32), agents), "normalize": st.booleans()},
            "task_arithmetic": deltas,
            "ties": deltas | {"density": density},
            "dare_linear": deltas | {
                "density": density,
                "rescale": st.sampled_from(["l1", "inverse_density", "none"]),
                "seed": st.integers(0, 2**63 - 1),
            },
            "slerp": {"t": st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])},  # exact in float32; others: see below
        }[method],
    )  # fmt: skip


@each_method
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_merge_equals_the_oracle(tmp_path, method, data):
    count = 1 if method == "slerp" else data.draw(st.integers(1, 8), label="agents")
    shapes, dtype = data.draw(SHAPES, label="shapes"), data.draw(st.sampled_from(sorted(DTYPES)), label="dtype")
    share = data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]), label="share")
    parameters = data.draw(parameters_of(method, count), label="parameters")
    sizes = data.draw(st.sampled_from([SMALL_MOVES, LARGE_MOVES]), label="sizes")
    base, agents = make_models(data.draw(st.integers(0, 99), label="seed"), count, shapes, dtype, share, sizes)
    found = merge(tmp_path, method, base, agents, parameters)
    check_against_oracle(found.tensors, method, base, agents, parameters)


@each_method
def test_types_may_differ_from_tensor_to_tensor(tmp_path, method):
    rng = np.random.default_rng(1)
    base = {dtype: make_base(rng, (BLOCK + 3,), dtype) for dtype in DTYPES}
    agents = agents_of(method, [{name: make_agent(rng, base[name]) for name in base} for _ in range(3)])
    parameters = EVERYTHING.get(method, {})
    check_against_oracle(merge(tmp_path, method, base, agents, parameters).tensors, method, base, agents, parameters)


@pytest.mark.parametrize("stored", ["F32", "F64"])
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32", "f64"])
@each_method
def test_another_output_type_is_one_more_rounding_of_the_float32_result(tmp_path, method, stored, dtype):
    base, agents = make_models(21, 3, {"w": (3000,), "s": ()}, stored)
    agents = agents_of(method, agents)
    found = merge(tmp_path, method, base, agents, EVERYTHING.get(method), dtype=dtype).tensors
    if dtype != "f64":  # a double that no agent changed is kept as a double only
        base, *agents = ({name: model[name].astype(np.float32) for name in model} for model in (base, *agents))
    wanted = oracle.merge(method, base, agents, EVERYTHING.get(method))
    check_same_model(found, {name: wanted[name].astype(DTYPES[dtype.upper()]) for name in wanted})


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@each_method
def test_agents_may_be_stored_in_another_type_if_allowed(tmp_path, method, dtype):
    base, agents = make_models(22, 3, {"w": (3000,), "s": ()}, "BF16")
    agents = agents_of(method, [{name: agent[name].astype(DTYPES[dtype]) for name in agent} for agent in agents])
    found = merge(tmp_path, method, base, agents, EVERYTHING.get(method), mixed_dtypes=True).tensors
    check_against_oracle(found, method, base, agents, EVERYTHING.get(method))


@each_method
def test_tensors_that_are_no_weights_come_from_the_base(tmp_path, method):
    base, agents = make_models(2, 3, {"w": (64,)})
    buffers = {"ids": np.arange(5), "mask": np.array([True, False]), "none": np.zeros((3, 0), np.float32)}
    agents = agents_of(method, [agent | buffers for agent in agents])
    found = merge(tmp_path, method, base | buffers, agents).tensors
    check_same_model({name: found[name] for name in buffers}, buffers)


@each_method
def test_thirty_two_agents(tmp_path, method):
    base, agents = make_models(3, 1 if method == "slerp" else 32, {"w": (300, 11), "b": (BLOCK + 1,)}, share=0.1)
    found = merge(tmp_path, method, base, agents, EVERYTHING.get(method))
    check_against_oracle(found.tensors, method, base, agents, EVERYTHING.get(method))


@each_method
def test_one_agent(tmp_path, method):
    base, agents = make_models(4, 1, {"w": (300, 11)})
    found = merge(tmp_path, method, base, agents, EVERYTHING.get(method))
    check_against_oracle(found.tensors, method, base, agents, EVERYTHING.get(method))


# --- promises of every method ---------------------------------------------------------------------------------------


@each_dtype
@each_method
def test_where_no_agent_changes_an_element_the_bits_of_the_base_come_out(tmp_path, method, dtype):
    base, agents = make_models(5, 3, {"w": (BLOCK + 77,), "b": (3,)}, dtype)
    agents = agents_of(method, agents)
    found = merge(tmp_path, method, base, agents, EVERYTHING.get(method)).tensors
    for name in base:
        assert method != "slerp" or not on_the_arc(base[name], agents[0][name])
        same = np.logical_and.reduce([bits(agent[name]) == bits(base[name]) for agent in agents])
        negative_zeros = same & (bits(base[name]) == bits(np.array(-0.0, base[name].dtype)))
        assert negative_zeros.sum() > 100 or name == "b"
        check_same_bits(found[name][same], base[name][same], name)


QUIET_NANS = {
    "F64": [0x7FF8000020000000, 0xFFF8000040000000],
    "F32": [0x7FC00001, 0xFFC12345],
    "F16": [0x7E01, 0xFE02],
    "BF16": [0x7FC1, 0xFFC2],
}
SIGNALING_NANS = {
    "F64": [0x7FF0000020000000, 0xFFF4000040000000],
    "F32": [0x7F800001, 0xFFA12345],
    "F16": [0x7C01, 0xFD02],
    "BF16": [0x7F81, 0xFFA2],
}
INFINITIES = {
    "F64": [0x7FF0000000000000, 0xFFF0000000000000],
    "F32": [0x7F800000, 0xFF800000],
    "F16": [0x7C00, 0xFC00],
    "BF16": [0x7F80, 0xFF80],
}


NON_FINITE = {"nan": QUIET_NANS, "signaling": SIGNALING_NANS, "infinity": INFINITIES}


@pytest.mark.parametrize("kind", NON_FINITE)
@each_dtype
@pytest.mark.parametrize("method", [name for name in METHODS if name != "slerp"])  # which has no angle then
def test_so_do_those_of_what_is_not_finite(tmp_path, method, dtype, kind):
    base, agents = make_models(6, 3, {"w": (100,)}, dtype, share=0.2)
    for model in (base, *agents):
        bits(model["w"])[10:90:40] = NON_FINITE[kind][dtype]
    found = merge(tmp_path, method, base, agents, EVERYTHING.get(method), allow_non_finite=True).tensors["w"]
    check_same_bits(found[10:90:40], base["w"][10:90:40])


@each_dtype
@each_method
def test_agents_that_changed_nothing_give_the_base(tmp_path, method, dtype):
    base, agents = make_models(7, 3, {"w": (BLOCK + 77,), "scalar": (), "none": (0, 3)}, dtype, share=0)
    found = merge(tmp_path, method, base, agents_of(method, agents), EVERYTHING.get(method))
    check_same_model(found.tensors, base)


@each_method
def test_it_refuses_what_is_not_finite(tmp_path, method):
    base, agents = make_models(8, 2, {"w": (3, 4)})
    agents = agents_of(method, agents)
    agents[-1]["w"][2, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"agent\d\.safetensors: tensor 'w' holds nan at index \[2, 1\]"):
        merge(tmp_path, method, base, agents)


@each_method
def test_the_same_bytes_at_any_budget_chunk_thread_count_and_way_of_reading(tmp_path, method, monkeypatch):
    """Equal magnitudes straddle the blocks, so that every pass and every order of chunks has its chance to matter."""
    monkeypatch.setattr(budget, "peak", lambda: 100 * budget.MIB)  # what else this process holds is not the question
    rng = np.random.default_rng(9)
    base = {"b": make_base(rng, (3 * BLOCK + 17,), "BF16"), "f": make_base(rng, (5, 40_001)), "s": make_base(rng, (9,))}
    agents = agents_of(method, [{name: make_agent(rng, base[name]) for name in base} for _ in range(3)])
    base_path, agent_paths = save_models(tmp_path, base, agents)

    def run(**options):
        return merge_paths(base_path, agent_paths, method, EVERYTHING.get(method), **options)

    wanted = run(threads=1, io="pread")
    least = wanted.report.plan.memory.least
    assert run(threads=1, max_ram=least).content == wanted.content
    for max_ram in ("200M", "384M", "8G"):
        assert run(max_ram=max_ram).content == wanted.content, max_ram
    for blocks in (1, 2):
        monkeypatch.setattr(budget, "_LARGEST_CHUNK", blocks * BLOCK)
        for threads in (1, 2, 3):
            for io in ("mmap", "pread"):
                found = run(threads=threads, io=io)
                assert found.content == wanted.content, (blocks, threads, io)
                assert (found.report.plan.memory.chunk, found.report.plan.io) == (blocks * BLOCK, io)


# --- Reinforced Agent Merging ---------------------------------------------------------------------------------------

RAMS = ["ram", "ram+", "ramplus_tl"]
each_ram = pytest.mark.parametrize("method", RAMS)


def row(*values):
    return {"w": np.array(values, np.float32)}


def test_ram_keeps_what_one_agent_changed_and_averages_what_several_did(tmp_path):
    base = row(1, 1, 1, 1, 1)
    agents = [row(1, 2, 3, 1, 2), row(1, 1, 2, 1 + 2**-18, 0), row(1, 1, 1, 1, 1)]
    check_same_model(merge(tmp_path, "ram", base, agents).tensors, row(1, 2, 2.5, 1, 1))


@each_ram
def test_agents_that_are_all_the_same_give_that_agent(tmp_path, method):
    """Not one of them has a unique weight: no ratio may divide by that."""
    base, (agent,) = make_models(10, 1, {"w": (5000,)}, "BF16", share=0.5)
    for agents in ([agent] * 2, [agent] * 4):
        found = merge(tmp_path, method, base, agents, {"epsilon": 1e-30})
        check_same_numbers(found.tensors["w"], agent["w"])


@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
@each_ram
def test_no_ratio_divides_by_zero(tmp_path, method, epsilon):
    """One agent with unique weights, one whose weights are all shared, one that changed nothing; no tensor alike."""
    base = {"p": np.zeros(4, np.float32), "q": np.zeros(4, np.float32)}
    agents = [
        {"p": np.array([1, 2, 3, 4], np.float32), "q": np.array([1, 0, 0, 0], np.float32)},
        {"p": np.array([1, 2, 0, 0], np.float32), "q": np.array([1, 0, 0, 0], np.float32)},
        {"p": np.zeros(4, np.float32), "q": np.zeros(4, np.float32)},
    ]
    found = merge(tmp_path, method, base, agents, {"epsilon": epsilon}, threads=1)
    check_against_oracle(found.tensors, method, base, agents, {"epsilon": epsilon})
    if method == "ram+":
        scales = [agent.scale for agent in found.report.agents]
        assert scales == pytest.approx([1 + 0.1 * 0.2, 1 + 0.1 * 0.2, 1.0])


@each_ram
def test_the_report_counts_changed_and_unique_weights(tmp_path, method):
    base, agents = make_models(11, 4, {"w": (BLOCK + 5,), "b": (70,), "s": ()})
    found = merge(tmp_path, method, base, agents).report
    counts = sum(
        oracle.count_changes(base[name].ravel(), np.stack([agent[name].ravel() for agent in agents]), 1e-5)
        for name in base
    )
    assert [[agent.changed, agent.unique] for agent in found.agents] == counts.tolist()


def test_the_ratio_of_ram_plus_is_that_of_the_whole_model(tmp_path):
    base = {"p": np.zeros(4, np.float32), "q": np.zeros(2, np.float32)}
    first = {"p": np.array([1, 1, 1, 0], np.float32), "q": np.array([1, 1], np.float32)}
    second = {"p": np.array([1, 0, 0, 1], np.float32), "q": np.array([0, 0], np.float32)}
    found = merge(tmp_path, "ram+", base, [first, second], {"r": 1, "alpha": 2})
    # shared / unique: 1 / 4 and 1 / 1
    check_same_model(
        found.tensors, {"p": np.array([1, 1.25, 1.25, 2], np.float32), "q": np.array([1.25, 1.25], np.float32)}
    )


@pytest.mark.parametrize(
    ("preset", "values"), [("paper", {"r": 0.1, "alpha": 0.2}), ("authors", {"r": 0.05, "alpha": 1.0})]
)
def test_presets_are_names_for_parameters(tmp_path, preset, values):
    base, agents = make_models(12, 3, {"w": (3000,)})
    named = merge(tmp_path, "ram+", base, agents, {"preset": preset})
    assert named.content == merge(tmp_path, "ram+", base, agents, values).content
    check_against_oracle(named.tensors, "ram+", base, agents, values)
    assert named.content != merge(tmp_path, "ram+", base, agents, {"preset": preset, "r": 0.5}).content


@pytest.mark.parametrize("agents", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_ram_plus_with_the_preset_authors_is_the_authors_formula(tmp_path, agents, share):
    base, models = make_models(13, agents, {"w": (BLOCK + 9,), "v": (17, 31)}, share=share)
    found = merge(tmp_path, "ram+", base, models, {"preset": "authors"})
    check_same_model(found.tensors, oracle.merge("arm_r_v2", base, models), check_same_numbers)


class TestTiedEmbeddings:
    """A stored head that repeats the embedding: both are merged, but their weights are counted once."""

    EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
    PARAMETERS = {"r": 1.0, "alpha": 10.0}

    @pytest.fixture
    def models(self):
        """The embedding overlaps much, the other tensors do not: counting it twice or never changes the ratio."""
        rng = np.random.default_rng(14)
        base = {"model.layers.0.w": make_base(rng, (500,)), "model.layers.1.w": make_base(rng, (300,))}
        agents = [{name: make_agent(rng, base[name], 0.2) for name in base} for _ in range(3)]
        embedding = make_base(rng, (50, 8))
        base |= {self.EMBEDDING: embedding, self.HEAD: embedding}
        for agent in agents:
            agent[self.EMBEDDING] = agent[self.HEAD] = make_agent(rng, embedding, 0.8)
        return base, agents

    LAYERS = ["model.layers.0.w", "model.layers.1.w"]

    def check(self, folder, models, counted, tied=True, **selection):
        base, agents = models
        config = {"tie_word_embeddings": tied}
        found = merge(folder, "ram+", base, agents, self.PARAMETERS, config=config, **selection)
        wanted = oracle.merge("ram+", base, agents, self.PARAMETERS, counted=counted)
        merged = [job.name for job in found.report.plan.jobs if job.action == "merge"]
        check_same_model(found.tensors, {name: wanted[name] if name in merged else base[name] for name in base})
        counts = sum(
            oracle.count_changes(base[name].ravel(), np.stack([agent[name].ravel() for agent in agents]), 1e-5)
            for name in counted
        )
        assert [[agent.changed, agent.unique] for agent in found.report.agents] == counts.tolist()

    def test_count_once(self, tmp_path, models):
        self.check(tmp_path, models, [*self.LAYERS, self.EMBEDDING])

    def test_count_both_if_the_config_does_not_tie_them(self, tmp_path, models):
        self.check(tmp_path, models, [*self.LAYERS, self.EMBEDDING, self.HEAD], tied=False)

    @pytest.mark.parametrize(
        ("selection", "counted"),
        [
            ({"exclude": ("layers.1",)}, [LAYERS[0], EMBEDDING]),
            ({"only": ("layers",)}, LAYERS),
            ({"exclude": ("lm_head",)}, [*LAYERS, EMBEDDING]),
            ({"exclude": ("embed_tokens", "lm_head")}, LAYERS),
            pytest.param({"exclude": ("embed_tokens",)}, [*LAYERS, HEAD]),
            pytest.param({"only": ("lm_head",)}, [HEAD]),
        ],
        ids=["no-layer", "layers", "no-head", "neither", "no-embedding", "head"],
    )
    def test_count_what_is_selected(self, tmp_path, models, selection, counted):
        self.check(tmp_path, models, counted, **selection)


# --- the others -----------------------------------------------------------------------------------------------------


def test_linear_refuses_weights_that_cancel(tmp_path):
    base, agents = make_models(15, 2, {"w": (10,)})
    with pytest.raises(RecipeError, match="the weights add up to 0"):
        merge(tmp_path, "linear", base, agents, {"weight": [1, -1]})


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear"])
def test_weights_that_cancel_divide_by_one(tmp_path, method):
    base, agents = make_models(16, 2, {"w": (1000,)}, share=0.9)
    parameters = {"weight": [1, -1], "normalize": True}
    check_against_oracle(merge(tmp_path, method, base, agents, parameters).tensors, method, base, agents, parameters)


@pytest.mark.parametrize("density", [0.1, 0.29, 0.5, 0.77])
def test_ties_keeps_exactly_k_and_of_equal_magnitudes_the_first(tmp_path, density):
    """Only three magnitudes in over three blocks: the threshold is met by tens of thousands."""
    rng = np.random.default_rng(17)
    elements = 3 * BLOCK + 100
    delta = rng.choice(np.array([1, -1, 2, -2, 4, -4], np.float32), elements)
    found = merge(tmp_path, "ties", {"w": np.zeros(elements, np.float32)}, [{"w": delta}], {"density": density})
    k = int(density * elements)
    kept = np.flatnonzero(found.tensors["w"])
    assert len(kept) == k
    threshold = np.sort(np.abs(delta))[-k]
    at_threshold = np.flatnonzero(np.abs(delta) == threshold)
    beyond = np.count_nonzero(np.abs(delta) > threshold)
    assert 0 < k - beyond < len(at_threshold)
    wanted = np.r_[np.flatnonzero(np.abs(delta) > threshold), at_threshold[: k - beyond]]
    np.testing.assert_array_equal(kept, np.sort(wanted))
    check_same_bits(found.tensors["w"][kept], delta[kept])


def test_ties_with_a_tie_in_one_agent_alone(tmp_path):
    """Agents search side by side: what one of them must count does not touch the others."""
    rng = np.random.default_rng(18)
    base = {"w": np.zeros(2 * BLOCK + 50, np.float32)}
    agents = [
        {"w": rng.standard_normal(2 * BLOCK + 50).astype(np.float32)},
        {"w": rng.choice(np.array([1, -1], np.float32), 2 * BLOCK + 50)},
        {"w": np.where(rng.random(2 * BLOCK + 50) < 0.1, 0.5, 0).astype(np.float32)},
        {"w": rng.standard_normal(2 * BLOCK + 50).astype(np.float32)},
    ]
    parameters = {"density": [0.3, 0.6, 0.4, 1.0]}
    check_against_oracle(merge(tmp_path, "ties", base, agents, parameters).tensors, "ties", base, agents, parameters)


def test_ties_keeps_one_delta_at_the_least_density(tmp_path):
    found = merge(tmp_path, "ties", row(0, 0, 0), [row(1, -3, 3)], {"density": 1e-6})
    check_same_model(found.tensors, row(0, -3, 0))


def test_ties_takes_the_sign_of_the_weighted_sum(tmp_path):
    base, agents = row(0, 0, 0), [row(3, 3, 1), row(-2, -2, -1), row(-2, 0, 0)]
    check_same_model(merge(tmp_path, "ties", base, agents).tensors, row(-2, 3, 1))
    weighted = merge(tmp_path, "ties", base, agents, {"weight": [1, 1, 0.25], "normalize": False})
    check_same_model(weighted.tensors, row(3, 3, 1))


def test_dare_keeps_about_the_share_it_should_and_restores_the_sum_of_magnitudes(tmp_path):
    elements = 2 * BLOCK
    base, agent = {"w": np.zeros(elements, np.float32)}, {"w": np.ones(elements, np.float32)}
    found = merge(tmp_path, "dare_linear", base, [agent], {"density": 0.3}).tensors["w"]
    kept = np.count_nonzero(found)
    assert abs(kept / elements - 0.3) < 6 * np.sqrt(0.3 * 0.7 / elements)
    assert float(found.astype(float).sum()) == pytest.approx(elements, rel=1e-6)


@pytest.mark.parametrize("density", [1e-40, 1e-310])
def test_dare_at_a_density_whose_inverse_no_float_holds_keeps_nothing(tmp_path, density):
    base, agents = make_models(23, 1, {"w": (100,)})
    found = merge(tmp_path, "dare_linear", base, agents, {"density": density, "rescale": "inverse_density"})
    check_same_model(found.tensors, base)


def test_masks_of_dare_differ_by_seed_tensor_and_agent(tmp_path):
    ones = np.ones(256, np.float32)
    base, agent = {"p": 0 * ones, "q": 0 * ones}, {"p": ones, "q": ones}

    def masks(seed):
        parameters = {"density": 0.5, "rescale": "none", "weight": [1, 2], "seed": seed}
        found = merge(tmp_path, "dare_linear", base, [agent, agent], parameters).tensors
        return {(found[name].astype(int) & part).tobytes() for name in found for part in (1, 2)}

    assert len(masks(1) | masks(2)) == 8


@pytest.mark.parametrize("t", [0.25, 0.5])
def test_slerp_on_the_arc_keeps_length(tmp_path, t):
    rng = np.random.default_rng(19)
    x, y = rng.standard_normal((2, BLOCK + 100))
    y = (y - x * (x @ y) / (x @ x)) * np.sqrt((x @ x) / (y @ y))
    base, agent = {"w": x.astype(np.float32)}, {"w": y.astype(np.float32)}
    found = merge(tmp_path, "slerp", base, [agent], {"t": t})
    check_against_oracle(found.tensors, "slerp", base, [agent], {"t": t})
    assert np.linalg.norm(found.tensors["w"]) == pytest.approx(np.linalg.norm(x), rel=1e-5)


@pytest.mark.parametrize(("base", "agent"), [((0, 0), (3, 4)), ((3, 4), (0, 0)), ((0, 0), (0, 0)), ((3, 4), (-3, -4))])
def test_slerp_of_zero_and_opposite_vectors(tmp_path, base, agent):
    base, agent, parameters = row(*base), row(*agent), {"t": 0.25}
    found = merge(tmp_path, "slerp", base, [agent], parameters).tensors
    check_against_oracle(found, "slerp", base, [agent], parameters)


@pytest.mark.parametrize("t", [0.1, 0.3, 0.8, 0.9])
def test_slerp_takes_one_minus_t_in_float32(tmp_path, t):
    base, agents = make_models(20, 1, {"w": (4000,)}, share=0.5)
    assert not on_the_arc(base["w"], agents[0]["w"])
    found = merge(tmp_path, "slerp", base, agents, {"t": t})
    check_against_oracle(found.tensors, "slerp", base, agents, {"t": t})


def test_float16_that_overflows_is_an_error(tmp_path):
    base, agent = {"w": np.array([1, 6e4], np.float16)}, {"w": np.array([1, -6e4], np.float16)}
    with pytest.raises(NonFiniteError, match=r"tensor 'w', index \[1\]: .*too large for F16"):
        merge(tmp_path, "task_arithmetic", base, [agent], {"weight": -1.0})
