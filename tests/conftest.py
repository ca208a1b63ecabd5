"""Small models for the tests, made by the sample generator or by hand with the safetensors library."""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from bench.sample.generate import SHAPES, make_agent, make_base


def save_tensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> Path:
    """One file, written from the format's description: name to (dtype, shape, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(raw)]}
        position += len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(raw for _, _, raw in tensors.values()))
    return path


def save_floats(folder: Path, arrays: Mapping[str, np.ndarray], config: Mapping[str, object] | None = None) -> Path:
    """A float32 or float64 checkpoint folder."""
    kinds = {"float32": "F32", "float64": "F64", "float16": "F16"}
    tensors = {n: (kinds[a.dtype.name], a.shape, a.tobytes()) for n, a in arrays.items()}
    save_tensors(folder / "model.safetensors", tensors)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside():
    for name in list(os.environ):
        if name.startswith("STREAMMERGE_") and name != "STREAMMERGE_CACHE_DIR":
            del os.environ[name]


@pytest.fixture(autouse=True)
def _reserved_like_a_small_process(request, monkeypatch):
    """The test process has grown by whatever other tests imported, and plans would count that as reserved.

    The real peak is asked for by ``real_peak``, and measured in processes of their own in test_memory.py.
    """
    if "real_peak" not in request.keywords:
        monkeypatch.setattr("streammerge.budget.peak", lambda: 150 << 20)


@pytest.fixture(autouse=True)
def _nothing_measured_before(monkeypatch, tmp_path_factory):
    """Every test measures anew, and leaves nothing in the user's cache."""
    monkeypatch.setattr("streammerge.statistics.FOLDER", tmp_path_factory.mktemp("statistics"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """The torch device that a test runs on."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a tiny Llama: base (with a tokenizer and other files), agent-0, agent-1, agent-2."""
    folder = tmp_path_factory.mktemp("tiny")
    base = make_base(folder / "base", SHAPES["tiny"], seed=1)
    for index in range(3):
        make_agent(folder / f"agent-{index}", base, index=index, seed=1)
    (base / "tokenizer.json").write_text("{}")
    (base / "README.md").write_text("the base's own card")
    (base / "extra").mkdir()
    (base / "extra" / "notes.txt").write_text("notes")
    (base / "pytorch_model.bin").write_bytes(b"never opened")
    return folder


@pytest.fixture
def pair(tmp_path):
    """Base and one agent of a few float32 tensors, to be bent by a test."""
    rng = np.random.default_rng(0)
    weights = {"a.weight": rng.standard_normal((8, 16)).astype("f4"), "norm": np.ones(16, "f4")}
    base = save_floats(tmp_path / "base", weights)
    agent = save_floats(tmp_path / "agent", {n: w + np.float32(0.25) for n, w in weights.items()})
    return base, agent
