"""Importance matrices as llama-imatrix writes them: for each tensor, how much each column matters.

Two formats: GGUF (per weight ``NAME.in_sum2``, sums of squared activations, and ``NAME.counts``), and the older .dat
(little-endian: i32 entries; each i32 length, name, i32 calls, i32 values, float32 values; then perhaps i32 chunks,
i32 length, data set). The values enter the kernels as they are, without any scaling, as in llama-quantize.
"""

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from streammerge.budget import format_size
from streammerge.errors import BudgetError, FormatError, MismatchError
from streammerge.formats.contract import OutputTensor
from streammerge.formats.gguf import MAX_TENSORS, GgufSource, KeyValue, key_value
from streammerge.formats.inputs import open_input

_SUMS, _COUNTS = ".in_sum2", ".counts"
_TEXT_LIMIT = 127  # bytes of a text that llama-quantize keeps


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix. ``weights``: by tensor, float32[matrices x columns]; one matrix, or one for each expert."""

    path: Path
    weights: Mapping[str, NDArray[np.float32]]
    dataset: str = ""
    chunks: int = 0

    @property
    def nbytes(self) -> int:
        """Memory that the weights take."""
        return sum(values.nbytes for values in self.weights.values())

    def of(self, tensor: OutputTensor) -> NDArray[np.float32] | None:
        """The weights of one tensor, float32[matrices, columns]; None without an entry. Raises MismatchError."""
        values = self.weights.get(tensor.name)
        if values is None:
            return None
        columns, matrices = tensor.shape[-1], prod(tensor.shape[:-2])
        if values.size != columns * matrices:
            if tensor.name == "token_embd.weight":  # made of a model with another vocabulary
                return None
            raise MismatchError(
                f"{self.path}: {values.size} values for tensor {tensor.name!r}, wanted {matrices} x {columns}; "
                "the importance matrix belongs to another model"
            )
        return values.reshape(matrices, columns)

    def check(self, tensors: Iterable[OutputTensor]) -> None:
        """Raise MismatchError if it does not fit the tensors, or names none of them."""
        listed = list(tensors)
        if not any(tensor.name in self.weights for tensor in listed):
            raise MismatchError(f"{self.path}: names no tensor of this model; it belongs to another one")
        for tensor in listed:
            self.of(tensor)

    def key_values(self) -> list[KeyValue]:
        """What llama-quantize says about it in the file."""
        pairs = [key_value("quantize.imatrix.file", "str", _cut(str(self.path)))]
        if self.dataset:
            pairs.append(key_value("quantize.imatrix.dataset", "str", _cut(self.dataset)))
        pairs.append(key_value("quantize.imatrix.entries_count", "u32", len(self.weights)))
        if self.chunks > 0:
            pairs.append(key_value("quantize.imatrix.chunks_count", "u32", self.chunks))
        return pairs


def _cut(text: str) -> str:
    return text.encode("utf-8", "surrogateescape")[:_TEXT_LIMIT].decode("utf-8", "surrogateescape")


def read_imatrix(path: Path, allowed: int) -> Imatrix:
    """Read an importance matrix of either format: all of it, so it must be smaller than ``allowed`` memory (bytes).

    Raises FormatError, BudgetError.
    """
    with open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size >= allowed:
            raise BudgetError(
                f"{path}: is {format_size(size)} long and is kept in memory, of which {format_size(allowed)} are "
                "allowed; give a larger --max-ram"
            )
        try:
            found = _read_gguf(path) if file.read(4) == b"GGUF" else _read_dat(path, file, size)
        except OSError as error:
            raise FormatError(f"{path}: cannot be read: {error.strerror}") from error
    if not found.weights:
        raise FormatError(f"{path}: holds no entries; is it an importance matrix?")
    for name, values in found.weights.items():
        if not np.isfinite(values).all() or (values < 0).any():
            raise FormatError(
                f"{path}: the values of {name!r:.80} are not all finite and positive; make the importance matrix again"
            )
    return found


# --- GGUF ------------------------------------------------------------------------------------------------------------


def _read_gguf(path: Path) -> Imatrix:
    source = GgufSource(path)
    keys = ("general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
    said = {key: source.key_values[key].value for key in keys if key in source.key_values}
    datasets, chunks = said.get("imatrix.datasets"), said.get("imatrix.chunk_count")
    whole = said.get("general.type") == "imatrix" and "imatrix.chunk_size" in said
    if not whole or not isinstance(datasets, list) or not isinstance(chunks, int):
        raise FormatError(f"{path}: is a GGUF file, but no importance matrix; make one with llama-imatrix")
    names = [name.removesuffix(_SUMS) for name in source.tensors if name.endswith(_SUMS)]
    weights = {name: _averages(source, path, name) for name in names}
    return Imatrix(path, weights, str(datasets[0]) if datasets else "", chunks)


def _averages(source: GgufSource, path: Path, name: str) -> NDArray[np.float32]:
    """Sums divided by counts, one count for each matrix; a matrix that was never used weighs 1 throughout."""
    sums, counts = (_floats(source, path, name + ending) for ending in (_SUMS, _COUNTS))
    if sums.size % counts.size:
        raise FormatError(f"{path}: {name!r:.80} has {sums.size} sums, which are not {counts.size} matrices")
    if not np.isfinite(counts).all() or (counts < 0).any() or (counts > 1e15).any():
        raise FormatError(
            f"{path}: the counts of {name!r:.80} are not numbers of calls; make the importance matrix again"
        )
    rows, calls = sums.reshape(counts.size, -1), _round(counts)[:, None]
    with np.errstate(all="ignore"):  # what is not finite is refused at the end
        divided = np.divide(rows, calls.astype(np.float32), out=np.ones_like(rows), where=calls > 0)
    return divided.ravel()


def _round(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """To whole numbers, halves away from zero."""
    return (np.sign(values) * np.floor(np.abs(values).astype(np.float64) + 0.5)).astype(np.int64)


def _floats(source: GgufSource, path: Path, name: str) -> NDArray[np.float32]:
    info = source.tensors.get(name)
    if info is None or info.dtype != "F32" or info.elements == 0:
        raise FormatError(f"{path}: {name!r} is {'missing' if info is None else 'no F32 tensor'}, as no imatrix has it")
    reader = source.reader("pread")
    try:
        raw = reader.read(info, 0, info.nbytes, np.empty(info.nbytes, np.uint8))
    finally:
        reader.close()
    return raw.view("<f4").astype(np.float32, copy=False)


# --- the older format ------------------------------------------------------------------------------------------------


def _read_dat(path: Path, file: BinaryIO, size: int) -> Imatrix:
    file.seek(0)

    def take(count: int) -> bytes:
        if not 0 <= count <= size - file.tell():
            raise FormatError(f"{path}: is no importance matrix, or truncated: {count} bytes wanted at {file.tell()}")
        return file.read(count)

    def number() -> int:
        found: int = struct.unpack("<i", take(4))[0]
        return found

    weights: dict[str, NDArray[np.float32]] = {}
    entries = number()
    if entries > MAX_TENSORS:
        raise FormatError(f"{path}: is no importance matrix: {entries} entries, at most {MAX_TENSORS} are read")
    for _ in range(entries):
        name = take(number()).decode("utf-8", "surrogateescape")
        calls, count = number(), number()
        values = np.frombuffer(take(4 * count), "<f4")
        with np.errstate(all="ignore"):  # what is not finite is refused at the end
            weights[name] = (values / np.float32(calls) if calls > 0 else values).astype(np.float32, copy=False)
    if file.tell() == size:
        return Imatrix(path, weights)
    chunks = number()
    return Imatrix(path, weights, take(number()).decode("utf-8", "surrogateescape"), chunks)
