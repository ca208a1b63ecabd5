"""A model as a merge sees it: with a head that it does not store, and with the base's rows where it has none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .formats.contract import IO, Bytes, Reader, Source, TensorInfo


@dataclass(frozen=True)
class AlignedSource:
    """A source under other names, or with longer tensors.

    ``stored``: by the name of a tensor that is longer here than in its file, the bytes that the file has; the rest is
    that of ``filling`` of the same name in the source ``base``, at the same place.
    """

    own: Source
    tensors: Mapping[str, TensorInfo]
    stored: Mapping[str, int] = field(default_factory=dict)
    filling: Mapping[str, TensorInfo] = field(default_factory=dict)
    base: Source | None = None

    @property
    def path(self) -> Path:
        """See ``Source``."""
        return self.own.path

    @property
    def files(self) -> tuple[Path, ...]:
        """See ``Source``."""
        return self.own.files

    def reader(self, io: IO) -> Reader:
        """See ``Source``. A model that is filled up is read by position: a window cannot hold two files."""
        if self.base is None:
            return self.own.reader(io)
        return _FilledReader(self.own.reader("pread"), self.base.reader("pread"), self.stored, self.filling)


def stored_tensors(source: Source) -> Mapping[str, TensorInfo]:
    """What the files of a source hold, whatever a merge sees of it."""
    return stored_tensors(source.own) if isinstance(source, AlignedSource) else source.tensors


class _FilledReader:
    """Reads what a model stores from there, and what it lacks from the base."""

    def __init__(self, own: Reader, base: Reader, stored: Mapping[str, int], filling: Mapping[str, TensorInfo]) -> None:
        self._own = own
        self._base = base
        self._stored = stored
        self._filling = filling

    def read(self, tensor: TensorInfo, start: int, stop: int, buffer: Bytes) -> Bytes:
        """See ``Reader``."""
        end = self._end(tensor, start, stop)
        if start < end:
            self._own.read(tensor, start, end, buffer)
        if end < stop:
            self._base.read(self._filling[tensor.name], end, stop, buffer[end - start :])
        return buffer[: stop - start]

    def _end(self, tensor: TensorInfo, start: int, stop: int) -> int:
        """Where the model's own bytes of a range end."""
        return min(stop, max(start, self._stored.get(tensor.name, stop)))

    def ahead(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """See ``Reader``; the base's bytes are asked for by the base's own reader."""
        end = self._end(tensor, start, stop)
        if start < end:  # a hint of no bytes would be one about all the rest of the file
            self._own.ahead(tensor, start, end)

    def release(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Nothing to give back: the bytes are in the caller's buffer."""

    def check(self) -> None:
        """See ``Reader``."""
        self._own.check()
        self._base.check()

    def close(self) -> None:
        """See ``Reader``."""
        self._own.close()
        self._base.close()
