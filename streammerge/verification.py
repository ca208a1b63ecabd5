"""Verifies a written output: is it, byte for byte, what its manifest says, and does the merge give it again?

    always       sizes, headers, tensors, the checksum of every one of them, other files; values that are not finite
    --against    a share of the chunks, or all of them, computed again from the models and compared with the bytes

Tensors are read segment by segment, each thread with buffers for one of them.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import checksum
from .budget import counted
from .errors import Interrupted
from .events import Advanced, Listener, PassStarted
from .formats import codecs, quants
from .formats.contract import Bytes, Reader, Source, TensorInfo
from .formats.dtypes import DTYPES
from .formats.gguf import GGML_TYPES
from .manifest import companions, manifest_path, open_told, read_manifest, without_time
from .manifest_check import NAME
from .planning import Plan, make_plan
from .provenance import first_difference, run_facts
from .recompute import output_sizes, recipe_again, recompute


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at, and every problem in a sentence; none if all is as it was written."""

    output: Path
    tensors: int
    weights: int
    problems: tuple[str, ...]
    recomputed: float = 0.0  # share of the weights that were computed again

    def lines(self) -> list[str]:
        """What the terminal shows."""
        if self.problems:
            return [*self.problems, f"{self.output}: {counted(len(self.problems), 'problem')}"]
        again = f"; {self.recomputed:.1%} of it computed again: the same bytes" if self.recomputed else ""
        return [f"{self.output}: {self.tensors} tensors, {self.weights:,} weights, all as they were written{again}"]

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "output": str(self.output),
            "tensors": self.tensors,
            "weights": self.weights,
            "recomputed": self.recomputed,
            "problems": list(self.problems),
        }


def verify_output(path: Path, threads: int, listener: Listener, stop: threading.Event) -> Verification:
    """Compare an output with its manifest. Raises FormatError if there is none, or if the output cannot be opened."""
    place = manifest_path(path)
    manifest = read_manifest(place)
    output = open_told(place, manifest)
    folder = place.parent
    problems = [*_files(folder, manifest), *_tensor_table(output, manifest), *_companions(folder, manifest)]
    problems += _strangers(folder, manifest) if place.name == NAME else ()
    wanted = manifest["tensors"]
    whole = [info for name, info in output.tensors.items() if _misfit(info, wanted.get(name)) is None]
    listener(PassStarted("verifying", sum(info.nbytes for info in whole)))
    _load_decoders(whole)
    reader = output.reader("pread")
    try:
        with ThreadPoolExecutor(threads) as pool:
            check = _Check(reader, manifest, listener, stop)
            problems += [problem for found in pool.map(check.tensor, whole) for problem in found]
    finally:
        reader.close()
    weights = sum(info.elements for info in output.tensors.values())
    return Verification(path, len(output.tensors), weights, tuple(problems))


def plan_again(path: Path, models: Sequence[Path], options: Mapping[str, Any]) -> Plan:
    """The plan of an output's manifest for these models, the base first. Raises StreammergeError."""
    return make_plan(recipe_again(read_manifest(manifest_path(path)), models, **options))


def verify_against(
    found: Verification, plan: Plan, share: float, listener: Listener, stop: threading.Event
) -> Verification:
    """Compute a share of a verified output again. Raises StreammergeError."""
    place = manifest_path(found.output)
    manifest = read_manifest(place)
    problems = [f"{place}: is not what was merged: {text}" for place, text in _other_inputs(plan, manifest)]
    if problems:
        return replace(found, problems=tuple(problems))
    output = open_told(place, manifest)
    if output_sizes(plan) != {name: info.nbytes for name, info in output.tensors.items()}:
        return replace(found, problems=(f"{found.output}: the recipe in its manifest gives other tensors",))
    problems, recomputed = recompute(output, plan, share, listener, stop)
    return replace(found, problems=tuple(problems), recomputed=recomputed)


def _other_inputs(plan: Plan, manifest: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Every model, importance matrix or template whose files differ from those that the manifest tells of; they, and
    folders, may have another name now."""
    found = run_facts(plan)
    models = (plan.base, *plan.agents)
    pairs = [
        (model.path, facts["files"], wanted["files"])
        for model, facts, wanted in zip(models, found["inputs"], manifest["inputs"], strict=True)
    ]
    beside = plan.gguf.read if plan.gguf else ()
    pairs += [
        (file, [facts], [{**wanted, "name": file.name}])
        for file, facts, wanted in zip(beside, found["beside"], manifest["beside"])
    ]
    for path, files, were in pairs:
        difference = first_difference([without_time(file) for file in files], were)
        if difference is not None:
            yield path, difference


# --- what the headers say --------------------------------------------------------------------------------------------


def _files(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    for name, wanted in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            yield f"{path}: is missing"
        elif path.stat().st_size != wanted["size"]:
            yield f"{path}: has {path.stat().st_size} bytes, {wanted['size']} were written"
        elif _header(path, wanted["header_size"]) != wanted["header"]:
            yield f"{path}: its header is not the one that was written"


def _header(path: Path, size: int) -> str:
    with open(path, "rb") as file:
        return checksum.digest(file.read(size)).hex()


def _tensor_table(output: Source, manifest: Mapping[str, Any]) -> Iterator[str]:
    wanted = manifest["tensors"]
    yield from (f"{output.path}: tensor {name!r} is missing" for name in wanted if name not in output.tensors)
    for name, info in output.tensors.items():
        if (misfit := _misfit(info, wanted.get(name))) is not None:
            yield f"{info.file}: tensor {name!r} {misfit}"


def _misfit(info: TensorInfo, wanted: Mapping[str, Any] | None) -> str | None:
    """How a tensor's header differs from what the manifest says; what it holds is looked at only if it does not."""
    if wanted is None:
        return "was not written by this merge"
    found = info.file.name, info.dtype, list(info.shape)
    told = tuple(wanted.get(key) for key in ("file", "dtype", "shape"))
    if found != told:
        return f"is {found[1]} {found[2]} in {found[0]}, written was {told!s:.200}"
    block = _block(info.dtype)[1]
    if sum(wanted["parts"]) != info.nbytes or any(size % block for size in (*wanted["parts"], wanted["segment"])):
        return "is not cut into segments as the manifest says"
    return None


def _companions(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    for name, wanted in manifest["companions"].items():
        path = folder / name
        if not path.is_file():
            yield f"{path}: is missing"
        elif checksum.of_file(path) != wanted:
            yield f"{path}: was changed after the merge"


def _strangers(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """A loader may prefer such a file to what was written: model.safetensors to shards, a chat template to another."""
    for name in companions(folder, manifest["files"]):
        if name not in manifest["companions"]:
            yield f"{folder / name}: was not written by this merge"


# --- what the tensors hold -------------------------------------------------------------------------------------------


def _load_decoders(tensors: Sequence[TensorInfo]) -> None:
    from .kernels.load import load_cpu, load_quants

    load_cpu()
    load_quants({info.dtype for info in tensors})


@dataclass(frozen=True)
class _Check:
    """The tensors of an output, one at a time, from any thread."""

    reader: Reader
    manifest: Mapping[str, Any]
    listener: Listener
    stop: threading.Event

    def tensor(self, info: TensorInfo) -> list[str]:
        """The problems of one tensor."""
        wanted = self.manifest["tensors"][info.name]
        parts, bad, start = [], _NonFinite(info), 0
        buffer = np.empty(max(min(wanted["segment"], info.nbytes), 1), np.uint8)
        for size in wanted["parts"]:  # of a stack the tensors in it, of a vocabulary its rows by where they come from
            digests = []
            for position in range(start, start + size, max(wanted["segment"], 1)):
                if self.stop.is_set():
                    raise Interrupted("interrupted; the output is as it was")
                stop = min(position + wanted["segment"], start + size)
                data = self.reader.read(info, position, stop, buffer)
                digests.append(checksum.digest(data.data))
                bad.look_at(data, position)
                self.listener(Advanced(len(data), 0))
            parts.append(checksum.digest(b"".join(digests)))
            start += size
        where = f"{info.file}: tensor {info.name!r}"
        problems = []
        if checksum.stacked(parts) != wanted["checksum"]:
            problems.append(f"{where} is not what was written: its checksum differs")
        if bad.count and not self.manifest["non_finite"] and wanted["origin"] != "base":  # what is copied may be so
            problems.append(f"{where} holds {bad.count} values that are not finite, the first at index {bad.first}")
        return problems


class _NonFinite:
    """Counts NaN and infinity in the pieces of a tensor; ``first`` is the flat index of the first one."""

    def __init__(self, info: TensorInfo) -> None:
        self.count, self.first = 0, -1
        self._dtype = info.dtype
        self._is_plain = info.dtype in DTYPES
        self._is_number = (self._is_plain and DTYPES[info.dtype].floating) or not self._is_plain
        self._block, self._block_bytes = _block(info.dtype)
        self._values = np.empty(0, np.float32)

    def look_at(self, data: Bytes, position: int) -> None:
        """Count in ``data``, whole blocks that begin at byte ``position`` of the tensor."""
        if not self._is_number:
            return
        elements = len(data) // self._block_bytes * self._block
        if len(self._values) < elements:
            self._values = np.empty(elements, np.float32)
        values = self._values[:elements]
        if self._is_plain:
            found = codecs.decode(self._dtype, data, values)
        else:
            quants.decode(self._dtype, data, values)
            found = 0 if codecs.largest_magnitude(values) < np.inf else int(np.count_nonzero(~np.isfinite(values)))
        if found and not self.count:
            self.first = position // self._block_bytes * self._block + int(np.flatnonzero(~np.isfinite(values))[0])
        self.count += found


def _block(dtype: str) -> tuple[int, int]:
    """Values that stand together, and their bytes."""
    if dtype in DTYPES:
        return 1, DTYPES[dtype].itemsize
    kind = GGML_TYPES[dtype]
    return kind.block, kind.block_bytes
