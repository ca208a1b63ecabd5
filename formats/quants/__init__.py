"""Quantized element types: float32 rows to ggml's blocks and back. ``contract.py`` is the specification.

A family of types is one file with ``encode_<name>`` and ``decode_<name>`` for each of its types; a type is one line
in ``QUANTS`` and a name in ``_FAMILIES``. A family is imported, and its kernels compiled or loaded from the cache, when
one of its types is first used. Types that are only read (IQ1, IQ2, IQ3, NVFP4 and what else there will be) are
decoded by the gguf package, as are F16 and BF16 blocks of one element.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from .contract import QuantType

QUANTS: dict[str, QuantType] = {
    quant.name: quant
    for quant in (
        QuantType("Q4_0", 32, 18, True),
        QuantType("Q4_1", 32, 20, True),
        QuantType("Q5_0", 32, 22, True),
        QuantType("Q5_1", 32, 24, True),
        QuantType("Q8_0", 32, 34, False),
        QuantType("Q2_K", 256, 84, True),
        QuantType("Q3_K", 256, 110, True),
        QuantType("Q4_K", 256, 144, True),
        QuantType("Q5_K", 256, 176, True),
        QuantType("Q6_K", 256, 210, True),
        QuantType("IQ4_NL", 32, 18, True),
        QuantType("IQ4_XS", 256, 136, True),
        QuantType("TQ1_0", 256, 54, False),
        QuantType("TQ2_0", 256, 66, False),
        QuantType("MXFP4", 32, 17, False),
    )
}

_FAMILIES: dict[str, tuple[str, ...]] = {
    "legacy": ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    "k_minima": ("Q2_K", "Q4_K", "Q5_K"),
    "k_symmetric": ("Q3_K", "Q6_K"),
    "iq4": ("IQ4_NL", "IQ4_XS"),
    "ternary": ("TQ1_0", "TQ2_0", "MXFP4"),
}
_FAMILY = {name: family for family, names in _FAMILIES.items() for name in names}


def families(names: Iterable[str]) -> list[str]:
    """The modules that these types need; names of other types are passed over."""
    return sorted({_FAMILY[name] for name in names if name in _FAMILY})


def encode(
    name: str, values: NDArray[np.float32], row: int, weights: NDArray[np.float32] | None, out: NDArray[np.uint8]
) -> None:
    """Quantize whole rows, byte for byte as ggml does; ``contract.py`` says what the arguments are.

    Raises FormatError for a type that is not written, ValueError for arrays that do not fit each other.
    """
    check_encode(name, values.size, row, None if weights is None else weights.size, out.size)
    _function("encode", name)(values, row, weights, out)


def check_encode(name: str, elements: int, row: int, columns: int | None, nbytes: int) -> None:
    """What ``encode`` raises for rows of ``row`` elements, weights for ``columns``, and so many bytes to write."""
    quant = written_type(name)
    if row <= 0 or row % quant.block or elements % row:
        raise ValueError(f"{name}: {elements} values are not whole rows of {row} in blocks of {quant.block}")
    if columns is not None and columns != row:
        raise ValueError(f"{name}: {columns} weights for rows of {row} values")
    _same_length(quant, elements, nbytes)


def written_type(name: str) -> QuantType:
    """The type of this name; FormatError if there is none that can be written."""
    if name not in QUANTS:
        raise FormatError(f"cannot write elements of type {name}; known are {', '.join(QUANTS)}")
    return QUANTS[name]


def decode(name: str, raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Blocks to float32, bit for bit as ggml does. Every type that the gguf package can dequantize is known.

    Raises FormatError for an unknown type, ValueError for arrays that do not fit each other.
    """
    if name not in QUANTS:
        _decode_with_gguf(name, raw, out)
        return
    _same_length(QUANTS[name], out.size, raw.size)
    _function("decode", name)(raw, out)


def _function(action: str, name: str) -> Any:
    return getattr(import_module(f".{_FAMILY[name]}", __package__), f"{action}_{name.lower()}")


def _decode_with_gguf(name: str, raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType.__members__.get(name)
    if kind is None:
        raise FormatError(f"cannot read elements of type {name}: ggml has no such type")
    _same_length(QuantType(name, *GGML_QUANT_SIZES[kind], False), out.size, raw.size)
    try:
        out[:] = dequantize(raw, kind)
    except NotImplementedError:
        raise FormatError(f"cannot read elements of type {name}: the gguf package does not decode it") from None


def _same_length(quant: QuantType, elements: int, found: int) -> None:
    # The kernels do not check bounds: a wrong length would read or write beyond the array.
    if elements % quant.block or found != elements // quant.block * quant.nbytes:
        raise ValueError(f"{elements} {quant.name} elements in blocks of {quant.block} do not fit {found} bytes")
