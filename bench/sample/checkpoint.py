"""The little of the safetensors format that the samples need: headers, shards, and where each tensor lies.

A file is a uint64 little-endian header length, that many bytes of JSON, then the tensors without gaps.
https://huggingface.co/docs/safetensors/index#format
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

ITEM: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<u2"), "F32": np.dtype("<u4")}
"""The unsigned integer that holds one value's bits, by safetensors dtype."""

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Tensor:
    """A name, a safetensors dtype and a shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many values it has."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes of data it takes."""
        return self.elements * ITEM[self.dtype].itemsize


@dataclass(frozen=True)
class Place:
    """A tensor and where its bytes begin: `offset` counts from the start of the file `path`."""

    tensor: Tensor
    path: Path
    offset: int


def create(folder: Path, tensors: Sequence[Tensor], max_shard_bytes: int | None = None) -> list[Place]:
    """Create the weight files with headers and full length, all data still holes; sharded ones with their index.

    Shards are filled in the given order, each at most `max_shard_bytes` of data unless one tensor alone is larger.
    """
    shards = _split(tensors, max_shard_bytes)
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        _write_index(folder, dict(zip(names, shards, strict=True)))
    return [place for name, shard in zip(names, shards, strict=True) for place in _create_file(folder / name, shard)]


def files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder, through its index where there is one."""
    index = folder / INDEX
    if not index.exists():
        return [folder / SINGLE]
    weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    return [folder / name for name in sorted(set(weight_map.values()))]


def places(path: Path) -> list[Place]:
    """Every tensor of one weight file, in file order; ValueError for a dtype that the samples do not use."""
    start = data_start(path)
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(start)[8:])
    header.pop("__metadata__", None)
    found = []
    for name, entry in header.items():
        if entry["dtype"] not in ITEM:
            raise ValueError(f"{path}: tensor {name} is {entry['dtype']}, wanted one of {', '.join(ITEM)}")
        found.append(Place(Tensor(name, entry["dtype"], tuple(entry["shape"])), path, start + entry["data_offsets"][0]))
    return sorted(found, key=lambda place: place.offset)


def data_start(path: Path) -> int:
    """The file offset of the first tensor byte."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _split(tensors: Sequence[Tensor], max_shard_bytes: int | None) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    room = max_shard_bytes
    for tensor in tensors:
        if room is not None and max_shard_bytes is not None:
            if shards[-1] and tensor.nbytes > room:
                shards.append([])
                room = max_shard_bytes
            room -= tensor.nbytes
        shards[-1].append(tensor)
    return shards


def _create_file(path: Path, tensors: Sequence[Tensor]) -> list[Place]:
    # transformers orders a file's tensors by name, whatever order the shards were filled in.
    tensors = sorted(tensors, key=lambda tensor: tensor.name)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ends = np.cumsum([tensor.nbytes for tensor in tensors], dtype=np.int64).tolist()
    begins = [0, *ends[:-1]]
    for tensor, begin, end in zip(tensors, begins, ends, strict=True):
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the data 8-byte aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
    start = 8 + len(text)
    os.truncate(path, start + ends[-1])
    return [Place(tensor, path, start + begin) for tensor, begin in zip(tensors, begins, strict=True)]


def _write_index(folder: Path, shards: dict[str, list[Tensor]]) -> None:
    weight_map = {tensor.name: name for name, shard in shards.items() for tensor in shard}
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
