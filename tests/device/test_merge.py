"""Whole merges on a torch device: the bytes of those on the processor, whatever the method, type, number and budget."""

from itertools import count

import numpy as np
import pytest

import streammerge
from streammerge.errors import NonFiniteError
from tests.checks import merge_paths, save_models
from tests.device.conftest import moved, weights

METHODS = [
    ("ram", {}),
    ("ram+", {}),
    ("ram+", {"preset": "authors"}),
    ("ramplus_tl", {}),
    ("linear", {"weight": 0.7}),
    ("linear", {"normalize": "false"}),
    ("task_arithmetic", {"lambda": 0.6, "normalize": "true"}),
    ("ties", {"density": 0.3}),
    ("ties", {"density": 0.05, "normalize": "false", "lambda": 1.2}),
    ("ties", {"density": 1}),
    ("dare_linear", {"density": 0.4, "seed": 3}),
    ("dare_linear", {"density": 0.4, "rescale": "inverse_density"}),
]
_serial = count()
IDS = [f"{name}-{number}" for number, (name, _) in enumerate(METHODS)]


def both(base, agents, method, parameters, device, **options):
    """The output of the processor, and that of the device."""
    found = []
    for where in ("cpu", device):
        output = base.parent / f"{next(_serial)}.safetensors"
        streammerge.merge(base, agents, output, method=method, parameters=parameters, device=where, **options)
        found.append(output.read_bytes())
    return found


@pytest.mark.parametrize("agents", [1, 3, 8])
@pytest.mark.parametrize(("method", "parameters"), METHODS, ids=IDS)
def test_every_method_gives_the_same_bytes(models_of, placed, method, parameters, agents):
    base, paths = models_of("BF16", agents)
    one, other = both(base, paths, method, parameters, placed)
    assert one == other


@pytest.mark.parametrize("dtype", ["F32", "F16", "F64"])
@pytest.mark.parametrize(("method", "parameters"), METHODS[:2] + METHODS[7:8], ids=["ram", "ram+", "ties"])
def test_every_type_gives_the_same_bytes(models_of, placed, method, parameters, dtype):
    base, paths = models_of(dtype, 3)
    for out in (None, "bf16", "f8_e4m3", "f8_e5m2", "f32"):
        one, other = both(base, paths, method, parameters, placed, dtype=out)
        assert one == other


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_gives_the_same_bytes(tmp_path, placed, t):
    rng = np.random.default_rng(5)
    base = {"apart": weights(rng, "F32", 300, 300), "near": weights(rng, "F32", 300, 300)}
    agent = {"apart": weights(rng, "F32", 300, 300), "near": moved(rng, base["near"])}
    one, other = both(*save_models(tmp_path, base, [agent]), "slerp", {"t": t}, placed)
    assert one == other


def test_thirty_two_agents_give_the_same_bytes(models_of, placed):
    base, paths = models_of("BF16", 32)
    for method in ("ram+", "ties"):
        one, other = both(base, paths, method, {}, placed)
        assert one == other


@pytest.mark.parametrize("method", ["ram+", "ties", "dare_linear"])
def test_budgets_threads_and_io_change_nothing(models_of, placed, method):
    base, paths = models_of("BF16", 3)
    parameters = {} if method == "ram+" else {"density": 0.3}
    seen = {
        merge_paths(base, paths, method, parameters, device=placed, **way).content
        for way in (
            {"max_ram": "8G", "threads": 1},
            {"max_ram": "200M", "threads": 2, "io": "mmap"},
            {"max_ram": "1G", "threads": 4, "max_vram": "720M"},
        )
    }
    assert seen == {merge_paths(base, paths, method, parameters, device="cpu").content}


def test_the_counts_of_the_report_are_the_same(models_of, placed):
    base, paths = models_of("BF16", 3)
    one, other = (merge_paths(base, paths, "ram+", device=where).report for where in ("cpu", placed))
    assert one.agents == other.agents and one.agents[0].changed > 0


def test_what_is_measured_for_a_page_is_the_same(models_of, placed, tmp_path):
    pytest.importorskip("plotly")
    base, paths = models_of("BF16", 3)
    pages = []
    for where in ("cpu", placed):
        page = tmp_path / f"{where.replace(':', '-')}.html"
        report = merge_paths(base, paths, "ram", device=where, report=page).report
        pages.append({name: row.tobytes() for name, row in report.outcome.observed.items()})
    assert pages[0] == pages[1] and len(pages[0]) == 3


# --- what is not usual -------------------------------------------------------------------------------------------


def broken(tmp_path, value, where=("long", 70_000)):
    rng = np.random.default_rng(9)
    base = {"long": weights(rng, "F32", 331, 643), "odd": weights(rng, "F32", 77)}
    agents = [{name: moved(rng, values) for name, values in base.items()} for _ in range(2)]
    agents[1][where[0]].flat[where[1]] = value
    return save_models(tmp_path, base, agents)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named_as_on_the_processor(tmp_path, placed, value):
    base, paths = broken(tmp_path, value)
    said = []
    for where in ("cpu", placed):
        with pytest.raises(NonFiniteError) as caught:
            merge_paths(base, paths, "ram", device=where)
        said.append(str(caught.value))
    assert said[0] == said[1] and "[108, 556]" in said[0]


@pytest.mark.parametrize("method", ["ram", "ties", "linear", "dare_linear"])
def test_allowed_values_that_are_not_finite_give_the_same_bytes(tmp_path, placed, method):
    base, paths = broken(tmp_path, np.nan)
    one, other = both(base, paths, method, {}, placed, allow_non_finite=True)
    assert one == other


def test_a_result_too_large_for_its_type_is_named_as_on_the_processor(tmp_path, placed):
    base, paths = broken(tmp_path, 3e5)
    said = []
    for where in ("cpu", placed):
        with pytest.raises(NonFiniteError) as caught:
            merge_paths(base, paths, "ram", device=where, dtype="f16")
        said.append(str(caught.value).replace("merged", "").split(": ", 1)[1])
    assert said[0] == said[1] and "too large for F16" in said[0]


def test_deltas_that_overflow_are_the_same(tmp_path, placed):
    rng = np.random.default_rng(1)
    base = {"a": np.where(rng.random((300, 400)) < 0.5, 3e38, -3e38).astype("f4")}
    agents = [{"a": rng.permutation(base["a"], axis=1)} for _ in range(2)]
    paths = save_models(tmp_path, base, agents)
    for method in ("ram", "ties", "task_arithmetic"):
        one, other = both(*paths, method, {}, placed, allow_non_finite=True)
        assert one == other


def test_the_device_is_told_in_plan_and_summary(models_of, placed):
    from streammerge.plantext import plan_text
    from streammerge.report import summary

    base, paths = models_of("BF16", 3)
    planned = streammerge.plan(base, paths, base.parent / "planned", device=placed)
    assert f"device   {placed}" in plan_text(planned) and "weights at a time" in plan_text(planned)
    assert planned.to_dict()["device"]["vram"]["run"] % 65_536 == 0
    report = merge_paths(base, paths, "ram", device=placed).report
    assert f"  computed on {placed}" in summary(report)
