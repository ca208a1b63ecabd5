import json
import os
import shutil

import numpy as np
import pytest

import streammerge
from streammerge.demand import ENTRY
from streammerge.errors import BudgetError, FormatError, MismatchError, OutputError, RecipeError
from tests.conftest import save_floats, save_tensors


def tensors_of(folder):
    from safetensors.numpy import load_file

    return dict(load_file(folder / "model.safetensors"))


def change(folder, **edits):
    """Rewrite a checkpoint with other tensors; None takes one out."""
    arrays = {**tensors_of(folder), **{name.replace("__", "."): value for name, value in edits.items()}}
    return save_floats(folder, {name: value for name, value in arrays.items() if value is not None})


def test_a_plan_is_printable_data(tiny):
    agents = [tiny / f"agent-{i}" for i in range(3)]
    plan = streammerge.plan(tiny / "base", agents, tiny / "out", exclude=["norm"], max_ram="1G")
    shown = json.loads(plan.to_json())
    assert {tensor["action"] for tensor in shown["tensors"]} == {"merge", "copy"}
    assert all(("norm" in t["name"]) == (t["action"] == "copy") for t in shown["tensors"])
    assert shown["memory"]["projected"] <= shown["memory"]["allowed"] == 2**30
    merged = sum(4 * np.prod(t["shape"]) * 2 for t in shown["tensors"] if t["action"] == "merge")
    copied = sum(np.prod(t["shape"]) * 2 for t in shown["tensors"] if t["action"] == "copy")
    assert shown["bytes_to_read"] == 2 * merged + copied
    with pytest.raises(AttributeError):
        plan.io = "mmap"
    assert not (tiny / "out").exists()


def test_inputs_are_mapped_on_a_local_disk_where_chunks_are_large(tiny, monkeypatch):
    models = tiny / "base", [tiny / f"agent-{i}" for i in range(3)], tiny / "out"

    def io(**options):
        return streammerge.plan(*models, **options).io

    for local, wanted in ((True, "mmap"), (False, "pread")):
        monkeypatch.setattr("streammerge.planning.are_local", lambda files, local=local: local)
        assert io(max_ram="1G") == wanted
        assert io(max_ram="1G", io="mmap") == "mmap" and io(max_ram="1G", io="pread") == "pread"
        assert io(max_ram="172M") == "pread"


def test_a_budget_in_which_inputs_can_only_be_read(tmp_path, monkeypatch):
    """What is not aligned in its file takes a window and a buffer if it is mapped."""
    monkeypatch.setattr("streammerge.planning.are_local", lambda files: True)
    name = next(name for name in ("w", "ww", "www") if len(_header(name)) % 8)
    paths = [tmp_path / f"{index}.safetensors" for index in range(33)]
    for index, path in enumerate(paths):
        save_tensors(path, {name: ("F64", (70_000,), np.full(70_000, index, "f8").tobytes())})
    models = paths[0], paths[1:], tmp_path / "out.safetensors"
    least = streammerge.plan(*models, max_ram="1G", io="pread").memory.least
    assert streammerge.plan(*models, max_ram="1G", io="mmap").memory.least > least + (8 << 20)
    assert streammerge.plan(*models, max_ram=str(least)).io == "pread"


def _header(name):
    entry = {"dtype": "F64", "shape": [70_000], "data_offsets": [0, 560_000]}
    return json.dumps({"__metadata__": {"format": "pt"}, name: entry})


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({"norm": None}, "agent: tensor 'norm' of the base .*base is missing; .*--exclude '\\^norm\\$'"),
        ({"extra": np.ones(3, "f4")}, "agent: tensor 'extra' is not in the base"),
        ({"norm": np.ones(17, "f4")}, r"agent: tensor 'norm' has shape \[17\], the base .* has \[16\]"),
        ({"a__weight": np.ones((9, 16), "f4")}, r"'a.weight' has shape \[9, 16\].*\[8, 16\] \(added tokens"),
        ({"norm": np.ones(16, "f2")}, "agent: tensor 'norm' is F16, in the base .* it is F32; .*--mixed-dtypes"),
    ],
)
def test_models_that_do_not_fit_are_named_with_the_tensor(pair, edits, said):
    base, agent = pair
    change(agent, **edits)
    with pytest.raises(MismatchError, match=said):
        streammerge.plan(base, [agent])


def test_the_way_out_of_a_mismatch_works(pair):
    base, agent = pair
    change(agent, norm=None, extra=np.ones(3, "f4"))
    plan = streammerge.plan(base, [agent], exclude=["^norm$", "^extra$"])
    assert [job.action for job in plan.jobs] == ["merge", "copy"] or {j.name: j.action for j in plan.jobs} == {
        "a.weight": "merge",
        "norm": "copy",
    }
    assert any("left out, not in the base: extra" in notice for notice in plan.notices)
    change(agent, norm=np.ones(16, "f2"), extra=None)
    assert streammerge.plan(base, [agent], mixed_dtypes=True)


def test_no_model_twice(pair, tmp_path):
    base, agent = pair
    (tmp_path / "link").symlink_to(agent)
    with pytest.raises(MismatchError, match="agent 2, .*link, is the same model as agent 1"):
        streammerge.plan(base, [agent, tmp_path / "link"])
    with pytest.raises(MismatchError, match="agent 1, .*base, is the same model as the base"):
        streammerge.plan(base, [base])
    assert streammerge.plan(base, [base, agent], method="linear")


@pytest.mark.parametrize(
    ("change_config", "tensor", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, None, r"is quantized \(gptq\)"),
        ({}, "layer.qweight", "tensor 'layer.qweight' belongs to a quantized checkpoint"),
    ],
)
def test_quantized_checkpoints_are_refused(pair, change_config, tensor, said):
    base, agent = pair
    if tensor:
        save_tensors(agent / "model.safetensors", {tensor: ("U8", (4,), bytes(4))})
    (agent / "config.json").write_text(json.dumps(change_config))
    with pytest.raises(FormatError, match=f"agent.*{said}"):
        streammerge.plan(base, [agent])


def test_a_broken_config_is_named(pair):
    base, agent = pair
    (agent / "config.json").write_text("{")
    with pytest.raises(FormatError, match="config.json: is not valid JSON"):
        streammerge.plan(base, [agent])


def head_models(tmp_path, tie, heads):
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((6, 4)).astype("f4")
    made = []
    for number, head in enumerate(heads):
        arrays = {"model.embed_tokens.weight": embedding + np.float32(number)}
        if head:
            arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
        made.append(save_floats(tmp_path / f"m{number}", arrays, {"tie_word_embeddings": tie}))
    return made


def test_a_tied_head_is_neither_invented_nor_lost(tmp_path):
    base, agent = head_models(tmp_path, True, [False, False])
    assert [job.name for job in streammerge.plan(base, [agent]).jobs] == ["model.embed_tokens.weight"]


def test_a_stored_tied_head_is_merged_but_counted_once(tmp_path):
    base, agent = head_models(tmp_path, True, [True, True])
    jobs = {job.name: job for job in streammerge.plan(base, [agent]).jobs}
    assert {name: (job.action, job.counted) for name, job in jobs.items()} == {
        "model.embed_tokens.weight": ("merge", True),
        "lm_head.weight": ("merge", False),
    }
    base, agent = head_models(tmp_path, False, [True, True])
    assert all(job.counted for job in streammerge.plan(base, [agent]).jobs)


def test_integers_and_empty_tensors_are_copied(tmp_path):
    for name in ("base", "agent"):
        save_tensors(
            tmp_path / name / "model.safetensors",
            {"w": ("BF16", (2,), bytes(4)), "ids": ("I64", (2,), bytes(16)), "none": ("F32", (0, 3), b"")},
        )
    plan = streammerge.plan(tmp_path / "base", [tmp_path / "agent"], dtype="f32")
    kinds = {job.name: (job.action, job.dtype) for job in plan.jobs}
    assert kinds == {"w": ("merge", "F32"), "ids": ("copy", "I64"), "none": ("copy", "F32")}


def test_the_output_may_not_touch_an_input(tiny, tmp_path):
    base, agent = tiny / "base", tiny / "agent-0"
    for target in (base, base / "out", tiny, base / "model.safetensors", tiny / "agent-0" / ".." / "base"):
        with pytest.raises(OutputError, match="lies inside the other|is a file of the input"):
            streammerge.plan(base, [agent], target)
    (tmp_path / "link").symlink_to(base)
    with pytest.raises(OutputError, match="choose another"):
        streammerge.plan(base, [agent], tmp_path / "link")
    with pytest.raises(OutputError, match="choose another"):
        streammerge.plan(base / "model.safetensors", [agent], base / "model.safetensors", overwrite=True)


def test_an_output_that_exists_is_kept(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    assert streammerge.plan(tiny / "base", [tiny / "agent-0"], tmp_path / "out")
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(OutputError, match="exists already.*--overwrite"):
        streammerge.plan(tiny / "base", [tiny / "agent-0"], tmp_path / "out")
    (tmp_path / "out" / "streammerge-manifest.json").write_text("{}")
    assert streammerge.plan(tiny / "base", [tiny / "agent-0"], tmp_path / "out", overwrite=True)


def test_no_space_is_known_before(tiny, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OutputError, match="needs .* has 10 B free"):
        streammerge.plan(tiny / "base", [tiny / "agent-0"], tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_known_before(tiny, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written|not a folder that can be written"):
        streammerge.plan(tiny / "base", [tiny / "agent-0"], tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "rum"}, "unknown method 'rum'; known are ram"),
        ({"parameters": {"epsilonn": 1}}, r"ram\+: unknown parameter 'epsilonn'; it has: r, alpha, epsilon"),
        ({"parameters": {"r": "x"}}, "r='x' is not a number from 0"),
        ({"parameters": {"r": -1}}, "r=-1 is out of range"),
        ({"parameters": {"r": float("nan")}}, "out of range"),
        ({"parameters": {"preset": "mine"}}, "unknown preset 'mine'; known: paper, authors"),
        ({"method": "linear", "parameters": {"weight": "1,2"}}, "weight has 2 values for 1 agents"),
        ({"method": "linear", "parameters": {"normalize": "maybe"}}, "normalize='maybe' is not true or false"),
        ({"method": "dare_linear", "parameters": {"rescale": "l2"}}, "not one of l1, inverse_density, none"),
        ({"method": "dare_linear", "parameters": {"seed": 1.5}}, "seed=1.5 is not an integer"),
        ({"exclude": ["("]}, "is not a regular expression"),
        ({"only": ["nothing"]}, "--only 'nothing' matches no tensor"),
        ({"exclude": ["."]}, "nothing would be merged"),
        ({"threads": 0}, "--threads must be at least 1"),
        ({"dtype": "int4"}, "unknown dtype 'int4'"),
        ({"max_ram": "lots"}, "is not a size"),
    ],
)
def test_what_cannot_be_meant_is_refused(tiny, options, said):
    with pytest.raises(RecipeError, match=said):
        streammerge.plan(tiny / "base", [tiny / "agent-0"], **options)


def test_the_number_of_agents_has_limits(tiny):
    agents = [tiny / f"agent-{i}" for i in range(2)]
    with pytest.raises(RecipeError, match="slerp: takes 1 agents beside the base, 2 given"):
        streammerge.plan(tiny / "base", agents, method="slerp")
    with pytest.raises(RecipeError, match="no agents given"):
        streammerge.plan(tiny / "base", [])
    with pytest.raises(RecipeError, match="takes 1 to 32 agents"):
        streammerge.plan(tiny / "base", [tiny / f"a{i}" for i in range(33)])


def test_a_budget_that_cannot_be_met_is_refused_with_the_least_that_would_do(tiny):
    agents = [tiny / f"agent-{i}" for i in range(3)]
    with pytest.raises(BudgetError, match="at least") as caught:
        streammerge.plan(tiny / "base", agents, max_ram="1M")
    least = str(caught.value).rsplit(" ", 1)[1]
    memory = streammerge.plan(tiny / "base", agents, max_ram=least).memory
    assert memory.projected <= memory.allowed == memory.least


def test_a_pattern_without_effect_is_told(tiny):
    planned = streammerge.plan(tiny / "base", [tiny / "agent-0"], exclude=["nothing"], max_ram="1G")
    assert any(notice.startswith("--exclude 'nothing' matches no tensor of") for notice in planned.notices)


def test_a_70b_plan_of_eight_agents_reads_headers_only(tmp_path):
    from bench.sample.generate import SHAPES, make_agent, make_base

    base = make_base(tmp_path / "base", SHAPES["70b"], sparse=True, max_shard_bytes=5 * 10**9)
    agents = [make_agent(tmp_path / f"a{i}", base, index=i, sparse=True) for i in range(8)]
    plan = streammerge.plan(base, agents, max_ram="1G")
    assert plan.bytes_to_write > 140 * 10**9
    assert len(plan.files) > 20
    assert plan.memory.projected <= 2**30
    assert sum(file.stat().st_blocks * 512 for file in base.iterdir()) < 10 * 2**20


def test_memory_does_not_grow_with_the_model(tmp_path, tiny):
    from bench.sample.generate import SHAPES, make_agent, make_base

    base = make_base(tmp_path / "base", SHAPES["70b"], sparse=True)
    agents = [make_agent(tmp_path / f"a{i}", base, index=i, sparse=True) for i in range(3)]
    for method in ("ram", "ram+", "linear"):
        small = streammerge.plan(tiny / "base", [tiny / f"agent-{i}" for i in range(3)], method=method, max_ram="1G")
        large = streammerge.plan(base, agents, method=method, max_ram="1G")
        memories = [(plan.memory, ENTRY * len(plan.jobs)) for plan in (small, large)]  # but for a line in the ledger
        needed = [memory.projected - memory.reserved - entries for memory, entries in memories]
        assert needed[0] == needed[1]
