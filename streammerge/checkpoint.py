"""An input model: its weights (a source), its config.json, and the files that travel with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import FormatError
from .formats import open_source
from .formats.contract import IO, Reader, Source, TensorInfo
from .formats.inputs import kind_of, read_json
from .sidecars import sidecars

_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_QUANTIZED = (
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".weight_scale_inv",
    ".weight_packed",
    ".absmax",
    ".quant_map",
    "_blocks",
)


@dataclass(frozen=True)
class Checkpoint:
    """One opened model. ``config`` is config.json, empty where there is none."""

    source: Source
    config: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """As the user named it."""
        return self.source.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files."""
        return self.source.files

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name, in the order of the bytes on disk."""
        return self.source.tensors

    def reader(self, io: IO) -> Reader:
        """See ``Source``."""
        return self.source.reader(io)

    @property
    def identity(self) -> frozenset[tuple[int, int]]:
        """The files on disk, whatever they are called."""
        return frozenset((status.st_dev, status.st_ino) for status in (file.stat() for file in self.files))

    @property
    def ties_embeddings(self) -> bool:
        """Whether the config says that the head is the embedding."""
        text = self.config.get("text_config")
        inner = text.get("tie_word_embeddings") if isinstance(text, dict) else None
        return bool(self.config.get("tie_word_embeddings", inner or False))

    def is_head(self, name: str) -> bool:
        """Whether a tensor of this name is a language-model head."""
        return name.endswith(_HEADS)

    def embedding_of(self, name: str) -> str | None:
        """The stored embedding whose weights this tensor repeats: it is a head, and the config ties the two."""
        if not (self.ties_embeddings and self.is_head(name)):
            return None
        shape = self.tensors[name].shape
        tied = (n for n, info in self.tensors.items() if n.endswith("embed_tokens.weight") and info.shape == shape)
        return next(tied, None)

    @cached_property
    def other_files(self) -> list[Path]:
        """Every file beside the weights, relative to the folder. Raises FormatError: see ``sidecars``."""
        return sidecars(self.path) if kind_of(self.path) == "folder" else []


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model by its headers. Raises FormatError, also for quantized ones."""
    source = open_source(path)
    config_path = path / "config.json"
    config = {} if kind_of(config_path) == "nothing" else read_json(config_path)
    quantization = config.get("quantization_config")
    if quantization:
        how = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise FormatError(f"{path}: is quantized ({how!s:.80}); give the full-precision checkpoint it was made from")
    for name in source.tensors:
        if name.endswith(_QUANTIZED):
            raise FormatError(f"{path}: tensor {name!r} belongs to a quantized checkpoint; give the full-precision one")
    return Checkpoint(source, config)
