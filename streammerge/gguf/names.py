"""How a checkpoint's tensors are called in a GGUF file, what type they have there unquantized, and how rows move.

Names come from the map of the gguf package, the type rules from llama.cpp's ``convert_hf_to_gguf.py``.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

from streammerge.errors import FormatError, MismatchError
from streammerge.formats.contract import OutputTensor, TensorInfo

# Buffers that old checkpoints carry and no model needs.
_BUFFERS = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
# Matrices that stay F32 because they are small or delicate, besides norms and whatever is no weight.
_ALWAYS_F32 = (
    "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight", "token_types.weight",
    "ssm_conv1d.weight", "shortconv.conv.weight",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Converted:
    """One tensor of the unquantized GGUF file.

    ``sources`` are the checkpoint's tensors: one; or one for each index of the leading axis, in its order (experts);
    or none if the values are computed or taken from a template. ``heads``: the rows of its one source are moved as
    ``row_runs`` says; 0: they stay where they are. ``shift`` is added to every value.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[str, ...]
    heads: int = 0
    shift: float = 0.0

    @property
    def output(self) -> OutputTensor:
        """What ``choose_types`` asks for."""
        return OutputTensor(self.name, self.dtype, self.shape)


# --- names and types -------------------------------------------------------------------------------------------------


class Names:
    """The names of one architecture with so many layers."""

    def __init__(self, architecture: str, layers: int) -> None:
        number = next((number for number, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
        if number is None:
            raise FormatError(
                f"architecture {architecture!r} is not known to the gguf package; a newer one may know it"
            )
        self._map = get_tensor_name_map(MODEL_ARCH(number), layers)
        self._architecture, self._layers = architecture, layers

    def find(self, name: str) -> str | None:
        """The name in the GGUF file; None for a buffer that is left out. Raises MismatchError if there is none."""
        if is_buffer(name):
            return None
        found = self.get(name)
        if found is None:
            raise MismatchError(
                f"tensor {name!r} has no place in a GGUF file of architecture {self._architecture} with "
                f"{self._layers} layers; write safetensors instead, or check config.json"
            )
        return found

    def get(self, name: str) -> str | None:
        """The name in the GGUF file, None if there is none."""
        found: str | None = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        return found


def is_buffer(name: str) -> bool:
    """Whether a checkpoint's tensor is one that no model needs."""
    return name.endswith(_BUFFERS)


def convert_names(tensors: Iterable[TensorInfo], names: Names, heads: "Heads", dtype: str) -> Iterator[Converted]:
    """The checkpoint's tensors as the GGUF file will have them; ``dtype`` (F32, F16, BF16) is that of its matrices."""
    for info in stored_order(tensors):
        name = names.find(info.name)
        if name is not None:
            kind = unquantized_type(name, info.shape, dtype)
            yield Converted(name, info.shape, kind, (info.name,), heads.of(info.name, info.shape))


def stored_order(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """By file, then by name: the order in which the converter takes and, unquantized, writes them."""
    return sorted(tensors, key=lambda info: (info.file.name, info.name))


def unquantized_type(name: str, shape: Sequence[int], dtype: str) -> str:
    """Norms, vectors and whatever is not called a weight are F32, everything else is ``dtype``."""
    vector = len(shape) <= 1 or name.endswith("_norm.weight")
    return "F32" if vector or name.endswith(_ALWAYS_F32) or not name.endswith(".weight") else dtype


# --- rows ------------------------------------------------------------------------------------------------------------

# Hugging Face stores the two halves of a head's rotary pairs one after the other, llama.cpp the pairs interleaved:
# of the d rows of a head, new row 2 i + s is old row s d/2 + i.


@dataclass(frozen=True, slots=True)
class Heads:
    """How many heads the rows of query and key matrices are divided into; 0 where rows stay where they are."""

    query: int
    key: int

    def of(self, name: str, shape: Sequence[int]) -> int:
        """The heads of the checkpoint's tensor ``name``, 0 if its rows stay. Raises MismatchError."""
        found = re.search(r"\b([qk])_proj\.(weight|bias)$", name)
        if found is None:
            return 0
        heads = self.query if found[1] == "q" else self.key
        if heads and shape[0] % (2 * heads):
            raise MismatchError(
                f"tensor {name!r} has {shape[0]} rows, which are not {heads} heads of an even size; check config.json"
            )
        return heads


@dataclass(frozen=True, slots=True)
class RowRun:
    """``count`` rows from row ``source`` of the checkpoint on go to row ``target`` and every ``step``-th after it."""

    source: int
    count: int
    target: int
    step: int


def row_runs(start: int, stop: int, rows: int, heads: int) -> list[RowRun]:
    """Where the rows ``start`` to ``stop`` of a GGUF tensor of ``rows`` rows come from: at most two runs a head."""
    if heads == 0:
        return [RowRun(start, stop - start, start, 1)] if stop > start else []
    size = rows // heads
    runs = []
    for head in range(start // size, -(-stop // size)):
        first, last = max(start - head * size, 0), min(stop - head * size, size)
        for half in (0, 1):
            target = first + (half - first) % 2
            if target < last:
                source = head * size + half * (size // 2) + target // 2
                runs.append(RowRun(source, (last - target + 1) // 2, head * size + target, 2))
    return runs


def source_row(row: int, rows: int, heads: int) -> int:
    """The checkpoint's row that is row ``row`` of the GGUF tensor."""
    return row_runs(row, row + 1, rows, heads)[0].source
