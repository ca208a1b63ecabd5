"""The element types of tensors, by the names that safetensors gives them.

Plain data without Numba, so that headers can be read and merges be planned at no cost;
``codecs.py`` turns the floating types into float32 and back.
"""

from dataclasses import dataclass

from .errors import FormatError


@dataclass(frozen=True, slots=True)
class DType:
    """One element type: its name, bytes per element, and whether a merge can compute with it."""

    name: str
    itemsize: int
    floating: bool


DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("F64", 8, True),
        DType("F32", 4, True),
        DType("F16", 2, True),
        DType("BF16", 2, True),
        DType("F8_E4M3", 1, True),
        DType("F8_E5M2", 1, True),
        DType("F8_E8M0", 1, False),  # a scale, not a weight
        DType("I64", 8, False),
        DType("I32", 4, False),
        DType("I16", 2, False),
        DType("I8", 1, False),
        DType("U64", 8, False),
        DType("U32", 4, False),
        DType("U16", 2, False),
        DType("U8", 1, False),
        DType("BOOL", 1, False),
        DType("C64", 8, False),
    )
}

# What people, config.json and torch call the floating types.
ALIASES: dict[str, str] = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "double": "F64",
    "fp64": "F64",
    "float": "F32",
    "fp32": "F32",
    "half": "F16",
    "fp16": "F16",
}
TORCH_NAMES = {ours: theirs for theirs, ours in list(ALIASES.items())[:6]}


def floating_dtype(text: str) -> str:
    """The name of a floating type as typed by a person: ``bf16``, ``BF16`` and ``torch.bfloat16`` are ``BF16``."""
    name = text.removeprefix("torch.").lower()
    name = ALIASES.get(name, name.upper())
    if name in DTYPES and DTYPES[name].floating:
        return name
    known = ", ".join(sorted(n.lower() for n in TORCH_NAMES))
    raise FormatError(f"unknown dtype {text!r:.80}; known are {known}")
