"""How a template's tensor follows from the base's, found by comparing some rows of both.

A change that a converter may have made is taken only if the values single it out. Types that merely round are compared
exactly. Of quantized ones the error counts, relative to the base's values: it must be one that the type can explain,
and the error of any other change must be far from that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streammerge.errors import FormatError, MismatchError
from streammerge.formats.contract import Reader, TensorInfo
from streammerge.formats.dtypes import DTYPES
from streammerge.formats.gguf import GGML_TYPES
from streammerge.gguf.names import row_runs

Floats = NDArray[np.float32]
_PLAIN = ("F64", "F32", "F16", "BF16")
_SAMPLE = 1 << 16  # elements of a tensor that are looked at, as far as whole rows allow
_LEAST_ROWS, _PLACES = 8, 4
_TINY = 2.0**-126  # some converters write subnormal numbers as zero
# From so many bits a value on, the error that a type may make. Measured with llama.cpp on weights from normal to
# heavy-tailed, importance matrix included: IQ1 and IQ2 0.25 to 0.68, Q2_K to Q3_K 0.14 to 0.30, four bits 0.07 to
# 0.16, five 0.04 to 0.08, Q8_0 0.01. Other rows of the same matrix are off by 1.4.
_BOUNDS = ((5.0, 0.1), (4.0, 0.2), (2.6, 0.4), (0.0, 0.7))


@dataclass(frozen=True, slots=True)
class Change:
    """What was done to a tensor: its rows moved for so many heads, a number added. As in ``Converted``."""

    heads: int = 0
    shift: float = 0.0

    def __str__(self) -> str:
        moved = f"rows moved for {self.heads} heads" if self.heads else "rows as they are"
        return f"{moved}, {self.shift:g} added" if self.shift else moved


@dataclass(frozen=True, slots=True)
class Comparison:
    """A template and the base that its values should be those of, both open for reading."""

    path: Path
    template: Reader
    base_path: Path
    base: Reader

    def find(self, tensor: TensorInfo, sources: Sequence[TensorInfo], changes: Sequence[Change]) -> Change:
        """The one change that makes the base's ``sources``, one after the other, the template's tensor.

        Raises MismatchError if there is none, or if the values do not tell which.
        """
        errors = {change: max(self._errors(tensor, sources, change)) for change in changes}
        least, bound = min(errors.values()), _bound(tensor.dtype)
        where = f"{self.path}: tensor {tensor.name!r}"
        if least > bound:
            off = "" if least == inf else f" (off by {least:.2f} of their size, at most {bound:g} is {tensor.dtype}'s)"
            raise MismatchError(
                f"{where}: its values are not those of {sources[0].name!r} in {self.base_path}{off}; it was made of "
                "another model, or converted in a way that is not known here; give a GGUF file of this very base"
            )
        near = [change for change, error in errors.items() if error <= (1 + bound) / 2]
        if len(near) > 1:
            raise MismatchError(
                f"{where}: its values do not tell how they follow from {sources[0].name!r} in {self.base_path}: "
                f"{' or '.join(map(str, near))}; give a template of type F32, F16 or BF16, or merge to safetensors"
            )
        return near[0]

    def _errors(self, tensor: TensorInfo, sources: Sequence[TensorInfo], change: Change) -> Iterator[float]:
        """The error of each source, so that one wrong expert among many does not pass."""
        columns = _columns(tensor)
        rows = tensor.elements // columns // len(sources)
        for index, source in enumerate(sources):
            found, wanted = [], []
            for start, stop in _places(rows, columns, len(sources)):
                first = index * rows
                found.append(_rows(self.template, tensor, columns, range(first + start, first + stop)))
                wanted.append(_rows(self.base, source, columns, range(start, stop), rows, change.heads))
            ours, theirs = np.concatenate(found), np.concatenate(wanted)
            yield min(_error(tensor.dtype, ours, shifted) for shifted in _shifted(source.dtype, theirs, change.shift))


def read_floats(path: Path, reader: Reader, tensor: TensorInfo) -> Floats:
    """All values of a small tensor."""
    if tensor.nbytes > 1 << 20:
        raise FormatError(f"{path}: tensor {tensor.name!r} has {tensor.nbytes} bytes, too many to be carried along")
    return _rows(reader, tensor, tensor.shape[-1], range(prod(tensor.shape[:-1]))).reshape(tensor.shape)


def _columns(tensor: TensorInfo) -> int:
    """A vector is a column of rows of one element, unless it comes in blocks."""
    return 1 if len(tensor.shape) == 1 and GGML_TYPES[tensor.dtype].block == 1 else tensor.shape[-1]


def _places(rows: int, columns: int, matrices: int) -> Iterator[tuple[int, int]]:
    """Which rows of a matrix are looked at: runs at its beginning, in its middle, at its end. Few runs, few seeks."""
    count = max(_LEAST_ROWS // matrices, 1, _SAMPLE // (columns * matrices))
    if count >= rows:
        yield 0, rows
        return
    length = -(-count // _PLACES)
    for start in np.linspace(0, rows - length, min(_PLACES, count)).astype(int).tolist():
        yield start, start + length


def _rows(reader: Reader, tensor: TensorInfo, columns: int, wanted: range, total: int = 0, heads: int = 0) -> Floats:
    """Some rows as a GGUF file has them, float32[rows, columns]; ``heads`` if the tensor has them unmoved."""
    out = np.empty((len(wanted), columns), np.float32)
    size = tensor.nbytes * columns // tensor.elements
    for run in row_runs(wanted.start, wanted.stop, total, heads):
        start, stop = run.source * size, (run.source + run.count) * size
        raw = reader.read(tensor, start, stop, np.empty(stop - start, np.uint8))
        try:
            values = _decode(tensor.dtype, raw, run.count * columns)
        except FormatError as error:
            raise FormatError(f"{tensor.file}: tensor {tensor.name!r}: {error}; give a template of type F16") from error
        out[run.target - wanted.start :: run.step][: run.count] = values.reshape(run.count, columns)
    return out


def _decode(dtype: str, raw: NDArray[np.uint8], count: int) -> Floats:
    from streammerge.formats import codecs, quants  # Numba is not loaded for the sake of a name

    out = np.empty(count, np.float32)
    if dtype in DTYPES:
        codecs.decode(dtype, raw, out)
    else:
        quants.decode(dtype, raw, out)
    return out


def _shifted(dtype: str, values: Floats, shift: float) -> Iterator[Floats]:
    """The values and ``shift``; llama.cpp's converter adds in F16 where the checkpoint is F16."""
    yield values + np.float32(shift) if shift else values
    if shift and dtype == "F16":
        yield _rounded("F16", values + np.float32(shift))


def _rounded(dtype: str, values: Floats) -> Floats:
    from streammerge.formats import codecs

    flat = np.ascontiguousarray(values).ravel()
    raw = np.empty(flat.size * GGML_TYPES[dtype].block_bytes, np.uint8)
    codecs.encode(dtype, flat, raw)
    return _decode(dtype, raw, flat.size).reshape(values.shape)


def _error(dtype: str, found: Floats, wanted: Floats) -> float:
    """Of a type that only rounds: 0, or infinite. Otherwise relative to the norm of what is wanted."""
    if dtype in _PLAIN:
        same = np.allclose(found, _rounded(dtype, wanted), rtol=0, atol=_TINY, equal_nan=True)
        return 0.0 if same else inf
    with np.errstate(all="ignore"):
        off, size = (float(np.linalg.norm(values.astype(np.float64))) for values in (found - wanted, wanted))
    return inf if not np.isfinite([off, size]).all() or 0 == size < off else off / (size or 1.0)


def _bound(dtype: str) -> float:
    kind = GGML_TYPES[dtype]
    bits = 8 * kind.block_bytes / kind.block
    return 0.0 if dtype in _PLAIN else next(bound for least, bound in _BOUNDS if bits >= least)
