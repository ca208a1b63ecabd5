"""``--device auto``: what it looks at, what it measures, what it says."""

import threading

import pytest

import streammerge
from streammerge.device import choice
from streammerge.device.choice import Trial, choose, decide, try_out
from streammerge.device.placement import PROCESSOR


@pytest.fixture
def plan(models_of, tmp_path):
    base, paths = models_of("BF16", 3)
    return streammerge.plan(base, paths, tmp_path / "out", device="cpu", max_ram="8G")


@pytest.fixture
def with_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "_DRIVERS", (tmp_path,))
    monkeypatch.setattr(choice, "find_spec", lambda name: name)
    monkeypatch.setattr(choice, "_WORTH_STARTING", 0)


def chosen(plan):
    return choose(plan, lambda text: None, threading.Event())


def test_without_a_gpu_nothing_is_tried(plan, monkeypatch):
    monkeypatch.setattr(choice, "_DRIVERS", ())
    monkeypatch.setattr(choice.shutil, "which", lambda name: None)
    monkeypatch.setattr(choice, "try_out", None)
    assert str(chosen(plan)) == "cpu (auto: there is no GPU, or no driver for it)"
    assert not chosen(plan).had_choice


def test_without_torch_it_says_how_to_get_it(plan, with_gpu, monkeypatch):
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    assert 'pip install "streammerge[torch]"' in chosen(plan).why


def test_a_small_merge_is_not_worth_the_start(plan, with_gpu, monkeypatch):
    monkeypatch.setattr(choice, "_WORTH_STARTING", 1 << 40)
    assert chosen(plan).why.endswith("is over before CUDA has started")


def test_a_small_budget_has_no_room_for_cuda(models_of, tmp_path, with_gpu):
    base, paths = models_of("BF16", 3)
    small = streammerge.plan(base, paths, tmp_path / "out", device="cpu", max_ram="512M")
    assert "CUDA alone takes up to 3 GiB of memory, 512 MiB are allowed" in chosen(small).why


def test_what_is_measured_decides(plan, with_gpu, monkeypatch):
    asked = []

    def found(plan, device, stop):
        asked.append(device)
        return Trial("cuda:0", processor=100.0, accelerator=20.0, reading=10.0, start=4.0)

    monkeypatch.setattr(choice, "try_out", found)
    placement = chosen(plan)
    assert asked == ["cuda"] and placement.device == "cuda:0"
    assert placement.why == "auto: some 34 s there, 110 s on the processor"


@pytest.mark.parametrize(
    ("processor", "accelerator", "reading", "start", "bound"),
    [(10.0, 1.0, 90.0, 4.0, "reading"), (10.0, 9.0, 1.0, 0.0, "computing"), (4.0, 1.0, 1.0, 5.0, "computing")],
)
def test_a_small_gain_is_none(processor, accelerator, reading, start, bound):
    placement = decide(Trial("cuda:0", processor, accelerator, reading, start))
    assert placement.device == "cpu" and placement.why.endswith(f"bound by {bound}")


def test_a_failed_trial_leaves_the_processor(plan, with_gpu):
    placement = chosen(plan)  # there is no CUDA device here, or this recipe's device cannot be opened
    assert placement.device == "cpu" or placement.device.startswith("cuda")


def test_the_trial_measures_both(plan):
    found = try_out(plan, "torch:cpu", threading.Event())
    assert isinstance(found, Trial), found
    assert found.device == "torch:cpu"
    assert min(found.processor, found.accelerator, found.reading, found.start) > 0


def test_a_trial_that_breaks_says_why(plan, monkeypatch):
    assert "--device cuda:99" in try_out(plan, "cuda:99", threading.Event())
    monkeypatch.setattr(choice.sys, "executable", "/nowhere/python")
    assert "could not be tried out" in try_out(plan, "torch:cpu", threading.Event())


def test_auto_is_what_a_merge_does(models_of, tmp_path, monkeypatch):
    base, paths = models_of("BF16", 3)
    trial = Trial("torch:cpu", processor=100.0, accelerator=1.0, reading=1.0, start=1.0)
    monkeypatch.setattr(choice, "_missing", lambda: None)
    monkeypatch.setattr(choice, "_obstacle", lambda plan: None)
    monkeypatch.setattr(choice, "try_out", lambda plan, device, stop: trial)
    planned = streammerge.plan(base, paths, tmp_path / "out")
    assert planned.placement.device == "torch:cpu" and planned.placement.vram is not None
    assert planned.placement.why == "auto: some 3 s there, 101 s on the processor"


def test_inspection_stays_on_the_processor(models_of, monkeypatch):
    from streammerge.inspection.run import inspect

    monkeypatch.setattr(choice, "choose", None)
    base, paths = models_of("BF16", 1)
    assert inspect(base, paths) and PROCESSOR.is_processor
