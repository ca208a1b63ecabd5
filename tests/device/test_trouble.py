"""When a device is short of memory, lost, wrong or not there at all."""

import subprocess
import sys

import pytest
import torch

import streammerge
from streammerge.budget import Memory
from streammerge.device.placement import DeviceDemand, fit
from streammerge.errors import BudgetError, DeviceError, RecipeError, WrongBytesError
from streammerge.kernels.cuda import Torch
from tests.checks import merge_paths


def outputs(base, paths, **options):
    return merge_paths(base, paths, "ram", device="torch:cpu", **options).content


@pytest.fixture
def models(models_of):
    return models_of("BF16", 3)


@pytest.fixture
def right(models):
    return merge_paths(*models, "ram", device="cpu").content


def test_runs_become_shorter_where_memory_is_short(models, right, monkeypatch):
    real, lengths = Torch.ram, []

    def short(base, *rest):
        lengths.append(base.numel())
        if base.numel() > 65_536:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        real(base, *rest)

    monkeypatch.setattr(Torch, "ram", staticmethod(short))
    assert outputs(*models) == right
    assert max(lengths) > 65_536 and lengths[-1] <= 65_536


def test_too_little_memory_for_the_shortest_run_is_an_error(models, monkeypatch):
    def short(*arguments):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Torch, "ram", staticmethod(short))
    with pytest.raises(DeviceError, match="torch:cpu: the device has too little free memory") as caught:
        outputs(*models)
    assert "\n" not in str(caught.value)


def test_what_a_lost_device_had_done_is_gone_on_with(models, right, monkeypatch, tmp_path):
    real, calls = Torch.ram, []

    def lost(*arguments):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously")
        real(*arguments)

    monkeypatch.setattr(Torch, "ram", staticmethod(lost))
    out = tmp_path / "out.safetensors"
    with pytest.raises(DeviceError, match="the device failed: CUDA error: unspecified launch failure; try") as caught:
        streammerge.merge(*models, out, method="ram", device="torch:cpu", threads=1)
    assert "\n" not in str(caught.value) and "keeps" in caught.value.__notes__[0]
    assert not out.exists()
    report = streammerge.merge(*models, out, method="ram", device="cpu", resume=True)
    assert out.read_bytes() == right and report.outcome.bytes_written < len(right)


def test_a_device_that_computes_something_else_is_found_out(models, monkeypatch):
    real = Torch.ram

    def wrong(base, agents, epsilon, scales, out, tally):
        real(base, agents, epsilon, scales, out, tally)
        out.view(-1)[-1] += 1e-2

    monkeypatch.setattr(Torch, "ram", staticmethod(wrong))
    with pytest.raises(DeviceError, match=r"torch:cpu: computes other bytes than the processor in tensor '\w+'"):
        outputs(*models)


def test_a_device_that_counts_something_else_is_found_out(models, monkeypatch):
    real = Torch.count_changes

    def wrong(base, agents, epsilon, tally):
        real(base, agents, epsilon, tally)
        tally[0, 0] += 1

    monkeypatch.setattr(Torch, "count_changes", staticmethod(wrong))
    with pytest.raises(DeviceError, match="computes other bytes"):
        merge_paths(*models, "ram+", device="torch:cpu")


def test_too_little_vram_is_refused_with_the_least_that_would_do(models):
    with pytest.raises(
        BudgetError, match=r"--max-vram 100 MiB is too small: it needs at least .* try --max-vram (\d+)M"
    ) as c:
        outputs(*models, max_vram="100M")
    least = str(c.value).split("--max-vram ")[2].split(",")[0]
    assert outputs(*models, max_vram=least)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_cuda_says_what_is_missing(models, tmp_path):
    with pytest.raises(DeviceError, match="--device cuda: torch .* without CUDA|finds no CUDA device"):
        streammerge.merge(*models, tmp_path / "out", device="cuda")


def test_without_torch_cuda_says_how_to_get_it(models, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # how an import is refused
    with pytest.raises(DeviceError, match=r'--device cuda:1: needs torch: pip install "streammerge\[torch\]"'):
        streammerge.merge(*models, tmp_path / "out", device="cuda:1")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:", "CUDA", ""])
def test_unknown_devices_are_refused(models, tmp_path, device):
    with pytest.raises(RecipeError, match="--device .* is not known; it is auto, cpu, cuda or cuda:1"):
        streammerge.plan(*models, tmp_path / "out", device=device)


def test_vram_is_refused_for_the_processor(models, tmp_path):
    with pytest.raises(RecipeError, match="--max-vram is for CUDA"):
        streammerge.plan(*models, tmp_path / "out", device="cpu", max_vram="1G")


def test_torch_is_not_imported_before_it_is_asked_for(models, tmp_path):
    code = (
        "import sys, streammerge; from pathlib import Path\n"
        f"streammerge.merge({str(models[0])!r}, {list(map(str, models[1]))!r}, {str(tmp_path / 'out')!r})\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_is_kept_of_a_run_whose_bytes_were_wrong(models, monkeypatch, tmp_path):
    real = Torch.ram

    def wrong(base, agents, epsilon, scales, out, tally):
        real(base, agents, epsilon, scales, out, tally)
        if base.numel() > 65_536:  # not in the rehearsal
            out.view(-1)[0] += 1e-2

    monkeypatch.setattr(Torch, "ram", staticmethod(wrong))
    monkeypatch.setattr("streammerge.device.worker.Device.is_new", lambda self, kind: True)
    with pytest.raises(WrongBytesError) as caught:
        streammerge.merge(*models, tmp_path / "out.safetensors", method="ram", device="torch:cpu", threads=1)
    assert not hasattr(caught.value, "__notes__")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("workers", "chunk", "grain", "allowed", "wanted"),
    [
        (2, 5, 3, 622, (2, 3, 3)),  # half of the chunk would be too little: as little as may be
        (64, 64, 1, 1024, (5, 64, 64)),  # fewer workers, not shorter runs
        (8, 64, 1, 8192, (8, 64, 64)),
        (4, 64, 1, 612, (1, 1, 1)),
    ],
)
def test_long_runs_come_before_many_workers(workers, chunk, grain, allowed, wanted):
    block, mib = 65_536, 1 << 20
    memory = Memory(1 << 34, 0, 0, 0, workers, chunk * block)
    demand = DeviceDemand(carried=10, computed=50, worker=0, grain=grain * block, shortest=block)
    found, length, vram = fit(memory, demand, allowed * mib)
    assert (found, length // block, vram.run // block) == wanted
    assert vram.projected <= vram.allowed


def test_a_torch_that_is_broken_is_an_error_of_one_line(models, tmp_path, monkeypatch):
    def broken(name):
        raise OSError("libcudart.so.12: cannot open shared object file\nmore")

    monkeypatch.setattr("streammerge.device.placement.import_module", broken)
    with pytest.raises(
        DeviceError, match="--device cuda: torch cannot be imported: libcudart.so.12: .*; install it anew"
    ):
        streammerge.merge(*models, tmp_path / "out", device="cuda")
