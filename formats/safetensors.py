"""safetensors: one file, a folder with an index, or a bare folder of shards; reading headers and writing.

The format: 8 bytes little-endian header length, a JSON object ``{name: {dtype, shape, data_offsets}}`` with an
optional ``__metadata__`` of strings, then the data; offsets count from the end of the header and tile it exactly
(https://github.com/huggingface/safetensors). Several files are tied together by ``model.safetensors.index.json``.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TypeGuard

from .atomic import write_file
from .contract import IO, OutputFile, OutputTensor, Reader, TensorInfo, total_bytes
from .dtypes import DTYPES
from .errors import FormatError, why
from .inputs import MAX_JSON, is_name, kind_of, open_input, parse_json, read_json
from .reading import open_reader, stamps
from .writing import FilesSink

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = MAX_JSON
MAX_TENSORS = 150_000  # of a model; the largest known have 91,000. Each takes some 400 bytes
MAX_AXES, MAX_SIZE = 64, 2**63


class SafetensorsSource:
    """An opened checkpoint. Raises FormatError on whatever is not a whole, consistent one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        weight_map = _read_index(path)
        self.files = _weight_files(path) if weight_map is None else _indexed_files(path, weight_map)
        self._stamps = stamps(self.files)
        tensors: dict[str, TensorInfo] = {}
        for file in self.files:
            for info in _some_tensors(file):
                if info.name in tensors:
                    first = tensors[info.name].file
                    raise FormatError(f"{path}: tensor {info.name!r} is in both {first.name} and {file.name}")
                tensors[info.name] = info
            if len(tensors) > MAX_TENSORS:
                raise FormatError(f"{path}: holds more than {MAX_TENSORS} tensors, which are not read")
        if weight_map is not None:
            _check_index(path, weight_map, tensors)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)

    def reader(self, io: IO) -> Reader:
        """See ``Source``."""
        return open_reader(self._stamps, io)


def _some_tensors(file: Path) -> list[TensorInfo]:
    """Many files without a tensor would take long for nothing: each could be a link to one with a large header."""
    infos = read_header(file)
    if not infos:
        raise FormatError(f"{file}: holds no tensors")
    return infos


# --- which files -------------------------------------------------------------------------------------------------


def _weight_files(path: Path) -> tuple[Path, ...]:
    kind = kind_of(path)
    if kind == "file":
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
            raise _pickle_refused(path)
        return (path,)
    if kind != "folder":
        raise FormatError(f"{path}: {_not_found(path) if kind == 'nothing' else 'is not a file or folder'}")
    if kind_of(path / SINGLE) != "nothing":
        return (path / SINGLE,)
    if kind_of(path / "adapter_config.json") != "nothing":
        raise FormatError(f"{path}: this is a LoRA adapter, not a model; merge it into its base first")
    shards = tuple(sorted(path.glob("*.safetensors")))
    if not shards:
        pickles = sorted([*path.glob("*.bin"), *path.glob("*.pth"), *path.glob("*.pt")])
        if pickles:
            raise _pickle_refused(pickles[0])
        raise FormatError(f"{path}: no .safetensors file in this folder{_elsewhere(path)}")
    return shards


def _elsewhere(path: Path) -> str:
    """Where the weights may be that are not in a folder."""
    if (path / "snapshots").is_dir():
        return "; of the Hub's cache give a folder in its snapshots"
    if any(path.glob("*.gguf")):
        return "; GGUF files are not read yet, give the checkpoint that they were made from"
    return "; give the folder with the weights" if any(path.glob("*/*.safetensors")) else ""


def _not_found(path: Path) -> str:
    if not path.is_absolute() and len(path.parts) == 2:
        return f"no such folder; if it is a model on the Hub, download it first: hf download {path} --local-dir {path}"
    return "no such file or folder"


def _pickle_refused(path: Path) -> FormatError:
    folder = path.parent
    return FormatError(
        f"{path}: is a pickle, which can run code when opened, and is never opened here; convert it once: "
        f'python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}-safetensors')\""
    )


# --- the index: it names files of its own folder, and the tensors that their headers list ----------------------------


def _folder_of(path: Path) -> Path:
    """An index may be named instead of its folder."""
    return path.parent if path.name == INDEX else path


def _read_index(path: Path) -> dict[str, str] | None:
    """File names by tensor name; None where there is no index. Links are followed: the Hub's cache is made of them,
    and what is read must be safetensors. A name that leads out of the folder is refused."""
    place = _folder_of(path) / INDEX
    if kind_of(place) == "nothing":
        return None
    weight_map = read_json(place).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise FormatError(f"{place}: 'weight_map' must be an object of file names by tensor name")
    for file in set(weight_map.values()):
        inside = PurePosixPath(file)
        if inside.is_absolute() or ".." in inside.parts or "\\" in file or not is_name(file):
            raise FormatError(f"{place}: file name {file!r:.200} leads out of the folder, or is none")
    return weight_map


def _indexed_files(path: Path, weight_map: Mapping[str, str]) -> tuple[Path, ...]:
    return tuple(_folder_of(path) / name for name in sorted(set(weight_map.values())))


def _check_index(path: Path, weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    """The index and the headers must name the same tensors in the same files."""
    folder = _folder_of(path)
    for name, file in weight_map.items():
        wanted = f"{folder / INDEX}: tensor {name!r:.200} should be in {file}"
        if name not in tensors:
            raise FormatError(f"{wanted}, but its header does not list it")
        if tensors[name].file != folder / file:
            raise FormatError(f"{wanted}, found in {tensors[name].file}")
    for name, info in tensors.items():
        if name not in weight_map:
            raise FormatError(f"{info.file}: tensor {name!r} is not listed in {INDEX}")


# --- one header: a ladder of checks, nothing is trusted before its rung ----------------------------------------------


def read_header(path: Path) -> list[TensorInfo]:
    """The tensors of one file in the order of their bytes. Raises FormatError on the first thing that is wrong."""
    with open_input(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            length = _header_length(path, file.read(8), size)
            raw = file.read(length)
        except OSError as error:
            raise FormatError(f"{path}: cannot be read: {why(error)}") from error
    entries = parse_json(path, raw)
    entries.pop("__metadata__", None)
    data_start = 8 + length
    infos = [_entry(path, name, entry, data_start) for name, entry in entries.items()]
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    _check_tiling(path, infos, data_start, size)
    return infos


def _header_length(path: Path, start: bytes, size: int) -> int:
    if start.startswith(b"version "):
        raise FormatError(f"{path}: is a Git LFS pointer, not the weights; fetch them: git lfs pull")
    if len(start) < 8:
        raise FormatError(f"{path}: is {size} bytes long, too short for a safetensors header")
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER:
        raise FormatError(f"{path}: header length {length} exceeds {MAX_HEADER}; is this a safetensors file?")
    if 8 + length > size:
        raise FormatError(f"{path}: header of {length} bytes does not fit a file of {size} bytes; is it truncated?")
    return length


def _entry(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    def wrong(what: str) -> FormatError:
        return FormatError(f"{path}: tensor {name!r:.200}: {what}")

    if not is_name(name):
        raise wrong("is not a usable name: empty, too long, or not printable")
    if not isinstance(entry, dict):
        raise wrong("its entry is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise wrong(f"dtype {dtype!r:.80} is not known; known are {', '.join(DTYPES)}")
    if not _naturals(shape) or len(shape) > MAX_AXES:
        raise wrong(f"shape {shape!r:.80} is not a list of sizes")
    if not _naturals(offsets) or len(offsets) != 2:
        raise wrong(f"data_offsets {offsets!r:.80} are not two positions")
    kind = DTYPES[dtype]
    if prod(max(size, 1) for size in shape) * kind.itemsize >= MAX_SIZE:
        raise wrong(f"shape {shape!r:.80} is more than any file can hold")
    found, wanted = offsets[1] - offsets[0], prod(shape) * kind.itemsize
    if found != wanted:
        raise wrong(f"has {found} bytes, but {dtype} {shape} needs {wanted}")
    return TensorInfo(name, kind.name, tuple(shape), path, data_start + offsets[0])


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < MAX_SIZE for number in value)


def _check_tiling(path: Path, infos: Iterable[TensorInfo], data_start: int, size: int) -> None:
    """The tensors must cover the data without a hole, an overlap or a rest."""
    position = data_start
    for info in infos:
        if info.offset != position:
            what = "overlaps the one before it" if info.offset < position else "leaves a hole before it"
            raise FormatError(f"{path}: tensor {info.name!r} at byte {info.offset} {what} (wanted {position})")
        position += info.nbytes
    if position != size:
        problem = "is truncated" if size < position else "has bytes after its last tensor"
        raise FormatError(f"{path}: {problem}: {size} bytes found, {position} wanted by its header")


# --- writing -----------------------------------------------------------------------------------------------------


def layout(
    tensors: Sequence[OutputTensor], max_shard_bytes: int | None, single_name: str = SINGLE
) -> tuple[OutputFile, ...]:
    """Files, headers and offsets of an output, before its first byte.

    A shard is closed before the tensor that would overflow it; a larger tensor has a shard of its own.
    Inside a file wider types come first, so that every tensor is aligned; otherwise the order given is kept.
    """
    shards: list[list[OutputTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and max_shard_bytes is not None and filled + tensor.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    if len(shards) == 1:
        return (_lay_out_file(single_name, shards[0]),)
    stem = single_name.removesuffix(".safetensors")
    return tuple(
        _lay_out_file(f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors", shard)
        for number, shard in enumerate(shards, 1)
    )


def _lay_out_file(name: str, tensors: Sequence[OutputTensor]) -> OutputFile:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    starts: dict[str, int] = {}
    position = 0
    for tensor in sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].itemsize):
        end = position + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        starts[tensor.name] = position
        position = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    head = len(raw).to_bytes(8, "little") + raw
    return OutputFile(name, head, {n: len(head) + start for n, start in starts.items()}, len(head) + position)


def index_json(files: Sequence[OutputFile]) -> bytes:
    """The content of ``model.safetensors.index.json`` for several files."""
    weight_map = {name: file.name for file in files for name in file.offsets}
    total = total_bytes(files) - sum(len(file.header) for file in files)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2)
    return text.encode() + b"\n"


class SafetensorsSink(FilesSink):
    """Writes the files of a ``layout`` into a folder, and the index that ties several together."""

    def __init__(self, folder: Path, files: Sequence[OutputFile], *, existing: bool = False) -> None:
        super().__init__(folder, files, existing=existing)
        if len(files) > 1:
            try:
                write_file(folder / INDEX, index_json(files))
            except BaseException:
                self.close()
                raise
