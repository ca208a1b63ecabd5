"""Checkpoint formats: bytes on disk to float32 blocks and back. Never imports the rest of streammerge.

``contract.py`` is the specification; a format is one file and one line in ``FORMATS``.
"""

from collections.abc import Callable
from pathlib import Path

from .contract import Source
from .errors import FormatError
from .safetensors import SafetensorsSource

FORMATS: dict[str, Callable[[Path], Source]] = {
    "safetensors": SafetensorsSource,
}


def open_source(path: Path) -> Source:
    """Open a checkpoint: a folder, or a file whose ending says the format. Reads headers only."""
    if path.suffix == ".gguf":
        raise FormatError(f"{path}: GGUF files are not read yet; give the safetensors checkpoint it was made from")
    return FORMATS["safetensors"](path)
