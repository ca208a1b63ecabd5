"""python -m bench cuda: merges and quantizers on a CUDA device, against the processor and against the device's limits.

The limits are measured in the same run: a copy from pinned memory to the device, and one from place to place on it.
Files must be byte for byte those of the processor before a time counts.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench import cache
from bench.engine import Contest
from bench.process import BenchError, Merge, compile_kernels, merge, wait_for_calm
from bench.quants import ROW, make_rows
from bench.results import Cell, Result, Table, megabytes

OUTPUTS = ("safetensors", "Q4_K_M", "Q6_K", "IQ4_XS")
_METHODS = ("ram", "ram+")
_ELEMENTS = 1 << 24
_COPIED = 1 << 28
_SAMPLES = 7
_SHARE_GOAL, _QUANTIZER_GOAL = 0.8, 5.0

_NOTES = (
    "of the copy: bytes of all checkpoints that the merge reads, in a second of the whole process, against what a copy "
    "from pinned memory to the device reaches by itself. Goal: 0.8, or bound by the disk.",
    "RAM and VRAM: peak and allowed. The output of every row is byte for byte that of the first row of its kind.",
    "G/s: billions of elements a second, from values on the device to blocks on the device; the median of seven. Goal "
    "for Q4_K: 5. of bandwidth: bytes of values and blocks by that time, against a copy on the device.",
    "Blocks were compared with those of the processor, byte for byte, before they were timed.",
)


@dataclass(frozen=True)
class Way:
    """How a merge is carried out."""

    device: str
    threads: int

    @property
    def options(self) -> tuple[str, ...]:
        """For the command line."""
        return ("--device", self.device, "--threads", str(self.threads))


def bench_cuda(data: Path, work: Path, device: str, rounds: int, max_ram: str) -> Result:
    """Merges by every way, then (torch takes memory, which children would inherit as a peak) the device by itself."""
    compile_kernels()
    contest, cores = Contest(data, work), os.cpu_count() or 1
    ways = [Way("cpu", threads) for threads in sorted({1, min(4, cores), cores})] + [Way(device, cores)]
    merges = [
        (kind, method, way, _merged(contest, kind, method, ways, way, rounds, max_ram))
        for kind in OUTPUTS
        for method in _METHODS
        for way in ways
    ]
    limits = Device(device)
    copied = limits.pinned_copy()
    result = Result("cuda", "Merging and quantizing on a CUDA device", limits.facts(), notes=list(_NOTES))
    rows = [_merge_row(*found, copied) for found in merges]
    columns = ("output", "method", "device", "threads", "s", "GB/s read", "of the copy", "RAM", "VRAM", "bound by")
    result.tables = [Table(f"Merges: base and {len(contest.agents)} agents, {data.name}", columns, rows)]
    result.tables.append(Table("Quantizers", ("type", "imatrix", "G/s", "of bandwidth", "goal"), list(limits.rows())))
    result.runs = [{"kind": k, "method": m, "way": w.options, "report": f[-1].report} for k, m, w, f in merges]
    return result


def _merged(
    contest: Contest, kind: str, method: str, ways: list[Way], way: Way, rounds: int, max_ram: str
) -> list[Merge]:
    """The same merge several times; the file is kept until another way has made the same one."""
    found = []
    name = "out" if kind == "safetensors" else "out.gguf"
    quantize = () if kind == "safetensors" else ("--quantize", kind)
    reference = contest.work / f"{kind}-{method}.digest"
    for _ in range(rounds):
        wait_for_calm(30)
        cache.warm(contest.inputs)
        output = contest.work / name
        options = ("--overwrite", *quantize, *way.options)
        found.append(merge(contest.base, contest.agents, output, method, max_ram, *options))
        digest = _digest(output if output.is_file() else output / "model.safetensors")
        if way == ways[0] and not reference.exists():
            reference.write_text(digest)
        if reference.read_text() != digest:
            raise BenchError(f"{kind}, {method}, {way}: not the bytes of {ways[0]}")
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _merge_row(kind: str, method: str, way: Way, found: list[Merge], copied: float) -> tuple[Cell, ...]:
    wall = median(one.run.wall for one in found)
    report = found[-1].report
    read = report["bytes_read"] / wall
    memory, device = report["memory"], report["device"]
    vram = None
    if device["peak"] is not None:
        vram = f"{megabytes(device['peak'])} of {megabytes(device['vram']['allowed'])}"
    ram = f"{megabytes(memory['peak'])} of {megabytes(memory['allowed'])}"
    share = None if way.device == "cpu" else read / copied
    return (kind, method, way.device, way.threads, wall, read / 1e9, share, ram, vram, report["bound_by"])


class Device:
    """The device by itself: its copies and its quantizers. Imports torch."""

    def __init__(self, name: str) -> None:
        import torch

        from streammerge.device.torch_device import open_device

        self._torch: Any = torch
        self._device = open_device(name)

    def facts(self) -> dict[str, Any]:
        """What it is."""
        torch, is_cuda = self._torch, self._device.type == "cuda"
        name = torch.cuda.get_device_name(self._device) if is_cuda else "torch's CPU device, for trying this out"
        return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}

    def pinned_copy(self) -> float:
        """Bytes a second from pinned memory to the device."""
        torch = self._torch
        host = torch.empty(_COPIED, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        there = torch.empty(_COPIED, dtype=torch.uint8, device=self._device)
        return _COPIED / self._time(lambda: there.copy_(host, non_blocking=True))

    def bandwidth(self) -> float:
        """Bytes a second that a copy on the device reads and writes together."""
        torch = self._torch
        one, other = (torch.zeros(_COPIED, dtype=torch.uint8, device=self._device) for _ in range(2))
        return 2 * _COPIED / self._time(lambda: one.copy_(other))

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Every quantizer."""
        from streammerge.formats.device import quantize
        from streammerge.formats.quants import QUANTS, encode

        torch, bandwidth = self._torch, self.bandwidth()
        values, weights = make_rows()
        values = np.resize(values.ravel(), _ELEMENTS)
        there, importance = (torch.from_numpy(array).to(self._device) for array in (values, weights))
        for name, quant in QUANTS.items():
            out = torch.empty(_ELEMENTS // quant.block * quant.nbytes, dtype=torch.uint8, device=self._device)
            wanted = np.empty(out.numel(), np.uint8)
            for weighed in (False, True) if quant.imatrix else (False,):
                encode(name, values, ROW, weights if weighed else None, wanted)
                used = importance if weighed else None
                seconds = self._time(lambda n=name, u=used, o=out: quantize(n, there, ROW, u, o))  # type: ignore[misc]
                if out.cpu().numpy().tobytes() != wanted.tobytes():
                    raise BenchError(f"{name}: not the bytes of the processor")
                speed = _ELEMENTS / seconds / 1e9
                share = (4 * _ELEMENTS + out.numel()) / seconds / bandwidth
                goal = "" if name != "Q4_K" else "yes" if speed >= _QUANTIZER_GOAL else "**no**"
                yield name, "yes" if weighed else "no", speed, share, goal

    def _time(self, call: Callable[[], object]) -> float:
        """Seconds of one call: the median of several, the device at rest before and after."""
        call()
        return median(self._sample(call) for _ in range(_SAMPLES))

    def _sample(self, call: Callable[[], object]) -> float:
        self._rest()
        began = time.perf_counter()
        call()
        self._rest()
        return time.perf_counter() - began

    def _rest(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize(self._device)
