"""What is done to one tensor: the unit of a plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from .formats.dtypes import DTYPES
from .kernels.contract import BLOCK

Action = Literal["merge", "copy", "cast", "average"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where the values of a job go in a GGUF file.

    They come rounded to the job's ``dtype``. ``shift`` is added, they are rounded to ``converted`` (the type that the
    unquantized file would have), rows move as ``heads`` says (0: they stay), and they are stored as ``dtype``: blocks
    of ``block`` elements in ``block_bytes`` bytes. ``first`` is the element of the file's tensor that the job's first
    one becomes: not 0 where tensors are stacked.
    """

    name: str
    dtype: str
    block: int
    block_bytes: int
    converted: str
    heads: int = 0
    shift: float = 0.0
    first: int = 0

    @property
    def is_quantized(self) -> bool:
        """Whether values share scales with their neighbours."""
        return self.block > 1

    def nbytes(self, elements: int) -> int:
        """Bytes of so many elements, whole blocks of them."""
        return elements // self.block * self.block_bytes


@dataclass(frozen=True, slots=True)
class TensorJob:
    """One output tensor, or the part of it that is treated alike: elements ``span`` (start, stop), None for all.

    ``merge``: computed from base and agents; ``copy``: a model's bytes; ``cast``: its values in another type;
    ``average``: the mean of several models. ``donors`` are the models that what is not merged comes from: 0 is the
    base, 1 the first agent. ``shape`` is the whole tensor's. ``counted`` is false where a tied head repeats the
    embedding's weights. ``target`` says where a GGUF file keeps it; without one it is written as it is, under its own
    name."""

    name: str
    shape: tuple[int, ...]
    source_dtype: str
    dtype: str
    action: Action
    reason: str
    counted: bool = True
    target: Target | None = None
    span: tuple[int, int] | None = None
    donors: tuple[int, ...] = (0,)

    @property
    def start(self) -> int:
        """The first element, counted in the whole tensor."""
        return 0 if self.span is None else self.span[0]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape) if self.span is None else self.span[1] - self.span[0]

    def models(self, count: int) -> Sequence[int]:
        """Which of so many models, the base first, are read for it."""
        return range(count) if self.action == "merge" else self.donors

    @property
    def kind(self) -> tuple[object, ...]:
        """What tensors have in common that are computed in the same way."""
        target = self.target
        stored = target and (target.dtype, target.converted, target.heads > 0, target.shift != 0)
        return self.source_dtype, self.dtype, stored

    @property
    def is_stored_as_packed(self) -> bool:
        """Whether a GGUF file holds just the bytes that safetensors would have."""
        target = self.target
        return target is None or (
            target.dtype == target.converted == self.dtype and not target.heads and not target.shift
        )

    @property
    def row(self) -> int:
        """Elements of a row; rows of a vector are its elements, unless it becomes blocks."""
        blocks = self.target is not None and self.target.is_quantized
        return self.shape[-1] if len(self.shape) > 1 or (blocks and self.shape) else 1

    @property
    def matrix(self) -> int:
        """Elements of a matrix: of a stack of them, one."""
        return self.row * (self.shape[-2] if len(self.shape) > 1 else 1)

    @property
    def grain(self) -> int:
        """Elements that must stay in one chunk: whole heads where rows move within them, else whole rows of blocks."""
        if self.target is None or not self.elements:
            return 1
        if self.target.heads:
            return prod(self.shape) // self.target.heads
        return self.row if self.target.is_quantized else 1

    @property
    def segment(self) -> int:
        """Elements that one checksum is for: the fewest whole grains that fill a block. Chunks are cut between them."""
        return -(-BLOCK // self.grain) * self.grain

    @property
    def segments(self) -> int:
        """How many segments there are; the last may be a short one."""
        return -(-self.elements // self.segment)

    def segment_at(self, start: int) -> int:
        """The number of the segment that begins at this element of the tensor."""
        return (start - self.start) // self.segment

    def written(self, elements: int) -> int:
        """Bytes that so many elements take in the output, whole grains of them."""
        return self.target.nbytes(elements) if self.target else elements * DTYPES[self.dtype].itemsize
