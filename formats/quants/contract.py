"""What a quantized type is, and what its two functions promise.

A tensor of a quantized type is a sequence of rows, and a row is a sequence of **blocks**: ``block`` consecutive
elements of a row in ``nbytes`` bytes, without padding. Layouts and arithmetic are ggml's.

``encode(values, row, weights, out)``
    ``values`` is float32[n], C-contiguous: whole rows of ``row`` elements. ``weights`` is float32[row], the
    importance of each column (an imatrix entry), or None. ``out`` is uint8[n // block * nbytes]. The bytes are those
    of ggml built for x86-64: float32 throughout, every operation rounded once, sums in the order of the elements.
    How rows are divided among calls changes nothing. Rows are never divided: Q4_0, Q4_1, Q5_0 and Q5_1 look at the
    whole row where weights are given. Where ``imatrix`` is False, weights are ignored.

``decode(raw, out)``
    ``raw`` is uint8[n // block * nbytes], ``out`` float32[n]. The values are those of ggml, bit for bit.

Infinite or NaN values make blocks that mean nothing: callers refuse such tensors before. They spoil their own block
only, and with weights their row.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class QuantType:
    """One quantized type: its name in ggml, elements and bytes per block, and whether ggml uses an imatrix for it."""

    name: str
    block: int
    nbytes: int
    imatrix: bool
