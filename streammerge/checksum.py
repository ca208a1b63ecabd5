"""Checksums of outputs and inputs: XXH3 in 128 bits (https://xxhash.com), by the xxhash package.

A tensor is written in pieces, in any order and by several threads, so its checksum is that of a list: every *segment*
(``TensorJob.segment``, the last may be short) has a digest of 16 bytes, and the checksum is the digest of these, one
after another. Of a tensor in parts (a stack of several in GGUF, rows of the vocabulary), it is the digest of theirs.
Segments depend on the tensor alone, never on budget or threads. A checksum finds accidents, not forgery.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import xxhash

from .errors import FormatError, why

SIZE = 16  # bytes of a digest
ALGORITHM = "XXH3-128 of the XXH3-128 of every segment"
_PIECE = 4096
_PIECES = 8
_READ = 1 << 20


def digests(data: memoryview, segment: int) -> bytes:
    """The digests of the segments of ``data``, one after another; ``segment`` in bytes."""
    return b"".join(xxhash.xxh3_128_digest(data[at : at + segment]) for at in range(0, len(data), segment))


def digest(data: memoryview | bytes) -> bytes:
    """The digest of a few bytes as they are, or of other digests one after another."""
    return xxhash.xxh3_128_digest(data)


def stacked(parts: Sequence[bytes]) -> str:
    """The checksum of a tensor: the digest of its segments' digests, or of several parts the digest of these."""
    return (parts[0] if len(parts) == 1 else digest(b"".join(parts))).hex()


def of_file(path: Path) -> str:
    """The checksum of a whole small file. Raises FormatError."""
    whole = xxhash.xxh3_128()
    try:
        with open(path, "rb") as file:
            while data := file.read(_READ):
                whole.update(data)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {why(error)}") from error
    return whole.hexdigest()


def sample_of_file(path: Path, head: int) -> str:
    """A checksum of the first ``head`` bytes and of eight pieces of 4 KiB spread over the rest: it tells weights of the
    same header apart without reading them. Raises FormatError."""
    whole = xxhash.xxh3_128()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            for start in range(0, min(head, size), _READ):
                whole.update(file.read(min(_READ, head - start)))
            for number in range(1, _PIECES + 1):
                file.seek(head + max(size - head - _PIECE, 0) * number // _PIECES)
                whole.update(file.read(_PIECE))
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {why(error)}") from error
    return whole.hexdigest()
