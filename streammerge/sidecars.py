"""The files beside the weights: what is copied from the base into the output, and what must not be.

An output is made to be published, so nothing may come into it that was never a part of the model. A link is followed
if it stays in the model's folder, or leads into the ``blobs`` of the Hub's cache, of which snapshots are made; any
other link is refused, and so is whatever is not a file. Weights may be linked from anywhere: they are checked, and
read as weights only. Hidden files and folders are no part of a model.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from .errors import FormatError
from .formats.inputs import kind_of

# What holds weights, in whatever format, and so is not copied beside the merged ones.
WEIGHTS = (
    ".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".gguf",
    ".onnx", ".onnx_data", ".msgpack", ".h5", ".h5.index.json", ".npz", ".mlmodel", ".tflite",
)  # fmt: skip
MAX_DEPTH = 16  # folders in each other
MAX_FILES = 10_000


def sidecars(folder: Path) -> list[Path]:
    """Every file beside the weights, relative to the folder, sorted: tokenizer, config, templates, licence.

    Raises FormatError on what cannot be copied: nothing is left out in silence.
    """
    found = []
    for path in _walk(folder):
        found.append(path.relative_to(folder))
        _check(folder, path)
        if len(found) > MAX_FILES:
            raise FormatError(
                f"{folder}: holds more than {MAX_FILES} files beside the weights; is this a model's folder?"
            )
    return sorted(found)


def _walk(folder: Path) -> Iterator[Path]:
    """What is neither hidden nor a folder nor weights."""
    waiting = [(folder, 0)]
    while waiting:
        place, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise FormatError(f"{place}: folders are nested deeper than {MAX_DEPTH} levels; is this a model's folder?")
        for entry in _entries(place):
            if entry.is_dir(follow_symlinks=False):
                waiting.append((place / entry.name, depth + 1))
            elif not entry.name.endswith(WEIGHTS):
                yield place / entry.name


def _entries(place: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise FormatError(f"{place}: cannot be listed: {error.strerror}") from error


def _check(folder: Path, path: Path) -> None:
    kind = kind_of(path)
    if kind != "file":
        what = {"nothing": "is a link to nothing", "folder": "is a link to a folder"}.get(kind, f"is {kind}")
        raise FormatError(f"{path}: {what}, which cannot be copied with the model; remove it, or copy in what it means")
    if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in _own(folder)):
        raise FormatError(
            f"{path}: is a link to {path.resolve()}, outside of the model, which would be copied into the merged one; "
            "put a copy in its place if it belongs to the model, remove it otherwise"
        )
    if not os.access(path, os.R_OK):
        raise FormatError(f"{path}: cannot be read: permission denied; it is to be copied with the model")


def _own(folder: Path) -> list[Path]:
    """Where the files of a model may really lie: its folder, and the blobs of a snapshot in the Hub's cache."""
    place = folder.resolve()
    in_cache = place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--")
    return [place, place.parent.parent / "blobs"] if in_cache else [place]
