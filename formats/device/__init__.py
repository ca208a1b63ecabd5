"""Decoding, encoding and quantizing on any device that torch knows: the bytes of the Numba code, chunk by chunk.

Modules and functions are named as their Numba twins in ``formats`` and ``formats/quants``, whose docstrings have the
layouts and sources. What differs is the shape of the work: an operation takes all blocks of a chunk at once, because
starting it costs more than most of the arithmetic. Nothing here waits for the device.

Same bytes on every device means: each operation rounds once (no fused multiply-add), float sums are explicit additions
in the order of the elements, a division has a tensor on the same device as its divisor (a number would become the
product with its inverse), a square root is taken in float64 (torch's own of float32 is not always the nearest), and a
NaN, whose bits differ by device, is replaced before its bits count.
"""

from importlib import import_module
from types import ModuleType

from torch import Tensor

from .. import quants


def quantize(name: str, values: Tensor, row: int, weights: Tensor | None, out: Tensor) -> None:
    """Quantize whole rows: ``quants.encode`` for tensors on one device, without waiting for it.

    ``values`` is float32[n], contiguous and finite; ``weights`` float32[row] or None; ``out`` uint8[n // block *
    nbytes], contiguous. Raises FormatError for a type that is not written, ValueError for tensors that do not fit.
    """
    quants.check_encode(name, values.numel(), row, None if weights is None else weights.numel(), out.numel())
    if values.numel():
        encode = getattr(_family(name), f"encode_{name.lower()}")
        encode(values.view(-1, row), weights, out)


def scratch(name: str) -> int:
    """The most bytes that ``quantize`` takes for each element at a time, arguments not counted. Raises FormatError."""
    return int(_family(quants.written_type(name).name).SCRATCH[name])


def _family(name: str) -> ModuleType:
    (family,) = quants.families([name])
    return import_module(f".{family}", __package__)
