"""GGUF: one file or a split one; reading the header, laying out and writing.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), all little-endian: ``GGUF``, u32 version,
u64 number of tensors, u64 number of key-values; each key-value: key, u32 type, value; each tensor: name, u32 number of
dimensions, u64 each (the fastest first: C order reversed), u32 type, u64 offset; zeros up to the alignment; the data,
every tensor padded with zeros to the alignment. Offsets count from the start of the data. A string is its length in
bytes (u64) and UTF-8.
"""

import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from gguf.constants import GGML_QUANT_SIZES

from .contract import IO, OutputFile, OutputTensor, Reader, TensorInfo
from .errors import FormatError, OutputError, why
from .inputs import is_name, kind_of, open_input, repeated
from .reading import open_reader, stamps
from .writing import FilesSink

SINGLE = "model.gguf"
ALIGNMENT = 32  # what llama.cpp writes, whatever general.alignment says
MAX_NAME = 63  # bytes of a tensor's name (GGML_MAX_NAME less the end mark)
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
# Far above any vocabulary; keep a lying count from being believed. A header that uses all of it takes 0.3 GB.
MAX_HEADER = 64 << 20  # bytes
MAX_TENSORS = 150_000
MAX_PAIRS = 65_536  # key-values
MAX_KEY = 65_535  # bytes of a key: GGUF's own limit
MAX_ARRAY = 2_000_000  # elements of one value
MAX_STEPS = 4_000_000  # numbers and texts, one by one
_MAGIC, _VERSION = b"GGUF", 3
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


# --- element types ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GgmlType:
    """An element type of ggml: its name and number, and how many bytes hold a block of how many elements."""

    name: str
    number: int
    block: int
    block_bytes: int


GGML_TYPES: Mapping[str, GgmlType] = MappingProxyType(
    {kind.name: GgmlType(kind.name, int(kind), *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
)
_BY_NUMBER = {kind.number: kind for kind in GGML_TYPES.values()}


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of one row of ``columns`` elements. Raises FormatError if they are not whole blocks."""
    ggml = GGML_TYPES[kind]
    if columns % ggml.block:
        raise FormatError(f"a row of {columns} elements is not whole {kind} blocks of {ggml.block}")
    return columns // ggml.block * ggml.block_bytes


def tensor_bytes(kind: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of this type and shape (C order), without padding."""
    return prod(shape[:-1]) * row_bytes(kind, shape[-1] if shape else 1)


@dataclass(frozen=True, slots=True)
class GgufTensor(TensorInfo):
    """A tensor of a GGUF file. ``dtype`` is ggml's name of the type, for the plain types the same as safetensors'."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return tensor_bytes(self.dtype, self.shape)


# --- key-values ------------------------------------------------------------------------------------------------------

# Short names of the value types in the order of their numbers; arr (9) is written as "[u32]", "[str]" and so on.
KINDS = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64")
_CODES = {
    kind: code for kind, code in zip(KINDS, "BbHhIif?__Qqd") if code != "_"
}  # struct's letters; strings and arrays have none
_ARRAY = KINDS.index("arr")
Value = int | float | bool | str | Sequence[int] | Sequence[float] | Sequence[bool] | Sequence[str]


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One entry of the metadata. ``kind`` is "u32", "str", "[str]" ...; ``raw`` is the value as it stands in a file."""

    key: str
    kind: str
    raw: bytes

    @property
    def value(self) -> Value:
        """The value as Python sees it; an array is a list. Bytes that are not UTF-8 become surrogates."""
        if not self.kind.startswith("["):
            return _unpack_string(self.raw, 0)[0] if self.kind == "str" else _unpack(self.kind, self.raw, 0, 1)[0]
        count = int.from_bytes(self.raw[4:12], "little")
        if self.kind != "[str]":
            return _unpack(self.kind[1:-1], self.raw, 12, count)
        texts, position = [], 12
        for _ in range(count):
            text, position = _unpack_string(self.raw, position)
            texts.append(text)
        return texts


def key_value(key: str, kind: str, value: Value) -> KeyValue:
    """Encode a metadata entry. Raises OutputError if the value does not fit its kind."""
    try:
        return KeyValue(key, kind, _pack_value(kind, value))
    except (struct.error, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise OutputError(f"metadata {key!r:.80}: {value!r:.80} is no value of kind {kind}: {error}") from error


def _pack_value(kind: str, value: Value) -> bytes:
    if not kind.startswith("["):
        return _pack(kind, [value])
    assert isinstance(value, Sequence)
    inner = kind[1:-1]
    return struct.pack("<IQ", KINDS.index(inner), len(value)) + _pack(inner, value)


def _pack(kind: str, values: Sequence[object]) -> bytes:
    if kind == "str":
        return b"".join(map(_pack_string, values))
    return struct.pack(f"<{len(values)}{_CODES[kind]}", *values)


def _pack_string(text: object) -> bytes:
    raw: bytes = text.encode("utf-8", "surrogateescape")  # type: ignore[attr-defined]  # key_value reports anything else
    return len(raw).to_bytes(8, "little") + raw


def _unpack(kind: str, raw: bytes, position: int, count: int) -> list[int] | list[float] | list[bool]:
    return list(struct.unpack_from(f"<{count}{_CODES[kind]}", raw, position))


def _unpack_string(raw: bytes, position: int) -> tuple[str, int]:
    end = position + 8 + int.from_bytes(raw[position : position + 8], "little")
    return raw[position + 8 : end].decode("utf-8", "surrogateescape"), end


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says before its data."""

    key_values: Mapping[str, KeyValue]
    tensors: tuple[GgufTensor, ...]


class GgufSource:
    """An opened GGUF model, split or not: the key-values of its first file and every tensor. Raises FormatError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = _split_files(path)
        self._stamps = stamps(self.files)
        headers = [read_header(file) for file in self.files]
        self.key_values = headers[0].key_values
        tensors: dict[str, TensorInfo] = {}
        for number, (file, header) in enumerate(zip(self.files, headers)):
            _check_split(file, header, number, len(self.files))
            for info in header.tensors:
                if info.name in tensors:
                    first = tensors[info.name].file
                    raise FormatError(f"{path}: tensor {info.name!r} is in both {first.name} and {file.name}")
                tensors[info.name] = info
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)

    def reader(self, io: IO) -> Reader:
        """See ``Source``. Blocks of quantized types are read by position: a mapping hands out aligned elements."""
        blocked = any(GGML_TYPES[info.dtype].block > 1 for info in self.tensors.values())
        return open_reader(self._stamps, "pread" if blocked else io)


def _split_files(path: Path) -> tuple[Path, ...]:
    kind = kind_of(path)
    if kind != "file":
        raise FormatError(f"{path}: {'no such file' if kind == 'nothing' else 'is not a file'}")
    found = _SPLIT_NAME.fullmatch(path.name)
    if found is None:
        return (path,)
    stem, number, count = found[1], int(found[2]), int(found[3])
    if number != 1:
        raise FormatError(f"{path}: is file {number} of a split model; give the first, {stem}-00001-of-{found[3]}.gguf")
    return tuple(path.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1))


def _check_split(file: Path, header: Header, number: int, count: int) -> None:
    """A file must know its place: ``split.no`` counts from 0; one that is not split does not mention it."""
    said = tuple(header.key_values[key].value if key in header.key_values else None for key in _SPLIT_KEYS[:2])
    wanted = (number, count)
    if said != wanted and not (count == 1 and said == (None, None)):
        raise FormatError(
            f"{file}: says that it is split {said[0]} of {said[1]}, wanted {number} of {count}; "
            "keep the names that the files were made with"
        )


def read_header(path: Path) -> Header:
    """Key-values and tensors of one file. Raises FormatError on the first thing that is wrong."""
    with open_input(path) as file:
        try:
            return _parse(_Cursor(path, file, os.fstat(file.fileno()).st_size))
        except OSError as error:
            raise FormatError(f"{path}: cannot be read: {why(error)}") from error


class _Cursor:
    """A position in a header; every step is checked against the end of the file before it is made."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.size, self.position, self._steps = path, size, 0, 0
        self._file = file

    def wrong(self, what: str) -> FormatError:
        """An error about this file."""
        return FormatError(f"{self.path}: {what}")

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        self.position += count
        self._steps += 1
        if self.position > self.size:
            raise self.wrong(f"the header leads to byte {self.position}, but the file ends at {self.size}; truncated?")
        if self.position > MAX_HEADER or self._steps > MAX_STEPS:
            raise self.wrong(f"the header is longer than the {MAX_HEADER} bytes, or {MAX_STEPS} values, that are read")
        return self._file.read(count)

    def number(self, size: int) -> int:
        """An unsigned number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        """A key or a name."""
        length = self.number(8)
        if length > MAX_KEY:
            raise self.wrong(f"a key or name at byte {self.position} has {length} bytes, at most {MAX_KEY} are read")
        return self.take(length).decode("utf-8", "surrogateescape")

    def since(self, start: int) -> bytes:
        """The bytes from ``start`` to here."""
        self._file.seek(start)
        return self._file.read(self.position - start)


def _parse(cursor: _Cursor) -> Header:
    count, pairs = _counts(cursor)
    key_values: dict[str, KeyValue] = {}
    for _ in range(pairs):
        pair = _read_key_value(cursor)
        if pair.key in key_values:
            raise cursor.wrong(f"key {pair.key!r:.80} stands twice")
        key_values[pair.key] = pair
    alignment = _alignment(cursor, key_values)
    entries = [_read_tensor(cursor) for _ in range(count)]
    data_start = _pad(cursor.position, alignment)
    return Header(MappingProxyType(key_values), tuple(_placed(cursor, entries, data_start, alignment)))


def _counts(cursor: _Cursor) -> tuple[int, int]:
    magic = cursor.take(min(4, cursor.size))
    if magic != _MAGIC:
        what = "is a Git LFS pointer; fetch the weights: git lfs pull" if magic == b"vers" else "is not a GGUF file"
        raise cursor.wrong(what)
    version = cursor.number(4)
    if version not in (2, 3):
        big = version.to_bytes(4, "little")[3] in (2, 3)
        raise cursor.wrong(
            "is big-endian, which is not read" if big else f"GGUF version {version} is not read; 2, 3 are"
        )
    count, pairs = cursor.number(8), cursor.number(8)
    if count > MAX_TENSORS or pairs > MAX_PAIRS:
        raise cursor.wrong(
            f"says it has {count} tensors and {pairs} key-values; at most {MAX_TENSORS}, {MAX_PAIRS} are read"
        )
    return count, pairs


def _read_key_value(cursor: _Cursor) -> KeyValue:
    key, number = cursor.text(), cursor.number(4)
    start = cursor.position
    if number != _ARRAY:
        kind = _kind(cursor, key, number)
        _skip(cursor, kind, 1)
        return KeyValue(key, kind, cursor.since(start))
    kind, count = _kind(cursor, key, cursor.number(4)), cursor.number(8)
    if count > MAX_ARRAY:
        raise cursor.wrong(f"key {key!r:.80} has {count} values; at most {MAX_ARRAY} are read")
    _skip(cursor, kind, count)
    return KeyValue(key, f"[{kind}]", cursor.since(start))


def _kind(cursor: _Cursor, key: str, number: int) -> str:
    if number >= len(KINDS) or number == _ARRAY:
        raise cursor.wrong(f"key {key!r:.80} has a value of type {number}, which is not known")
    return KINDS[number]


def _skip(cursor: _Cursor, kind: str, count: int) -> None:
    if kind != "str":
        cursor.take(count * struct.calcsize("<" + _CODES[kind]))
        return
    for _ in range(count):
        cursor.take(cursor.number(8))


def _alignment(cursor: _Cursor, key_values: Mapping[str, KeyValue]) -> int:
    pair = key_values.get("general.alignment")
    if pair is None:
        return ALIGNMENT
    alignment = pair.value
    if pair.kind != "u32" or not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.wrong(f"general.alignment is {alignment!r}, wanted a power of two")
    return alignment


def _read_tensor(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int]:
    """Name, type, shape in C order, offset in the data."""
    name, dimensions = cursor.text(), cursor.number(4)
    if not is_name(name) or len(name.encode()) > MAX_NAME:
        raise cursor.wrong(f"tensor name {name!r:.100} is empty or longer than {MAX_NAME} bytes, or not printable")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.wrong(f"tensor {name!r:.80} has {dimensions} dimensions, wanted 1 to {MAX_DIMENSIONS}")
    shape = tuple(cursor.number(8) for _ in range(dimensions))[::-1]
    number, offset = cursor.number(4), cursor.number(8)
    if number not in _BY_NUMBER:
        raise cursor.wrong(
            f"tensor {name!r:.80} is of type {number}, which is not known; a newer gguf package may know it"
        )
    kind = _BY_NUMBER[number]
    if shape[-1] % kind.block:
        raise cursor.wrong(f"tensor {name!r:.80}: rows of {shape[-1]} elements are not whole {kind.name} blocks")
    return name, kind.name, shape, offset


def _placed(
    cursor: _Cursor, entries: Iterable[tuple[str, str, tuple[int, ...], int]], data_start: int, alignment: int
) -> Iterator[GgufTensor]:
    """The tensors must lie one after the other, each padded, and end with the file (whose last padding may miss)."""
    seen: set[str] = set()
    position = end = data_start
    for name, kind, shape, offset in entries:
        if name in seen:
            raise cursor.wrong(f"tensor {name!r:.80} stands twice")
        seen.add(name)
        if data_start + offset != position:
            raise cursor.wrong(f"tensor {name!r:.80} is at byte {offset} of the data, wanted {position - data_start}")
        info = GgufTensor(name, kind, shape, cursor.path, position)
        end = position + info.nbytes
        position = _pad(end, alignment)
        yield info
    if seen and not end <= cursor.size <= position:
        problem = "is truncated" if cursor.size < end else "has bytes after its last tensor"
        raise cursor.wrong(f"{problem}: {cursor.size} bytes found, {position} wanted by its header")


# --- writing ---------------------------------------------------------------------------------------------------------

_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


def layout(
    tensors: Sequence[OutputTensor],
    key_values: Sequence[KeyValue],
    max_shard_bytes: int | None = None,
    single_name: str = SINGLE,
) -> tuple[OutputFile, ...]:
    """Files, headers and offsets of an output, before its first byte; tensors in the order given.

    ``dtype`` of a tensor is ggml's name of its type. A shard is closed before the tensor that would overflow it;
    the first holds every key-value, the others only their place. Dimensions are written as they are given; ggml, and so
    llama-quantize, drops leading ones.
    """
    _check(tensors, key_values)
    shards: list[list[OutputTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        size = _pad(tensor_bytes(tensor.dtype, tensor.shape), ALIGNMENT)
        if shards[-1] and max_shard_bytes is not None and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    if len(shards) == 1:
        return (_lay_out_file(single_name, tensors, key_values),)
    stem, count = single_name.removesuffix(".gguf"), len(shards)
    places = [_place(number, count, len(tensors)) for number in range(count)]
    return tuple(
        _lay_out_file(f"{stem}-{n + 1:05d}-of-{count:05d}.gguf", shard, [*(() if n else key_values), *places[n]])
        for n, shard in enumerate(shards)
    )


def _place(number: int, count: int, tensors: int) -> list[KeyValue]:
    values = zip(_SPLIT_KEYS, ("u16", "u16", "i32"), (number, count, tensors))
    return [key_value(key, kind, value) for key, kind, value in values]


def _check(tensors: Sequence[OutputTensor], key_values: Sequence[KeyValue]) -> None:
    """What llama.cpp would not load is not written."""
    for what, names in (("tensor", (t.name for t in tensors)), ("key", (pair.key for pair in key_values))):
        twice = repeated(names)
        if twice is not None:
            raise OutputError(f"{what} {twice!r} would stand twice in the GGUF file")
    for tensor in tensors:
        if len(tensor.name.encode()) > MAX_NAME:
            raise OutputError(f"tensor {tensor.name!r}: a name in a GGUF file has at most {MAX_NAME} bytes")
        if len(tensor.shape) > MAX_DIMENSIONS:
            raise OutputError(f"tensor {tensor.name!r}: shape {list(tensor.shape)} has more than {MAX_DIMENSIONS} axes")
        if tensor.dtype not in GGML_TYPES:
            raise OutputError(f"tensor {tensor.name!r}: {tensor.dtype} is no type of a GGUF file")
        block = GGML_TYPES[tensor.dtype].block
        if tensor.shape and tensor.shape[-1] % block:
            raise OutputError(
                f"tensor {tensor.name!r}: rows of {tensor.shape[-1]} are not whole {tensor.dtype} blocks of {block}; "
                "choose another type for it"
            )


def without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape as ggml keeps it in memory, with at least one dimension."""
    first = next((i for i, size in enumerate(shape) if size != 1), len(shape) - 1)
    return shape[max(first, 0) :]


def _lay_out_file(name: str, tensors: Sequence[OutputTensor], key_values: Sequence[KeyValue]) -> OutputFile:
    parts = [_MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(key_values))]
    parts += [_pack_string(pair.key) + _pack_kind(pair.kind) + pair.raw for pair in key_values]
    starts: dict[str, int] = {}
    position = 0
    for tensor in tensors:
        sizes = [*reversed(tensor.shape)] or [1]  # the fastest first
        number = GGML_TYPES[tensor.dtype].number
        parts.append(_pack_string(tensor.name))
        parts.append(struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, number, position))
        starts[tensor.name] = position
        position += _pad(tensor_bytes(tensor.dtype, tensor.shape), ALIGNMENT)
    head = b"".join(parts)
    head += bytes(-len(head) % ALIGNMENT)
    return OutputFile(name, head, {n: len(head) + start for n, start in starts.items()}, len(head) + position)


def _pack_kind(kind: str) -> bytes:
    """The number of a value's type; that of an array's elements is part of the value."""
    return struct.pack("<I", _ARRAY if kind.startswith("[") else KINDS.index(kind))


def _pad(position: int, alignment: int) -> int:
    return position + -position % alignment


class GgufSink(FilesSink):
    """Writes the files of a ``layout`` into a folder; what lies between tensors stays zero."""
