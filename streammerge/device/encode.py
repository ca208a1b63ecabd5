"""``gguf.encode`` on a torch device: rounding, moving of rows, quantizing."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..formats.device import codecs, quantize
from ..formats.dtypes import DTYPES
from ..gguf.encode import LARGE, pieces
from ..jobs import TensorJob
from .limits import LARGEST, Limits


class DeviceEncoder:
    """Turns chunks into what a GGUF file holds. ``weights``: by tensor of the file, the importance of its columns."""

    def __init__(self, weights: Mapping[str, NDArray[np.float32]], device: torch.device) -> None:
        self._weights = weights
        self._device = device
        self._uploaded: dict[tuple[str, int], Tensor] = {}

    def encode(
        self, job: TensorJob, start: int, stop: int, packed: Tensor, out: Tensor, run: int, limits: Limits
    ) -> Tensor:
        """The bytes of elements ``start`` to ``stop`` of a job, ``run`` of them at a time. ``packed`` holds them in the
        job's type; ``out`` (uint8) is long enough."""
        target = job.target
        assert target is not None
        if job.is_stored_as_packed:
            return packed
        weights = self._weights.get(target.name)
        for first, last in pieces(job, start, stop, run, weights is not None):
            values = self._values(job, packed, start, first, last)
            if target.shift:
                values += float(np.float32(target.shift))
            if target.converted not in (job.dtype, "F32"):
                self._round(target.converted, values, limits)
            part = out[target.nbytes(first - start) : target.nbytes(last - start)]
            limits.check(values, LARGE - 1 if target.is_quantized else LARGEST[target.dtype])
            if target.is_quantized:
                importance = None if weights is None else self._importance(job, first)
                quantize(target.dtype, values, job.row, importance, part)
            else:
                codecs.encode(target.dtype, values, part)
        return out[: target.nbytes(stop - start)]

    def _values(self, job: TensorJob, packed: Tensor, start: int, first: int, last: int) -> Tensor:
        """Elements ``first`` to ``last`` of the file's tensor as float32; the chunk begins with element ``start``."""
        assert job.target is not None
        width = DTYPES[job.dtype].itemsize
        if job.target.heads:
            rows = source_rows(first // job.row, last // job.row, job.shape[0], job.target.heads, self._device)
            stored = packed.view(-1, job.row * width)
            raw = stored.index_select(0, rows - start // job.row).view(-1)
        else:
            raw = packed[(first - start) * width : (last - start) * width]
        values = torch.empty(last - first, dtype=torch.float32, device=self._device)
        codecs.decode(job.dtype, raw, values)
        return values

    def _round(self, dtype: str, values: Tensor, limits: Limits) -> None:
        """To the type of the unquantized file."""
        limits.check(values, LARGEST[dtype])
        rounded = torch.empty(values.numel() * DTYPES[dtype].itemsize, dtype=torch.uint8, device=self._device)
        codecs.encode(dtype, values, rounded)
        codecs.decode(dtype, rounded, values)

    def _importance(self, job: TensorJob, first: int) -> Tensor:
        """Of the columns of the matrix that holds this element; the last one stays on the device."""
        assert job.target is not None
        name, matrix = job.target.name, (job.target.first + first) // job.matrix
        if (name, matrix) not in self._uploaded:
            self._uploaded = {(name, matrix): torch.from_numpy(self._weights[name][matrix].copy()).to(self._device)}
        return self._uploaded[name, matrix]


def source_rows(first: int, last: int, rows: int, heads: int, device: torch.device) -> Tensor:
    """The checkpoint's rows that are rows ``first`` to ``last`` of a GGUF tensor: see ``gguf.names.row_runs``."""
    row = torch.arange(first, last, device=device)
    size = rows // heads
    within = row % size
    return row - within + within % 2 * (size // 2) + within // 2
