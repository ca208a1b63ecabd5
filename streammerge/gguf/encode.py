"""From merged values to the bytes of a GGUF file: rounding, moving of rows, quantizing, chunk by chunk."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from streammerge.errors import NonFiniteError
from streammerge.formats import codecs, quants
from streammerge.formats.contract import Bytes
from streammerge.formats.dtypes import DTYPES
from streammerge.gguf.names import row_runs
from streammerge.jobs import TensorJob

Floats = NDArray[np.float32]

# Scales are float16: from here on a block's scale may overflow, and the result is looked at.
LARGE = 60000.0


class Encoder:
    """Turns chunks into what the file holds. All memory it will use is allocated here.

    ``weights``: by tensor of the file, the importance of its columns, float32[matrices, columns]. ``piece`` elements
    are quantized at a time, at least two rows of the longest; ``encoded`` has room for all that a chunk becomes.
    """

    def __init__(self, weights: Mapping[str, Floats], piece: int, encoded: Bytes) -> None:
        self._weights = weights
        self._values = np.empty(piece, np.float32)
        self._moved = np.empty(piece, np.float32)
        self.encoded = encoded

    def encode(self, job: TensorJob, start: int, stop: int, packed: Bytes) -> Bytes:
        """The bytes of elements ``start`` to ``stop`` of a job, whole grains of it; ``packed`` holds them in the type
        that safetensors would have. Valid until the next call. Raises NonFiniteError."""
        target = job.target
        assert target is not None
        if job.is_stored_as_packed:
            return packed
        encoded = self.encoded[: target.nbytes(stop - start)]
        columns = job.row
        weights = self._weights.get(target.name)
        for first, last in pieces(job, start, stop, self._values.size, weights is not None):
            values = self._rows(job, packed, start, first, last)
            if target.shift:
                values += np.float32(target.shift)
            if target.converted not in (job.dtype, "F32"):
                self._round(job, values)
            out = encoded[target.nbytes(first - start) : target.nbytes(last - start)]
            matrix = (target.first + first) // job.matrix
            self._quantize(job, values, columns, None if weights is None else weights[matrix], out)
        return encoded

    def _rows(self, job: TensorJob, packed: Bytes, start: int, first: int, last: int) -> Floats:
        """Elements ``first`` to ``last`` of the file's tensor as float32; the chunk begins with element ``start``."""
        target, width = job.target, DTYPES[job.dtype].itemsize
        assert target is not None
        values = self._values[: last - first]
        if not target.heads:
            self._decode(job, packed[(first - start) * width : (last - start) * width], values)
            return values
        columns, rows = job.row, job.shape[0]
        moved = values.reshape(-1, columns)
        for run in row_runs(first // columns, last // columns, rows, target.heads):
            begin = (run.source * columns - start) * width
            found = self._moved[: run.count * columns]
            self._decode(job, packed[begin : begin + found.size * width], found)
            place = run.target - first // columns
            moved[place : place + run.count * run.step : run.step] = found.reshape(-1, columns)
        return values

    def _decode(self, job: TensorJob, packed: Bytes, out: Floats) -> None:
        assert job.target is not None
        if codecs.decode(job.dtype, packed, out) and job.target.is_quantized:
            raise NonFiniteError(
                f"tensor {job.name!r}: holds values that are not finite, of which {job.target.dtype} has none; "
                "repair the checkpoint, or write safetensors"
            )

    def _round(self, job: TensorJob, values: Floats) -> None:
        """To the type of the unquantized file."""
        assert job.target is not None
        packed = self._moved.view(np.uint8)[: values.size * DTYPES[job.target.converted].itemsize]
        if codecs.encode(job.target.converted, values, packed) and np.isfinite(values).all():
            self._too_large(job, values, job.target.converted)
        codecs.decode(job.target.converted, packed, values)

    def _quantize(self, job: TensorJob, values: Floats, columns: int, weights: Floats | None, out: Bytes) -> None:
        assert job.target is not None
        kind = job.target.dtype
        if not job.target.is_quantized:
            if codecs.encode(kind, values, out) and np.isfinite(values).all():
                self._too_large(job, values, kind)
            return
        quants.encode(kind, values, columns, weights, out)
        if (largest := codecs.largest_magnitude(values)) >= LARGE:
            quants.decode(kind, out, values)
            if not np.isfinite(values).all():
                self._too_large(job, np.array([largest], np.float32), kind)

    def _too_large(self, job: TensorJob, values: Floats, kind: str) -> None:
        largest = np.abs(values[np.isfinite(values)]).max(initial=0)
        raise NonFiniteError(
            f"tensor {job.name!r}: {largest:g} is too large for {kind}; choose another type for it, such as "
            f"--tensor-type '{job.target.name if job.target else job.name}=BF16'"
        )


def pieces(job: TensorJob, start: int, stop: int, room: int, is_weighted: bool) -> Iterator[tuple[int, int]]:
    """Runs of whole rows that fit into ``room`` elements, of an even number of them where rows move, and of one matrix
    where columns weigh."""
    assert job.target is not None
    rows = (2 if job.target.heads else 1) * job.row
    step = room // rows * rows
    matrix = job.matrix if is_weighted else job.elements
    while start < stop:
        end = min(start + step, stop, (start // matrix + 1) * matrix)
        yield start, end
        start = end
