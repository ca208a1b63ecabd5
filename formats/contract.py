"""What a format promises: the specification of sources, readers and sinks.

A **source** is an opened input model. Opening reads and checks headers only; it yields a table of
``TensorInfo`` and nothing else is in memory. ``source.reader(io)`` gives a **reader**, which returns
the raw bytes of any range of a tensor, from any thread. A **sink** is an output being written: its
layout (files, headers, offsets) was fixed before, and ranges may come in any order from any thread.

Bytes are turned into float32 and back by ``codecs.py``, whatever the format.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .dtypes import DTYPES

Bytes = NDArray[np.uint8]
IO = Literal["mmap", "pread"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a source: element type, shape (C order), and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar, 0 if any dimension is 0."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.elements * DTYPES[self.dtype].itemsize


class Reader(Protocol):
    """Reads ranges of tensors. Thread-safe."""

    def read(self, tensor: TensorInfo, start: int, stop: int, buffer: Bytes) -> Bytes:
        """Bytes ``start`` to ``stop`` of the tensor, aligned to its elements and perhaps read-only.

        They lie in ``buffer`` (at least ``stop - start`` bytes) or in a mapped window: either way they
        are valid until ``release`` of the same range or the next use of the buffer.
        Raises FormatError if the file became shorter, naming it.
        """
        ...

    def ahead(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """A hint that this range is wanted soon. Costs no memory of the process."""
        ...

    def release(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """The range is not used any more: a mapped window leaves the process's memory."""
        ...

    def check(self) -> None:
        """Whether every file is still what it was when its header was read. Raises FormatError, naming it."""
        ...

    def close(self) -> None:
        """Give back files and mappings."""
        ...


class Source(Protocol):
    """An opened input model."""

    @property
    def path(self) -> Path:
        """What the user named: a folder or a file."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the weights."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name, in the order in which the bytes lie on disk."""
        ...

    def reader(self, io: IO) -> Reader:
        """Open the files for reading by mapping or by positional reads."""
        ...


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor that will be written: name, element type, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file of an output, fixed before its first byte: what it starts with, where each tensor lies, its size."""

    name: str
    header: bytes
    offsets: Mapping[str, int]
    size: int


class Sink(Protocol):
    """An output being written. ``write`` is thread-safe."""

    def write(self, name: str, start: int, data: Bytes) -> None:
        """Put ``data`` at byte ``start`` of tensor ``name``. Raises OutputError."""
        ...

    def sync(self) -> None:
        """Make everything durable that was written before the call."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


def total_bytes(files: Iterable[OutputFile]) -> int:
    """Size of an output on disk."""
    return sum(file.size for file in files)
