"""``merge --report``: the same page from what the merge reads anyway."""

import re

import numpy as np
import pytest

import streammerge
from bench.sample.generate import Shape
from streammerge.errors import RecipeError
from tests.checks import save_models
from tests.gguf import merging
from tests.inspection.models import make_models
from tests.test_cli import models, run
from tests.test_memory import merge_in_child

pytest.importorskip("plotly", reason="plotly is not installed")


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("ram", {}), ("ram+", {}), ("ties", {"density": 0.3}), ("dare_linear", {"density": 0.5}), ("linear", {})],
)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_merge_observes_what_inspect_does_and_reads_no_more(tmp_path, method, parameters, dtype):
    base, agents = save_models(tmp_path, *make_models(3, dtype))
    options = {"method": method, "parameters": parameters, "max_ram": "1G"}
    plain = streammerge.merge(base, agents, tmp_path / "plain.safetensors", **options)
    page = tmp_path / "page.html"
    told = streammerge.merge(base, agents, tmp_path / "told.safetensors", **options, report=page)
    assert (tmp_path / "told.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    assert told.outcome.bytes_read == plain.outcome.bytes_read
    np.testing.assert_array_equal(told.outcome.tally, plain.outcome.tally)
    found = streammerge.inspect(base, agents, max_ram="1G")
    assert plain.outcome.observed == {} and len(told.outcome.observed) == len(found.tensors)
    for tensor, row in zip(found.tensors, found.rows):
        np.testing.assert_array_equal(told.outcome.observed[tensor.name], row)
    assert f"{float(found.total.agent(0).density):.2%}" in page.read_text()


def test_the_command_writes_the_page(tiny, tmp_path):
    done = run("merge", *models(tiny), "-o", tmp_path / "out", "--report", tmp_path / "page.html", "-q")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "page.html").read_text()
    assert re.search(r'class="advice note" data-rule="sparse"', text) and "agent-2" in text


def test_resume_and_report_exclude_each_other():
    with pytest.raises(RecipeError, match="--report shows what the merge itself reads.*streammerge inspect makes"):
        streammerge.plan("base", ["agent"], "out", report="page.html", resume=True)


def test_the_page_is_checked_before_anything_is_read(tiny, tmp_path):
    done = run("merge", *models(tiny), "-o", tmp_path / "out", "--report", tmp_path / "absent" / "page.html")
    assert done.returncode == 1 and "cannot be written there" in done.stderr and list(tmp_path.iterdir()) == []


def test_a_report_is_within_the_least_budget(tiny, tmp_path):
    options = ["--report", tmp_path / "page.html"]
    report, _ = merge_in_child(*models(tiny), "-o", tmp_path / "a", "--max-ram", "1G", *options)
    least = report["memory"]["least"]
    report, peak = merge_in_child(*models(tiny), "-o", tmp_path / "b", "--max-ram", str(least), *options)
    assert peak <= report["memory"]["projected"] <= least


def test_a_quantized_output_is_observed_as_well(tmp_path):
    """Its chunks are cut at heads and rows: counts are the same, sums differ in their last digits at most."""
    shape = Shape(layers=1, hidden=768, intermediate=768, heads=12, kv_heads=4, vocab=64, tied=True)
    base, agents = merging.make_models(tmp_path, shape)
    report = streammerge.merge(
        base, agents, tmp_path / "o.gguf", quantize="Q8_0", pre_tokenizer="llama-bpe", max_ram="1G",
        report=tmp_path / "page.html",
    )  # fmt: skip
    found = streammerge.inspect(base, agents, max_ram="1G")
    assert len(report.outcome.observed) == len(found.tensors)
    for tensor, row in zip(found.tensors, found.rows):
        observed = report.outcome.observed[tensor.name]
        (whole, *counts), (its_whole, *its_counts) = found.columns.split(observed), found.columns.split(row)
        np.testing.assert_allclose(whole[0], its_whole[0], rtol=1e-12)
        for one, other in zip(counts, its_counts):
            np.testing.assert_allclose(one[..., :5], other[..., :5], rtol=1e-12, atol=1e-18, err_msg=tensor.name)
