"""The packed agents of data/: how far each bf16 value moved from the base. data/README.md gives the format."""

import json
import lzma
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.sample.bits import move
from bench.sample.checkpoint import SINGLE, Place, places
from bench.sample.folders import aside, copy_others

DATA = Path(__file__).parent / "data"
AGENTS = ("sum", "caps", "json")
ESCAPE = -128


@dataclass(frozen=True)
class Packed:
    """`tensors` are (name, elements) that differ; `steps` int8, one an element; `escapes` uint16, the agent's bits."""

    tensors: list[tuple[str, int]]
    steps: NDArray[np.int8]
    escapes: NDArray[np.uint16]


def make_unpacked(folder: Path, base: Path, packed: Path) -> Path:
    """Write the agent's checkpoint folder: model.safetensors with its weights, every other file of `base` copied."""
    agent = read_packed(packed)
    with aside(folder) as partial:
        copy_others(base, partial)
        weights = partial / SINGLE
        shutil.copyfile(base / SINGLE, weights)
        apply(agent, weights)
    return folder


def read_packed(path: Path) -> Packed:
    """Decompress and check a packed agent; ValueError if its length is not what its first line says."""
    with lzma.open(path, "rb") as file:
        header = json.loads(file.readline())
        payload = file.read()
    tensors = [(str(name), int(elements)) for name, elements in header["tensors"]]
    total, count = sum(elements for _, elements in tensors), int(header["escapes"])
    if len(payload) != total + 2 * count:
        raise ValueError(f"{path}: {len(payload)} bytes after the header, wanted {total} steps and {count} escapes")
    steps = np.frombuffer(payload, dtype=np.int8, count=total)
    if (found := int(np.count_nonzero(steps == ESCAPE))) != count:
        raise ValueError(f"{path}: {found} steps are {ESCAPE}, but the header announces {count} escapes")
    return Packed(tensors, steps, np.frombuffer(payload, dtype="<u2", offset=total))


def apply(agent: Packed, weights: Path) -> None:
    """Turn the base's weight file into the agent's, in place; ValueError if it is not the base the agent needs."""
    found = {place.tensor.name: place for place in places(weights)}
    start = used = 0
    for name, elements in agent.tensors:
        bits = _open(weights, found.get(name), name, elements)
        steps = agent.steps[start : start + elements].astype(np.int16)
        escaped = np.flatnonzero(steps == ESCAPE)
        move(bits, steps)
        bits[escaped] = agent.escapes[used : used + len(escaped)]
        bits.flush()
        start, used = start + elements, used + len(escaped)


def _open(weights: Path, place: Place | None, name: str, elements: int) -> "np.memmap[tuple[int], np.dtype[np.uint16]]":
    if place is None or place.tensor.dtype != "BF16" or place.tensor.elements != elements:
        raise ValueError(f"{weights}: wanted BF16 tensor {name} of {elements} elements, found {place and place.tensor}")
    return np.memmap(weights, dtype="<u2", mode="r+", offset=place.offset, shape=(elements,))
