"""Quantized GGUF made on a torch device: the file that the processor makes."""

from itertools import count

import numpy as np
import pytest

import streammerge
from bench.sample.shapes import Shape
from streammerge.errors import NonFiniteError
from tests.gguf.merging import PRE, make_models, write_dat

SHAPE = Shape(layers=1, hidden=256, intermediate=768, heads=4, kv_heads=2, vocab=300, tied=False)
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K",
         "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4_MOE"]  # fmt: skip
WEIGHED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS"]
LOUD = {"lambda": 1e10}
_serial = count()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("gguf"), SHAPE, agents=3)


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory):
    rng = np.random.default_rng(1)
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    columns = {part: 768 if part == "ffn_down" else 256 for part in parts}
    weights = {f"blk.0.{part}.weight": (rng.random(columns[part]) ** 2 + 1e-3).astype("f4") for part in parts}
    return write_dat(tmp_path_factory.mktemp("imatrix") / "imatrix.dat", weights)


def made(models, folder, device, **options):
    output = folder / f"{next(_serial)}" / "out.gguf"  # the name is in the file
    output.parent.mkdir()
    streammerge.merge(*models, output, **{**PRE, "method": "ram+", **options, "device": device})
    return output.read_bytes()


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_gives_the_same_file(models, tmp_path, placed, kind):
    options = {"quantize": kind, "pure": kind not in ("MXFP4_MOE",)}
    assert made(models, tmp_path, placed, **options) == made(models, tmp_path, "cpu", **options)


@pytest.mark.parametrize("kind", WEIGHED)
def test_every_type_with_an_importance_matrix_gives_the_same_file(models, imatrix, tmp_path, placed, kind):
    options = {"quantize": kind, "imatrix": imatrix}
    assert made(models, tmp_path, placed, **options) == made(models, tmp_path, "cpu", **options)


@pytest.mark.parametrize("method", ["ram", "ties", "dare_linear", "linear"])
def test_every_method_gives_the_same_file(models, tmp_path, placed, method):
    options = {"quantize": "Q4_K_M", "method": method, "intermediate": "f16"}
    assert made(models, tmp_path, placed, **options) == made(models, tmp_path, "cpu", **options)


def test_budgets_and_threads_change_nothing(models, tmp_path, placed):
    ways = ({"max_ram": "8G", "threads": 1}, {"max_ram": "200M", "threads": 3}, {"max_ram": "1G", "max_vram": "720M"})
    files = {made(models, tmp_path, placed, quantize="Q4_K_M", **way) for way in ways}
    assert files == {made(models, tmp_path, "cpu", quantize="Q4_K_M")}


def test_a_scale_that_overflows_is_named_as_on_the_processor(tmp_path, placed):
    models = make_models(tmp_path, SHAPE, agents=1, dtype="F32")
    said = []
    for where in ("cpu", placed):
        with pytest.raises(NonFiniteError) as caught:
            made(
                models,
                tmp_path,
                where,
                quantize="Q8_0",
                threads=1,
                method="task_arithmetic",
                parameters={"lambda": 1e10},
            )
        said.append(str(caught.value))
    assert said[0] == said[1] and "too large for Q8_0" in said[0]


def test_the_plan_says_where_triton_is_missing(models, tmp_path, monkeypatch):
    import torch

    from streammerge.device import prepare

    gpu = torch.device("cuda")
    monkeypatch.setattr(prepare.fused, "find", lambda device: None)
    quantized = streammerge.plan(*models, tmp_path / "out.gguf", quantize="Q4_K_M", device="cpu", **PRE)
    (notice,) = prepare.missing(quantized, gpu)
    assert "without what Triton compiles (this build of torch is not for CUDA)" in notice
    assert not prepare.missing(quantized, torch.device("cpu"))
    assert not prepare.missing(streammerge.plan(*models, tmp_path / "out", device="cpu"), gpu)
    monkeypatch.setattr(prepare.fused, "find", lambda device: prepare)
    assert not prepare.missing(quantized, gpu)
