"""ggml's own quantizers, called in its library by ctypes: what our bytes and our speed are compared with.

The library is the one that llama-cpp-python brings along in its default build. ``-march=native`` is given to another of
ggml's libraries only: the quantizers are baseline x86-64 there, as they are in ``llama-quantize``.
"""

import ctypes
import importlib.metadata
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ROWS = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}  # the others are dequantize_row_NAME


class GgmlMissingError(Exception):
    """llama-cpp-python is not installed, or its build has no such library."""


class Ggml:
    """One loaded library. Whatever it is asked runs in the calling thread."""

    def __init__(self, file: Path) -> None:
        self._library = ctypes.CDLL(str(file))
        integer, pointer = ctypes.c_int64, ctypes.c_void_p
        quantize = self._library.ggml_quantize_chunk
        quantize.argtypes = [ctypes.c_int, pointer, pointer, integer, integer, integer, pointer]
        quantize.restype = ctypes.c_size_t

    def encode(self, name: str, values: Floats, row: int, weights: Floats | None) -> Bytes:
        """The blocks of whole rows of ``row`` values, with the importance of each column or without."""
        block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        out = np.zeros(values.size // block * nbytes, np.uint8)
        self.encode_into(name, values, row, weights, out)
        return out

    def encode_into(self, name: str, values: Floats, row: int, weights: Floats | None, out: Bytes) -> None:
        """The same into an array of the right size."""
        kind = int(gguf.GGMLQuantizationType[name])
        importance = None if weights is None else weights.ctypes.data
        source, rows = values.ctypes.data, values.size // row
        written = self._library.ggml_quantize_chunk(kind, source, out.ctypes.data, 0, rows, row, importance)
        assert written == out.size

    def decode_into(self, name: str, raw: Bytes, out: Floats) -> None:
        """Blocks to float32: what ggml's table of types calls ``to_float``."""
        function = getattr(self._library, _ROWS.get(name, f"dequantize_row_{name.lower().replace('_k', '_K')}"))
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        function.restype = None
        function(raw.ctypes.data, out.ctypes.data, out.size)


@cache
def load_ggml() -> Ggml:
    """The library of the installed llama-cpp-python. Raises GgmlMissingError, which says how to install it."""
    package = find_spec("llama_cpp")
    folder = Path(package.origin).parent / "lib" if package and package.origin else Path()
    files: list[Any] = sorted(folder.glob("libggml-base.*")) if package else []
    if not files:
        raise GgmlMissingError(
            "no library of ggml's to compare with: install it by `pip install llama-cpp-python==0.3.36`, "
            "which compiles it (a C++ compiler and cmake are needed)"
        )
    return Ggml(files[0])


def ggml_version() -> dict[str, str]:
    """The package that the library came with."""
    return {"llama-cpp-python": importlib.metadata.version("llama-cpp-python")}
