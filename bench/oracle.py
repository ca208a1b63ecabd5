"""The RAM family once more in plain numpy, to check a merge before its time is believed. BF16 checkpoints only.

Nothing here comes from the engine: headers are read by bench.sample.checkpoint, arithmetic is numpy's float32.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.process import BenchError
from bench.sample.checkpoint import Place, files, places

Bits = NDArray[np.uint16]
Floats = NDArray[np.float32]

EPSILON = np.float32(1e-5)
_BLOCK = 1 << 17


class Model:
    """The tensors of a checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, Place] = {place.tensor.name: place for path in files(folder) for place in places(path)}

    def read(self, name: str, start: int, stop: int) -> Bits:
        """Elements start to stop of a tensor."""
        place = self.places[name]
        if place.tensor.dtype != "BF16":
            raise BenchError(f"{place.path.name}: {name} is {place.tensor.dtype}; only BF16 is checked here")
        return np.fromfile(place.path, "<u2", min(stop, place.tensor.elements) - start, offset=place.offset + 2 * start)


def widen(bits: Bits) -> Floats:
    """BF16 to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(values: Floats) -> Bits:
    """Finite float32 to BF16, to nearest even."""
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def count(models: Sequence[Model], names: Sequence[str]) -> NDArray[np.int64]:
    """Changed and unique weights of each agent (agents x 2) over some tensors."""
    total = np.zeros((len(models) - 1, 2), np.int64)
    for name, start in _blocks(models[0], names, 1):
        _, changed = _deltas(*_read(models, name, start))
        alone = changed & (changed.sum(axis=0) == 1)
        total += np.stack([changed.sum(axis=1), alone.sum(axis=1)], axis=1)
    return total


def global_scales(counts: NDArray[np.int64], r: float = 0.1, alpha: float = 0.2) -> Floats:
    """lambda of ram+; every agent must have unique weights."""
    ratios = (counts[:, 0] - counts[:, 1]) / counts[:, 1]
    return (1 + r * np.clip(ratios, 0, alpha)).astype(np.float32)


def local_scales(counts: NDArray[np.int64], r: float = 0.1, alpha: float = 0.2) -> Floats:
    """lambda of ramplus_tl for one tensor, in float32."""
    shared, unique = (counts[:, 0] - counts[:, 1]).astype(np.float32), counts[:, 1].astype(np.float32)
    ratios = shared / np.maximum(unique, EPSILON)
    return (np.float32(1) + np.float32(r) * np.clip(ratios, np.float32(0), np.float32(alpha))).astype(np.float32)


def check(base: Path, agents: Sequence[Path], output: Path, method: str, every: int = 1) -> None:
    """Raises BenchError unless every ``every``-th block of a merge has exactly the bits that it should have."""
    models, merged = [Model(folder) for folder in (base, *agents)], Model(output)
    names = list(models[0].places)
    if set(names) != set(merged.places):
        raise BenchError(f"{method}: the output's tensors are not those of the base")
    scales = np.ones(len(agents), np.float32)
    if method == "ram+":
        scales = global_scales(count(models, names))
    for name in names:
        if method == "ramplus_tl":
            scales = local_scales(count(models, [name]))
        for _, start in _blocks(models[0], [name], every):
            wanted = blend(*_read(models, name, start), scales, divide_first=method == "ramplus_tl")
            found = merged.read(name, start, start + _BLOCK)
            if not np.array_equal(wanted, found):
                raise BenchError(f"{method}: {name}: {(wanted != found).sum()} wrong bits from element {start} on")


def check_sample(base: Path, agents: Sequence[Path], output: Path, scales: Sequence[float], every: int) -> None:
    """As ``check`` for ram+ with given scales: for models too large to count again."""
    models, merged = [Model(folder) for folder in (base, *agents)], Model(output)
    factors = np.array(scales, np.float32)
    for name, start in _blocks(models[0], list(models[0].places), every):
        wanted = blend(*_read(models, name, start), factors, divide_first=False)
        if not np.array_equal(wanted, merged.read(name, start, start + _BLOCK)):
            raise BenchError(f"ram+: {name}: wrong bits from element {start} on")


@dataclass(frozen=True)
class Difference:
    """Two outputs: how many elements they have, how many differ, and how many by more than one step of BF16."""

    elements: int
    differing: int
    by_steps: int


def compare(base: Path, ours: Path, theirs: Path) -> Difference:
    """Compare with another program's output, which computed in BF16: so its deltas and their sum were rounded, too.

    Raises BenchError if values differ by more than two such roundings, relative to the base or the result.
    """
    origin, one, other = Model(base), Model(ours), Model(theirs)
    if set(one.places) != set(other.places):
        raise BenchError("the two outputs have different tensors")
    elements = differing = by_steps = 0
    for name, start in _blocks(one, list(one.places), 1):
        raw, a, b = (model.read(name, start, start + _BLOCK) for model in (origin, one, other))
        scale = np.maximum(np.abs(widen(raw)), np.abs(widen(a)))
        if not (np.abs(widen(a) - widen(b)) <= scale * np.float32(2**-7)).all():
            raise BenchError(f"{name}: the two outputs differ by more than rounding from element {start} on")
        steps = np.abs(_ordered(a) - _ordered(b))
        elements += len(steps)
        differing += int(np.count_nonzero(steps))
        by_steps += int(np.count_nonzero(steps > 1))
    return Difference(elements, differing, by_steps)


def _blocks(model: Model, names: Sequence[str], every: int) -> Iterator[tuple[str, int]]:
    for name in names:
        for start in range(0, model.places[name].tensor.elements, _BLOCK * every):
            yield name, start


def blend(base: Bits, agents: Sequence[Bits], scales: Floats, *, divide_first: bool) -> Bits:
    """RAM of one block: unique deltas times their agent's scale, shared ones averaged, the rest untouched."""
    deltas, changed = _deltas(base, agents)
    counts = changed.sum(axis=0).astype(np.float32)
    divisor = np.maximum(counts, np.float32(1))
    shared, alone = np.zeros_like(counts), np.zeros_like(counts)
    for delta, mask, scale in zip(deltas, changed, scales, strict=True):
        part = np.where(mask, delta, np.float32(0))
        shared += part / divisor if divide_first else part
        alone += part * scale
    if not divide_first:
        shared /= divisor
    merged = narrow(widen(base) + np.where(counts == 1, alone, shared))
    return np.where(counts == 0, base, merged)


def _deltas(base: Bits, agents: Sequence[Bits]) -> tuple[Floats, NDArray[np.bool_]]:
    origin = widen(base)
    deltas = np.stack([widen(agent) - origin for agent in agents])
    return deltas, np.abs(deltas) > EPSILON


def _read(models: Sequence[Model], name: str, start: int) -> tuple[Bits, list[Bits]]:
    base, *agents = (model.read(name, start, start + _BLOCK) for model in models)
    return base, agents


def _ordered(bits: Bits) -> NDArray[np.int32]:
    """BF16 bits as integers in the order of the values, so that neighbours differ by 1; both zeros are 0."""
    wide = bits.astype(np.int32)
    return np.where(wide & 0x8000, -(wide & 0x7FFF), wide)
