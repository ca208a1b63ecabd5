import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import streammerge
from bench.sample.generate import Shape, make_agent, make_base
from streammerge.errors import FormatError, Interrupted, NonFiniteError
from streammerge.events import Advanced, Finishing, Notice, PassStarted, Planned
from tests.checks import merge
from tests.conftest import save_floats, save_tensors


def agents_of(folder, number=3):
    return [folder / f"agent-{i}" for i in range(number)]


def digest(folder):
    """One checksum over the weight files of an output, by name."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.safetensors*"))}


def test_every_tensor_of_the_base_is_there_exactly_once(tiny, tmp_path):
    report = streammerge.merge(tiny / "base", agents_of(tiny), tmp_path / "out", exclude=["norm"])
    with (
        safe_open(tiny / "base/model.safetensors", "np") as base,
        safe_open(tmp_path / "out/model.safetensors", "np") as out,
    ):
        assert sorted(out.keys()) == sorted(base.keys()) == sorted(report.to_dict()["tensors"])
    raw = [
        json.loads((p / "model.safetensors").read_bytes()[8:].split(b"}}", 1)[0] + b"}}")
        for p in (tiny / "base", tmp_path / "out")
    ]
    for one in raw:
        one.pop("__metadata__", None)
    assert {n: (e["dtype"], e["shape"]) for n, e in raw[0].items()} == {
        n: (e["dtype"], e["shape"]) for n, e in raw[1].items()
    }
    weights = report.to_dict()["weights"]
    assert weights["copy"] > 0 and sum(weights.values()) == sum(np.prod(e["shape"]) for e in raw[0].values())


@pytest.mark.parametrize("method", ["ram", "ram+", "ramplus_tl", "linear", "task_arithmetic", "ties", "dare_linear"])
def test_the_bytes_do_not_depend_on_how_it_is_done(tmp_path_factory, method):
    folder = tmp_path_factory.getbasetemp() / "same-bytes"
    if not folder.exists():
        shape = Shape(layers=2, hidden=192, intermediate=640, heads=4, kv_heads=2, vocab=3001, tied=False)
        make_base(folder / "base", shape)
        for i in range(3):
            make_agent(folder / f"agent-{i}", folder / "base", index=i)
    density = {"parameters": {"density": 0.3}} if method in ("ties", "dare_linear") else {}
    seen = set()
    ways = [
        {"max_ram": "8G", "threads": 1, "io": "pread"},
        {"max_ram": "8G", "threads": 4, "io": "mmap"},
        {"max_ram": "174M", "threads": 2, "io": "auto", "max_shard_size": None},
        {"max_ram": "384M", "threads": 3, "io": "mmap"},
    ]
    for number, way in enumerate(ways):
        out = folder / f"{method}-{number}"
        streammerge.merge(folder / "base", agents_of(folder), out, method=method, **density, **way)
        seen.add(digest(out)["model.safetensors"])
    assert len(seen) == 1


def test_the_bytes_do_not_depend_on_the_chunk(tiny, tmp_path, monkeypatch):
    from streammerge import budget

    rng = np.random.default_rng(3)
    base = rng.standard_normal(300_001).astype("f4")
    save_floats(tmp_path / "base", {"w": base, "v": base[:70_000]})
    save_floats(
        tmp_path / "agent", {"w": base + 0.01 * rng.standard_normal(300_001).astype("f4"), "v": base[:70_000] * 2}
    )
    seen = set()
    for blocks in (1, 2, 3, 16):
        monkeypatch.setattr(budget, "_LARGEST_CHUNK", blocks * 65_536)
        for method in ("slerp", "ties", "dare_linear", "ram+"):
            out = tmp_path / f"{method}-{blocks}"
            extra = {} if method in ("slerp", "ram+") else {"parameters": {"density": 0.4}}
            streammerge.merge(tmp_path / "base", [tmp_path / "agent"], out, method=method, **extra)
            seen.add((method, digest(out)["model.safetensors"]))
    assert len(seen) == 4


def test_sharded_inputs_and_outputs_are_the_same_model(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    shape = Shape(layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2, vocab=512, tied=False)
    merged = []
    for kind, size in (("one", None), ("many", 50_000)):
        base = make_base(tmp_path / kind / "base", shape, max_shard_bytes=size)
        for i in range(2):
            make_agent(tmp_path / kind / f"agent-{i}", base, index=i)
        out = tmp_path / kind / "out"
        streammerge.merge(base, agents_of(tmp_path / kind, 2), out, max_shard_size=size and 60_000)
        merged.append({n: t for file in out.glob("*.safetensors") for n, t in load_torch(file).items()})
    assert merged[0].keys() == merged[1].keys()
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[0])
    index = json.loads((tmp_path / "many/out/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(merged[0])
    assert all((tmp_path / "many/out" / file).stat().st_size < 140_000 for file in index["weight_map"].values())


def test_transformers_loads_the_result(tiny, tmp_path):
    transformers = pytest.importorskip("transformers")
    streammerge.merge(tiny / "base", agents_of(tiny), tmp_path / "out", max_shard_size=20_000)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert str(model.dtype) == "torch.bfloat16"
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_single_file_in_and_out(tiny, tmp_path):
    files = [folder / "model.safetensors" for folder in (tiny / "base", *agents_of(tiny))]
    streammerge.merge(files[0], files[1:], tmp_path / "merged.safetensors")
    streammerge.merge(tiny / "base", agents_of(tiny), tmp_path / "folder")
    assert (tmp_path / "merged.safetensors").read_bytes() == (tmp_path / "folder/model.safetensors").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["folder", "merged.safetensors", "merged.safetensors.manifest.json"]


def test_events_tell_the_story(tiny, tmp_path):
    events = []
    report = streammerge.merge(tiny / "base", agents_of(tiny), tmp_path / "out", listener=events.append)
    events = [event for event in events if not isinstance(event, Notice)]
    assert isinstance(events[0], Planned) and isinstance(events[-1], Finishing)
    assert [e.title for e in events if isinstance(e, PassStarted)] == ["counting changed weights", "merging"]
    read = sum(e.bytes_read for e in events if isinstance(e, Advanced))
    assert read == report.outcome.bytes_read == report.plan.bytes_to_read


def bend(folder, name, index, value):
    """Put one value into a float32 model."""
    arrays = dict(load_file(folder / "model.safetensors"))
    arrays[name] = arrays[name].copy()
    arrays[name][index] = value
    save_floats(folder, arrays)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_input_is_an_error_that_says_where(pair, tmp_path, value):
    base, agent = pair
    bend(agent, "a.weight", (3, 5), value)
    with pytest.raises(NonFiniteError, match=rf"agent: tensor 'a.weight' holds {value} at index \[3, 5\]"):
        streammerge.merge(base, [agent], tmp_path / "out", method="ram")
    assert sorted(os.listdir(tmp_path)) == ["agent", "base"]
    report = streammerge.merge(base, [agent], tmp_path / "out", method="ram", allow_non_finite=True)
    assert report.outcome.non_finite_inputs == 1


def test_float16_overflow_is_an_error_that_says_what_to_do(pair, tmp_path):
    base, agent = pair
    bend(base, "norm", 7, 1e5)
    bend(agent, "norm", 7, 1e5)
    with pytest.raises(NonFiniteError, match=r"tensor 'norm', index \[7\]: 100000 is too large for F16; .*bf16"):
        streammerge.merge(base, [agent], tmp_path / "out", dtype="float16")
    assert sorted(os.listdir(tmp_path)) == ["agent", "base"]
    report = streammerge.merge(base, [agent], tmp_path / "out", dtype="float16", allow_non_finite=True)
    assert report.outcome.non_finite_outputs == 1


@pytest.mark.parametrize("spoiled", [np.nan, np.inf, 3e38])
def test_bfloat16_that_is_not_finite_is_merged_as_other_types_are(tmp_path, spoiled):
    """An agent's NaN changes nothing and would be lost unseen; 3e38 is finite, but the change to it overflows."""
    base = {"w": np.full(100_000, -3e38, np.float32).astype(ml_dtypes.bfloat16)}
    values = base["w"].copy()
    values[70_000] = spoiled
    with pytest.raises(NonFiniteError, match=r"'w'.*index \[70000\]"):
        merge(tmp_path, "ram", base, [{"w": values}])
    merged = merge(tmp_path, "ram", base, [{"w": values}], allow_non_finite=True)
    outcome = merged.report.outcome
    assert (outcome.non_finite_inputs, outcome.non_finite_outputs) == {
        np.nan: (1, 0), np.inf: (1, 1), 3e38: (0, 1)
    }[spoiled]  # fmt: skip
    assert outcome.tally.tolist() == [[int(not np.isnan(spoiled))] * 2]


def test_untouched_float64_weights_keep_their_bits(tmp_path):
    base = np.array([1 / 3, 2 / 3, 1e300, -0.0, 5.0])
    agent = base.copy()
    agent[4] += 1
    save_floats(tmp_path / "base", {"w": base[[0, 1, 3, 4]]})
    save_floats(tmp_path / "agent", {"w": agent[[0, 1, 3, 4]]})
    streammerge.merge(tmp_path / "base", [tmp_path / "agent"], tmp_path / "out", method="ram")
    merged = load_file(tmp_path / "out/model.safetensors")["w"]
    assert merged[:3].tobytes() == base[[0, 1, 3]].tobytes() and merged[3] == 6


def test_a_wanted_dtype_is_what_comes_out(tmp_path):
    values = np.array([1.0, -2.5, 3.0], "f4")
    for name in ("base", "agent"):
        save_tensors(
            tmp_path / name / "model.safetensors",
            {
                "w": ("F32", (3,), values.tobytes()),
                "kept": ("F32", (3,), values.tobytes()),
                "i": ("I64", (1,), bytes(8)),
            },
        )
        (tmp_path / name / "config.json").write_text(
            '{"torch_dtype": "float32", "vision_config": {"dtype": "float32"}}'
        )
    streammerge.merge(tmp_path / "base", [tmp_path / "agent"], tmp_path / "out", dtype="bf16", exclude=["kept"])
    with safe_open(tmp_path / "out/model.safetensors", "np") as out:
        kinds = {name: out.get_slice(name).get_dtype() for name in out.keys()}  # noqa: SIM118
    assert kinds == {"w": "BF16", "kept": "BF16", "i": "I64"}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == {"torch_dtype": "bfloat16", "vision_config": {"dtype": "bfloat16"}}


def test_everything_beside_the_weights_comes_along(tiny, tmp_path):
    streammerge.merge(tiny / "base", agents_of(tiny), tmp_path / "out")
    names = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    weights = ["model.safetensors", "streammerge-manifest.json"]
    assert names == ["README.md", "config.json", "extra/notes.txt", *weights, "tokenizer.json"]
    assert (tmp_path / "out/config.json").read_bytes() == (tiny / "base/config.json").read_bytes()
    card = (tmp_path / "out/README.md").read_text()
    import yaml

    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == ["base", "agent-0", "agent-1", "agent-2"]
    assert {"merge", "streammerge"} <= set(front["tags"])
    assert "merge_method: ram+" in card and "| agent-1 |" in card


def test_the_same_recipe_gives_the_same_folder(tiny, tmp_path):
    for name, options in (("a", {"threads": 1}), ("b", {"max_ram": "384M", "io": "mmap"})):
        (tmp_path / name).mkdir()
        streammerge.merge(tiny / "base", agents_of(tiny), tmp_path / name / "out", **options)
    files = [p.relative_to(tmp_path / "a/out") for p in (tmp_path / "a/out").rglob("*") if p.is_file()]
    assert files and all((tmp_path / "a/out" / f).read_bytes() == (tmp_path / "b/out" / f).read_bytes() for f in files)


def test_an_input_that_shrinks_while_it_is_read_is_named(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("base", "agent"):
        save_floats(tmp_path / name, {"w": rng.standard_normal(3_000_000).astype("f4")})

    def shrink(event):
        if isinstance(event, PassStarted):
            os.truncate(tmp_path / "agent/model.safetensors", 5_000_000)

    with pytest.raises(FormatError, match="agent/model.safetensors: the file ends at byte 5000000, inside tensor 'w'"):
        streammerge.merge(tmp_path / "base", [tmp_path / "agent"], tmp_path / "out", method="ram", listener=shrink)
    assert sorted(os.listdir(tmp_path)) == ["agent", "base"]


def test_a_stop_leaves_nothing_under_the_final_name(tiny, tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        streammerge.merge(tiny / "base", agents_of(tiny), tmp_path / "out", stop=stop)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_a_signal_stops_cleanly(tmp_path, numbers):
    shape = Shape(layers=4, hidden=1024, intermediate=4096, heads=8, kv_heads=8, vocab=32_000, tied=True)
    base = make_base(tmp_path / "in" / "base", shape, sparse=True)
    agent = make_agent(tmp_path / "in" / "agent", base, index=0, sparse=True)
    command = [sys.executable, "-m", "streammerge", base, agent, "-o", tmp_path / "out/m", "--threads", "1",
               "-m", "dare_linear", "-p", "density=0.5"]  # fmt: skip
    child = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out/m.partial/model.safetensors").exists():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    for number in numbers:
        child.send_signal(number)
        time.sleep(0.03)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Error: interrupted; nothing was written under the final name" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out/m").exists()
